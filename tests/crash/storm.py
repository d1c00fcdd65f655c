"""A storm: processes of random verbs on one segment, a killer every few milliseconds, replacements at once.

    python -m tests.crash.storm --kills 10000 --sync futex

runs the long form, as `make proofs` does; `test_storm.py` runs a short one in the suite. Two oracles that do not depend
on each other look at what is left: the journal that each worker keeps outside the segment (`storm_journal`: nothing
answered is lost, nothing is applied twice), and the core's own `verify`, in the middle of it all and at the end of each
round. A round is some hundred kills; after it everybody is killed, or, every second time, told to end and has to, and
everything the segment holds is compared with the journal and deleted. Nothing hangs: in each nursery one worker is not
killed before the end of its round, no verb may take longer than `SLOW_S`, and a round that overruns has the stacks of
all printed. A probe (`storm_probe`) measures how long it takes after a death until what the dead had in hand can be
used again.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
for _path in (str(HERE), str(HERE.parent)):  # as a script it is run from anywhere
    if _path not in sys.path:
        sys.path.insert(0, _path)

import inside  # noqa: E402 -- found by the path above
import proofs  # noqa: E402
import storm_journal  # noqa: E402
from harness import Overrun, Team  # noqa: E402
from storm_nursery import nursery  # noqa: E402
from storm_probe import Recovery, probe  # noqa: E402
from storm_worker import Plan  # noqa: E402

from shmstore import QueueEmptyError, ShmStore, StoreTimeoutError  # noqa: E402

ROUND_LIMIT_S = 60.0
SLOW_S = 15.0
NURSERIES = 2


@dataclass(slots=True)
class Report:
    """What a storm saw."""

    engine: str
    seed: int
    kills: int = 0
    amid: int = 0  # kills in the middle of a verb
    operations: int = 0  # answered
    verified: int = 0
    rounds: int = 0
    slowest_s: float = 0.0
    took_s: float = 0.0
    stormed_s: float = 0.0  # of it, until all were dead; the rest went into comparing
    used: int = 0  # bytes of the heap at the end
    recoveries: list[Recovery] = field(default_factory=list)
    untaken: int = 0  # kills whose lock the probe's verbs did not need
    unseen: int = 0  # workers that were gone before the probe had seen them
    wrong: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)  # of what is wrong

    def found(self, kind: str, lines: Iterable[str]) -> None:
        for line in lines:
            self.kinds[kind] += 1
            self.wrong.append(f"{kind}: {line}")

    def figures(self) -> dict[str, object]:
        """What the table of the run shows."""
        held = [recovery.took_ns / 1e6 for recovery in self.recoveries if recovery.held]
        every = [recovery.took_ns / 1e6 for recovery in self.recoveries]
        return {
            "kills": self.kills,
            "amid a verb": self.amid,
            "answered": self.operations,
            **{kind: self.kinds[kind] for kind in ("lost", "applied twice", "hung", "failed")},
            "verified": self.verified,
            "broken": self.kinds["verify"],
            "recoveries": len(every),
            "median ms": span(every, statistics.median),
            "max ms": span(every, max),
            "of a lock still held": len(held),
            "their median ms": span(held, statistics.median),
            "their max ms": span(held, max),
            "never seen alive": self.unseen,
            "lock not needed yet": self.untaken,
            "slowest verb ms": round(self.slowest_s * 1e3),
            "seconds": self.took_s,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        return f"storm, {self.engine}: " + ", ".join(proofs.shown(self.figures()))


def span(values: list[float], of: Callable[[list[float]], float]) -> str:
    return f"{of(values):.2f}" if values else "-"


class Storm:
    """One segment, its nurseries, and the oracles."""

    def __init__(self, team: Team, name: str, engine: str, seed: int, workers: int, pace_s: float) -> None:
        self.team = team
        self.report = Report(engine, seed)
        self.directory = Path(tempfile.mkdtemp(prefix="storm-"))
        self.journal = self.directory / "journal"
        self.stacks = self.directory / "stacks"
        self.stacks.touch()
        self.store = ShmStore(name, sync=engine, timeout=20, capacity=64 << 20)  # type: ignore[arg-type]
        plan = Plan(
            name,
            engine,
            str(self.journal),
            str(self.stacks),
            str(self.directory / "probe"),
            0,
            workers // NURSERIES,
            pace_s * NURSERIES,
            seed,
        )
        self.probe = team.start(probe, plan)
        assert self.probe.hear() == "up"
        self.nurseries = [team.start(nursery, plan._replace(index=index)) for index in range(NURSERIES)]
        for child in self.nurseries:
            assert child.hear() == "up"

    def round(self, kills: int, gently: bool) -> None:
        """Some kills, then both oracles."""
        self.journal.mkdir()
        for child in self.nurseries:
            child.say((kills // NURSERIES, gently))
        start = time.monotonic()
        end = start + ROUND_LIMIT_S
        deaths: dict[int, int] = {}
        for child in self.nurseries:
            while not child._conn.poll(0.2):  # meanwhile, and for as long as it takes
                if time.monotonic() > end:
                    self.overrun(f"a round did not end in {ROUND_LIMIT_S:g} s")
                self.verify("amid the kills")
            said = child.hear()
            deaths |= said["deaths"]
            self.report.found("failed", said["wrong"])
        self.report.kills += len(deaths)
        self.report.rounds += 1
        self.report.stormed_s += time.monotonic() - start
        self.probe.say("what have you measured?")
        measured = self.probe.hear()
        self.report.recoveries += measured["recoveries"]
        slow = [one for one in measured["recoveries"] if one.took_ns > SLOW_S * 1e9]
        self.report.found("hung", (f"a recovery took that long: {one}" for one in slow))
        self.report.untaken += measured["untaken"]
        self.report.unseen += measured["unseen"]
        self.verify("at the end of a round")
        self.compare(deaths)
        self.verify("when all is deleted")
        shutil.rmtree(self.journal)

    def verify(self, when: str) -> None:
        self.report.verified += 1
        self.report.found("verify", (f"{when}: {line}" for line in inside.verify(self.store)))

    def compare(self, deaths: dict[int, int]) -> None:
        """The journal with what the segment holds; which is empty afterwards."""
        ops, failures = storm_journal.read(self.journal, deaths)
        answered = [op for op in ops if op.result is not None]
        report = self.report
        report.operations += len(answered)
        report.amid += len({op.tag for op in ops if op.result is None})
        slowest = max(ops, key=lambda op: op.end - op.start if op.end < storm_journal.FOREVER else 0)
        report.slowest_s = max(report.slowest_s, (slowest.end - slowest.start) / 1e9)
        report.found("failed", failures)
        if slowest.end - slowest.start > SLOW_S * 1e9:
            report.found("hung", [f"{slowest.verb.decode()}({slowest.key.decode()}) took that long: {slowest}"])
        for line in storm_journal.check(ops, self.take_all()):
            report.found("applied twice" if re.search("twice|several winners", line) else "lost", [line])
        if self.store.num_keys() or self.store.list_keys():
            report.found("failed", [f"not empty when all is deleted: {self.store.list_keys()}"])
        report.used = self.store._attachment.info().used

    def take_all(self) -> storm_journal.Holdings:
        values: dict[bytes, bytes] = {}
        for key in self.store.list_keys():
            try:
                values[key.encode()] = self.store.get(key, 0)
            except StoreTimeoutError:
                self.report.found("lost", [f"{key} is listed and not there"])
            if not self.store.delete_key(key):
                self.report.found("lost", [f"{key} is listed and cannot be deleted"])
        queues: dict[bytes, list[bytes]] = {}
        for i in range(3):
            items = queues[f"q/{i}".encode()] = []
            due = self.store.queue_len(f"q/{i}")
            while True:
                try:
                    items.append(self.store.queue_pop(f"q/{i}", block=False))
                except QueueEmptyError:
                    break
            if len(items) != due:
                self.report.found("lost", [f"q/{i} is said to hold {due} items and holds {len(items)}"])
        return storm_journal.Holdings(values, {key: items for key, items in queues.items() if items})

    def overrun(self, why: str) -> None:
        """Stacks of the workers, which the team does not know, before those of the nurseries."""
        before = self.stacks.stat().st_size
        for child in self.nurseries:
            with open(f"/proc/{child.pid}/task/{child.pid}/children") as file:
                for pid in map(int, file.read().split()):
                    os.kill(pid, signal.SIGUSR1)
        end = time.monotonic() + 2
        while time.monotonic() < end:  # nobody says when the last one has written
            time.sleep(0.1)
        self.team.overrun(f"{why}\n{self.stacks.read_text()[before:]}")

    def close(self) -> None:
        try:
            for child in [*self.nurseries, self.probe]:
                child.say(None)
                child.result()
        finally:
            self.clean()

    def clean(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)


def storm(
    name: str,
    engine: str,
    kills: int,
    *,
    seed: int | None = None,
    workers: int = 16,
    pace_s: float = 0.004,
    kills_a_round: int = 250,
    most_s: float = float("inf"),
    progress: bool = False,
) -> Report:
    """At least that many kills, or rounds for that many seconds; ends early when something is wrong."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    start = time.monotonic()
    with Team(budget=60 + kills * 0.5) as team:
        one = Storm(team, name, engine, seed, workers, pace_s)
        try:
            while one.report.kills < kills and one.report.took_s < most_s and not one.report.wrong:
                one.round(min(kills_a_round, kills - one.report.kills + 1), gently=one.report.rounds % 2 == 1)
                one.report.took_s = time.monotonic() - start
                if progress:
                    print(one.report, flush=True)
        except BaseException:
            one.clean()
            raise
        one.close()
    return one.report


def main() -> int:
    """The command line; 0 when nothing was lost, applied twice or hung."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--sync", choices=["futex", "semaphore"], default="futex")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--pace-ms", type=float, default=4.0, help="of the killers, on average")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new round after that time")
    given = parser.parse_args()
    name = f"storm-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    what = f"crash: storm, {given.sync}"
    proofs.record("began", what)
    try:
        report = storm(
            name,
            given.sync,
            given.kills,
            seed=given.seed,
            workers=given.workers,
            pace_s=given.pace_ms / 1e3,
            most_s=given.seconds,
            progress=True,
        )
    except Overrun as error:
        print(error)
        return 1
    finally:
        Path(f"/dev/shm/shmstore.{name}").unlink(missing_ok=True)
    print(*report.wrong, sep="\n")
    proofs.record("ended", what, **report.figures())  # also of one that lost something
    return int(bool(report.wrong))


if __name__ == "__main__":
    sys.exit(main())
