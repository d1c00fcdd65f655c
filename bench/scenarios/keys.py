"""From a thousand keys to a million: how long a random get takes, and what a key costs in memory."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.host import SHM, shm_free_bytes
from bench.records import Case, Contrast, Sample, Session, Timing
from bench.scenarios.base import Client, Effort, Job, Scenario, clock_ns, span_s
from bench.scenarios.verbs import LOOPS, VALUE, fill, keys_of

__all__ = ["Keys", "Memory"]

KEYS = "keys"
COUNTS = (1_000, 10_000, 100_000, 1_000_000)
QUICK_COUNTS = (1_000, 10_000)
DRAWN = 50_000
"""Gets go round so many drawn keys, however many there are: what Python's own strings cost is the same."""

ROOM = 1024
"""Bytes of capacity asked for a key. What it takes is measured, by `memory`; this is only ample."""


def _counts(effort: Effort) -> Sequence[int]:
    return QUICK_COUNTS if effort.quick else COUNTS


def _capacity(count: int) -> int:
    """What to ask for: nothing where any default will do."""
    return 0 if count <= 50_000 else count * ROOM


def _must_fit(count: int) -> None:
    """A full tmpfs ends some rivals with SIGBUS: better to say so before."""
    needed, free = count * ROOM, shm_free_bytes()
    if free < needed:
        raise OSError(f"{SHM} has {free >> 20} MiB left, and {count} keys may want {needed >> 20} MiB")


class Keys(Scenario):
    """Random gets from stores of several sizes, by turns: a store each."""

    name = "keys"
    text = f"One client, 32-byte values, get of keys drawn at random ({DRAWN} drawn); all on one core. Time of a call."
    axis = KEYS

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """All sizes in one session, so that they can be set against each other."""
        cases = tuple(
            Case("get", {KEYS: count}, ("get", "set", "holds"), store=str(count), capacity=_capacity(count))
            for count in _counts(effort)
        )
        return [Session(self.name, 1, cases, effort.rounds, effort.target_s, pin="one")]

    def contrasts(self, effort: Effort) -> Sequence[Contrast]:
        """The most keys against the fewest."""
        counts = _counts(effort)
        most, fewest = counts[-1], counts[0]
        return [Contrast(self.name, f"{most:,} / {fewest:,} keys", ("get", {KEYS: most}), ("get", {KEYS: fewest}))]

    def prepare(self, case: Case, client: Client, rank: int, world: int) -> None:
        """Sets all keys and draws some, each a string of its own."""
        del rank, world
        count = int(case.params[KEYS])
        _must_fit(count)
        fill(client.store, keys_of(KEYS, count), VALUE)
        draw = random.Random(count)  # noqa: S311 -- the same draw for all rivals
        client.notes["drawn"] = [f"bench/{KEYS}/{i:07d}" for i in draw.choices(range(count), k=DRAWN)]

    def work(self, client: Client, job: Job) -> Timing:
        """Gets the drawn keys."""
        return LOOPS["get"](client.store, client.notes["drawn"], VALUE, job)


class Memory(Scenario):
    """What filling a store adds to its files and to the memory of all processes of the session, by keys."""

    name = "memory"
    text = (
        f"Bytes by key, of a {len(keys_of(KEYS, 1)[0])}-byte key and a {len(VALUE)}-byte value: what setting them adds "
        "to the store's files on tmpfs and to the anonymous memory of client and server. A fresh session each time."
    )
    axis = KEYS

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """A session for each number of keys, and for each rival."""
        rounds = min(effort.rounds, 1 if effort.quick else 3)
        return [
            Session(
                self.name,
                1,
                (
                    Case(
                        "bytes by key",
                        {KEYS: count},
                        ("set", "holds", "memory"),
                        capacity=_capacity(count),
                        fixed=count,
                        unit="B",
                    ),
                ),
                rounds,
                effort.target_s,
                pin="free",
                alone=True,
            )
            for count in _counts(effort)
        ]

    def prepare(self, case: Case, client: Client, rank: int, world: int) -> None:
        """Makes the keys, and the store's first one, so that what any store needs to begin with is not counted."""
        del rank, world
        _must_fit(int(case.params[KEYS]))
        client.notes["all"] = keys_of(KEYS, int(case.params[KEYS]))
        fill(client.store, ["bench/first"], VALUE)

    def work(self, client: Client, job: Job) -> Timing:
        """Fills the store between two looks at the memory."""
        job.gate()
        before = _held_bytes(client.files())
        start = clock_ns()
        fill(client.store, client.notes["all"], VALUE)
        end = clock_ns()
        gc.collect()
        return Timing((start,), (end,), (_held_bytes(client.files()) - before) / job.count)

    def sample(self, count: int, timings: Sequence[Timing]) -> Sample:
        """What the process said."""
        del count
        value = timings[0].value
        assert value is not None
        return Sample(value, span_s(timings))


def _held_bytes(files: Iterable[Path]) -> int:
    """The files, the memory files without a name, and the anonymous memory, of the session's processes."""
    session = os.getppid()
    total = sum(path.stat().st_blocks * 512 for path in files)
    seen: set[tuple[int, int]] = set()
    for process in _family(session):
        try:
            rollup = (process / "smaps_rollup").read_text(encoding="ascii")
            total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss_Anon:"))
            for fd in (process / "fd").iterdir():
                if str(fd.readlink()).startswith("/memfd:"):
                    found = fd.stat()
                    if (found.st_dev, found.st_ino) not in seen:
                        seen.add((found.st_dev, found.st_ino))
                        total += found.st_blocks * 512
        except OSError:  # noqa: PERF203 -- it has ended
            continue
    return total


def _family(root: int) -> list[Path]:
    """The process and all that it started, as folders of /proc."""
    found = [root]
    for pid in found:  # grows while it is read
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text(encoding="ascii").split())
        except OSError:  # noqa: PERF203 -- it has ended
            continue
    return [Path(f"/proc/{pid}") for pid in found]
