"""The verbs as one client sees them, and the timed loops that other scenarios share.

A loop holds nothing but the call: the method is looked up and the arguments are made beforehand, the key lists of
`check` too. What is left of the harness is the step of a `for`, some 10 ns, and it is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any, TypeVar

from bench.records import Case, Session, Timing
from bench.scenarios.base import Client, Effort, Job, Scenario, clock_ns

__all__ = ["LOOPS", "NEEDS", "SEEN", "VALUE", "VERBS", "WARM", "Verbs", "fill", "fill_if_able", "keys_of", "settle"]

VERBS = ("set", "get", "add", "check")
SEEN = "set, seen"
"""set, and one check behind them all within the time. TCPStore's set only sends: its server works when the call is
over, and would still be at it in the next rival's turn. So a check stands behind each sample of sets, and this measure
has it inside."""

VALUE_BYTES = 32
VALUE = bytes(range(VALUE_BYTES))
KEYS = 1000
NEEDS = {"set": ("set",), SEEN: ("set", "check"), "get": ("get",), "add": ("add",), "check": ("check",)}
CHUNK = 1000
WARM = 2
"""Calls before the timing begins: the first one after others' turns may have to catch up (FileStore reads all that was
written meanwhile), which is no part of a call's time."""

T = TypeVar("T")


def keys_of(prefix: str, count: int) -> list[str]:
    """`count` keys, about as long as those of real jobs."""
    return [f"bench/{prefix}/{i:07d}" for i in range(count)]


def fill(store: Any, keys: Sequence[str], value: bytes) -> None:
    """Sets all keys, many at once where the store can."""
    if getattr(store, "has_extended_api", bool)():
        for start in range(0, len(keys), CHUNK):
            some = list(keys[start : start + CHUNK])
            store.multi_set(some, [value] * len(some))
    else:
        for key in keys:
            store.set(key, value)


def settle(store: Any, key: str) -> None:
    """Waits until a store has done what it was told, by asking it something on the same connection."""
    if hasattr(store, "check"):
        store.check([key])


def _set(store: Any, keys: Sequence[str], value: bytes, job: Job) -> Timing:
    timing, _ = _sets(store, keys, value, job)
    return timing


def _set_seen(store: Any, keys: Sequence[str], value: bytes, job: Job) -> Timing:
    timing, seen_ns = _sets(store, keys, value, job)
    return Timing(timing.enter, (seen_ns,))


def _sets(store: Any, keys: Sequence[str], value: bytes, job: Job) -> tuple[Timing, int]:
    """When the calls were, and when the store answered to a check behind them."""
    call, todo = store.set, cycle(keys)
    for key in islice(todo, WARM):
        call(key, value)
    settle(store, keys[0])
    some = islice(todo, job.count)
    job.gate()
    start = clock_ns()
    for key in some:
        call(key, value)
    end = clock_ns()
    settle(store, keys[0])
    return Timing((start,), (end,)), clock_ns()


def _add(store: Any, keys: Sequence[str], value: bytes, job: Job) -> Timing:
    del value
    call, todo = store.add, cycle([f"{key}/n" for key in keys])
    for key in islice(todo, WARM):
        call(key, 0)
    some = islice(todo, job.count)
    job.gate()
    start = clock_ns()
    for key in some:
        call(key, 1)
    return Timing((start,), (clock_ns(),))


def _get(store: Any, keys: Sequence[str], value: bytes, job: Job) -> Timing:
    del value
    return _each(store.get, keys, job)


def _check(store: Any, keys: Sequence[str], value: bytes, job: Job) -> Timing:
    del value
    return _each(store.check, [[key] for key in keys], job)


def _each(call: Callable[[T], object], arguments: Sequence[T], job: Job) -> Timing:
    todo: Iterator[T] = cycle(arguments)
    for argument in islice(todo, WARM):
        call(argument)
    some = islice(todo, job.count)
    job.gate()
    start = clock_ns()
    for argument in some:
        call(argument)
    return Timing((start,), (clock_ns(),))


LOOPS: dict[str, Callable[[Any, Sequence[str], bytes, Job], Timing]] = {
    "set": _set,
    SEEN: _set_seen,
    "get": _get,
    "add": _add,
    "check": _check,
}
"""Verb -> what calls it job.count times, going round the keys; `add` uses counters beside them."""


class Verbs(Scenario):
    """One client and nobody else."""

    name = "verbs"
    text = (
        f"One client, {KEYS} keys in turn, {VALUE_BYTES}-byte values; all on one core, the server too where there is "
        "one. Time of a call; set, seen: until a check behind all sets is answered."
    )

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """One session of all verbs."""
        params = {"processes": 1, "value_bytes": VALUE_BYTES}
        cases = tuple(Case(verb, params, NEEDS[verb]) for verb in ("set", SEEN, "get", "add", "check"))
        return [Session(self.name, 1, cases, effort.rounds, effort.target_s, pin="one")]

    def prepare(self, case: Case, client: Client, rank: int, world: int) -> None:
        """Sets the keys, so that every set is of a known key."""
        del rank, world
        client.notes[case.measure] = keys = keys_of("verbs", KEYS)
        if case.measure != "add":
            fill_if_able(client.store, keys)

    def work(self, client: Client, job: Job) -> Timing:
        """The verb's loop."""
        return LOOPS[job.case.measure](client.store, client.notes[job.case.measure], VALUE, job)


def fill_if_able(store: Any, keys: Sequence[str]) -> None:
    """Sets all keys; a store without `set` has nothing to find."""
    if hasattr(store, "set"):
        fill(store, keys, VALUE)
