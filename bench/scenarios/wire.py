"""TCP: many connections at a server, and a waiting client that is released.

A connection is a process here, as it is in a job: torch's client blocks in C++ and gives the GIL up, but threads of one
process would wait for the GIL after each answer, and that would be in every figure. The server has a process of its
own. Everybody shares the cores, so what the clients take is part of each figure, the same part at each server.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Final

from bench.records import Aim, Case, Sample, Session, Timing
from bench.rivals.wire import Wire
from bench.scenarios.base import Client, Effort, Job, Scenario, clock_ns, span_s
from bench.scenarios.verbs import LOOPS, VALUE, WARM, fill, keys_of, settle

__all__ = ["BY", "LOCAL", "Release", "Traffic"]

OURS: Final = Wire("torch", "shmstore").name
THEIRS: Final = Wire("torch", "libuv").name
WORLDS: Final = (1, 4, 16, 64)
KEYS = 100
TIMES = 5
"""A sample takes so many times as long as elsewhere: of 64 processes none comes at the same moment."""
BOTH, MEDIAN, P99 = "set and get", "get, median", "get, p99"
QUANTILES: Final = {MEDIAN: 0.5, P99: 0.99}
SPEED: Final = {1: 1.0, 4: 1.2, 16: 1.2, 64: 1.2}
"""At least so many times as many calls a second as at torch's libuv server."""
LATENCY = 1.1
"""At most so many times as long."""

BY: Final = "set by"
LOCAL: Final = "a local process"
CLIENT: Final = "another client"
RELEASE = 1.5
PAUSE_S = 0.002
"""Between two releases: until then whoever waits is asleep."""
MOST_RELEASES = 200


class Traffic(Scenario):
    """Calls by so many connections, each as soon as the one before is answered."""

    name = "wire"
    kind = "wire"
    text = (
        f"P processes with a connection each, on {KEYS} keys of their own, 32-byte values; process i on core i modulo "
        "the cores, the server in a process of its own on any. set and get, by turns, and add: time by calls of all "
        "processes together; 10 µs are 100,000 calls a second. get, median and p99: of a single get in the first kind "
        "of traffic."
    )
    axis = "processes"
    reference = THEIRS

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """A session for each number of processes.

        Of one process it is a fresh one each round: where its server once happens to sleep on the same core as the
        client it stays there, and a call takes a fifth of what it takes elsewhere, in all rounds of that rival.
        """
        return [
            Session(
                self.name,
                world,
                tuple(
                    Case(measure, {"processes": world}, ("set", "get", "add")) for measure in (BOTH, "add", *QUANTILES)
                ),
                effort.rounds,
                effort.target_s * TIMES,
                alone=world == 1,
            )
            for world in _worlds(effort)
        ]

    def aims(self, effort: Effort) -> Sequence[Aim]:
        """What torch's client was to find at our server, against torch's; see docs/bench.md."""
        found = []
        for measure, at_least, at_most in (
            (BOTH, SPEED, None),
            ("add", SPEED, None),
            (MEDIAN, {}, LATENCY),
            (P99, {}, 0.0),
        ):
            for world in _worlds(effort):
                of, to = ((rival, measure, {"processes": world}) for rival in (OURS, THEIRS))
                place = f"{world} process{'es' * (world > 1)}"
                label = f"{measure}: {OURS} over {THEIRS}"
                found.append(Aim(self.name, label, place, at_least.get(world, 0.0), of, to, at_most))
        return found

    def prepare(self, case: Case, client: Client, rank: int, world: int) -> None:
        """Sets this process's keys."""
        del case, world
        if "keys" not in client.notes:
            client.notes["keys"] = keys_of(f"wire/{rank}", KEYS)
            fill(client.store, client.notes["keys"], VALUE)

    def work(self, client: Client, job: Job) -> Timing:
        """The calls; with the time of each get where that is asked for."""
        keys, measure = client.notes["keys"], job.case.measure
        if measure == "add":
            return LOOPS["add"](client.store, keys, VALUE, job)
        set_, get, todo = client.store.set, client.store.get, cycle(keys)
        for key in islice(todo, WARM):
            set_(key, VALUE)
            get(key)
        some = islice(todo, -(-job.count // 2))
        if measure == BOTH:
            job.gate()
            start = clock_ns()
            for key in some:
                set_(key, VALUE)
                get(key)
            return Timing((start,), (clock_ns(),))
        enter, leave = [], []
        job.gate()
        for key in some:
            set_(key, VALUE)
            enter.append(clock_ns())
            get(key)
            leave.append(clock_ns())
        return Timing(tuple(enter), tuple(leave), QUANTILES[measure])

    def sample(self, count: int, timings: Sequence[Timing]) -> Sample:
        """By operations of all; or the quantile of all gets, where the timings name one."""
        quantile = timings[0].value
        if quantile is None:
            return super().sample(count, timings)
        took_ns = sorted(b - a for each in timings for a, b in zip(each.enter, each.leave, strict=True))
        return Sample(took_ns[math.ceil(quantile * len(took_ns)) - 1] / 1e9, span_s(timings))


class Release(Scenario):
    """From the call of set until the client that waited for the key is through."""

    name = "release"
    kind = "wire"
    text = (
        "A client waits for a key, asleep; another process sets it, by a client of its own, or, at our server, in the "
        "segment without the wire. From the call of set to the return of wait, the median. A process on each of two "
        "cores, the server on any."
    )
    reference = THEIRS
    beside = BY

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """One session."""
        return [Session(self.name, 2, (_released(CLIENT), _released(LOCAL)), effort.rounds, effort.target_s * TIMES)]

    def aims(self, effort: Effort) -> Sequence[Aim]:
        """A local set at our server, against torch's server and clients."""
        del effort
        case, other = _released(LOCAL), _released(CLIENT)
        rows = (OURS, case.measure, case.params), (THEIRS, other.measure, other.params)
        label = f"{OURS}, {BY} {LOCAL}, over {THEIRS}, {BY} {CLIENT}"
        return [Aim(self.name, label, "release", 0.0, *rows, RELEASE)]

    def prepare(self, case: Case, client: Client, rank: int, world: int) -> None:
        """Opens the segment, for the one who sets there."""
        del world
        if rank == 0 and case.params[BY] == LOCAL:
            client.notes[LOCAL] = client.local()

    def work(self, client: Client, job: Job) -> Timing:
        """Rank 0 sets one key after the other, rank 1 waits for each."""
        keys = [f"bench/{job.fresh}/{i}" for i in range(job.count + WARM)]
        times: list[int] = []
        settle(client.store, keys[0])
        set_, wait = client.notes.get(str(job.case.params[BY]), client.store).set, client.store.wait
        job.gate()
        for key in keys:
            if job.rank == 0:
                time.sleep(PAUSE_S)
                times.append(clock_ns())
                set_(key, VALUE)
            else:
                wait([key])
                times.append(clock_ns())
        return Timing(tuple(times), tuple(times))

    def sample(self, count: int, timings: Sequence[Timing]) -> Sample:
        """The median of those that are timed."""
        setter, waiter = timings
        took_ns = [b - a for a, b in zip(setter.enter[-count:], waiter.leave[-count:], strict=True)]
        return Sample(statistics.median(took_ns) / 1e9, span_s(timings))


def _worlds(effort: Effort) -> Sequence[int]:
    return WORLDS[:2] if effort.quick else WORLDS


def _released(by: str) -> Case:
    needs = ("set", "wait", "local") if by == LOCAL else ("set", "wait")
    return Case("release", {BY: by, "processes": 2}, needs, most=MOST_RELEASES)
