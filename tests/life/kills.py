"""Kills a process at each step of what it does with a segment by its name, and looks at what the others have of it.

The small process that forks the victims is attached to nothing, and so is the next one to open the name after each
death. What is said between the processes is the only synchronisation: a victim says where it is before it stops, and
another that opens the name meanwhile says when it is through, or refused the lock file. So every run meets the same
orders; only where the other was refused, who goes on first once the lock file is free is left to the scheduler.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from harness import Child, Team
from kill_scenarios import OPEN, SCENARIOS, SHM, Scenario, opened
from places import at_place, lines_of, opcodes_of
from proofs import LONG

from shmstore import ShmStore, _holds, _lifelock, _names, segment, shm

MODULES = (shm, segment, _holds, _names, _lifelock)
PLACES = opcodes_of(*MODULES) if LONG else lines_of(*MODULES)
MODES = ("killed", "amid", "overtaken")
BUDGET_S = 3000.0 if LONG else 80.0
AT_ONCE_S = 5.0  # every timeout is longer: 30 s of who opens, 10 s of who leaves
HUNG_S = 20


class Shown(NamedTuple):
    """Of a sweep: how many were killed and how many overtaken; of the others, how many of those who lived or came
    afterwards were found to go on, each after each victim, and how long the slowest took; where the victims were."""

    killed: int
    overtaken: int
    went_on: int
    slowest_s: float
    passed: set[str]


# -- processes --------------------------------------------------------------------------------------------------------


def companion(me: Any) -> None:
    """Opens a name, calls verbs and closes as it is told; says so when it is refused the lock file meanwhile."""
    store: ShmStore | None = None
    real, refusals = _lifelock.lock_descriptor, 0

    def lock_descriptor(fd: int, *, blocking: bool) -> bool:
        nonlocal refusals
        got = real(fd, blocking=blocking)
        refusals += not got
        if refusals == 1 and not got:
            me.say("refused")
        return got

    _lifelock.lock_descriptor = lock_descriptor
    while True:
        verb, args, kwargs = me.hear()
        if verb == "open":
            refusals = 0
            store = ShmStore(*args, **kwargs)
            me.say("open")
        else:
            assert store is not None
            me.say(getattr(store, verb)(*args, **kwargs))


def tell(child: Child, verb: str, *args: Any, **kwargs: Any) -> Any:
    """Has a companion do it; what it answers."""
    child.say((verb, args, kwargs))
    return child.hear()


class Victim:
    """A process that does the scenario's work and is stopped at its n-th step; gone when this is made.

    Attributes:
        place: where it was stopped; "" when it was not. killed: there, or it came through.
        other: the process that opened the name meanwhile; None when none did.
    """

    def __init__(self, sweep: Sweep, n: int) -> None:
        self.sweep, self.place, self.killed, self.other = sweep, "", False, None
        says, told = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._work(n, says[1], told[0])
        os.close(says[1])
        os.close(told[0])
        try:
            self._watch(says[0], told[1])
        finally:
            os.close(says[0])
            os.close(told[1])

    def _watch(self, says: int, told: int) -> None:
        heard = os.read(says, 1000).decode()
        kind, _, place = heard.partition(" ")
        self.sweep.place = place or f"no step left: {heard}"
        if kind == "at":
            self.place, self.killed = place, self.sweep.mode != "overtaken"
            if self.sweep.mode != "killed":
                os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                self._overtake()
            if self.killed:
                assert self._ended() == -signal.SIGKILL, "the victim lives on"
                return
            heard = os.read(says, 1000).decode()
        if heard == "open" and self.other:  # both are: in the same segment
            assert tell(self.other, "get", "victim", 0) == b"here", "the victim is in another segment"
        if heard == "open":
            os.write(told, b".")
        code = self._ended()
        assert code == 0 and heard, f"the victim said {heard!r} and ended with {code}"

    def _overtake(self) -> None:
        """Another process opens the name while this one is stopped; then it is killed, or goes on."""
        other, go = self.sweep.other, signal.SIGKILL if self.killed else signal.SIGCONT
        other.say(("open", (self.sweep.name,), OPEN))
        heard = self.sweep.at_once("another's open", other.hear)
        os.kill(self.pid, go)
        if heard == "refused":
            heard = self.sweep.at_once("another's open, after the victim's end", other.hear)
        assert heard == "open"
        self.other = other

    def _ended(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _work(self, n: int, says: int, told: int) -> NoReturn:
        code = 1
        try:
            signal.alarm(HUNG_S)
            scenario, name = self.sweep.scenario, self.sweep.name
            prepared = scenario.prepare(name)
            made: list[object] = []
            at_place(
                n, PLACES, lambda: made.append(scenario.work(name, prepared)), lambda frame: self._stop(frame, says)
            )
            store = made[0]
            if isinstance(store, ShmStore):
                store.set("victim", b"here")
                os.write(says, b"open")
                os.read(told, 1)
                store.close()
            else:
                os.write(says, b"done")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _stop(self, frame: FrameType, says: int) -> None:
        code = frame.f_code
        os.write(says, f"at {Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}".encode())
        os.kill(os.getpid(), signal.SIGKILL if self.sweep.mode == "killed" else signal.SIGSTOP)


@dataclass
class Sweep:
    """One scenario in one mode: a victim for each step, in the process that forks them.

    Attributes:
        place: where the victim is, for an error. slowest_s: of the others' opens and closes, the longest.
        went_on: of those who lived or came afterwards, how many did what they should.
    """

    title: str
    mode: str
    name: str
    holder: Child | None
    other: Child
    place: str = ""
    slowest_s: float = 0.0
    went_on: int = 0

    @property
    def scenario(self) -> Scenario:
        return SCENARIOS[self.title]

    @property
    def path(self) -> Path:
        return SHM / f"shmstore.{self.name}"

    def inode(self) -> int:
        """Of what stands under the name; 0 of nothing."""
        try:
            return self.path.stat().st_ino
        except FileNotFoundError:
            return 0

    def run(self, first: int, stride: int) -> Shown:
        """Stops a victim at each stride-th step from the first on, until one comes through."""
        n, killed, overtaken = first, 0, 0
        passed: set[str] = set()
        while True:
            try:
                self.place = "before there is a victim"
                self.before()
                victim = Victim(self, n)
                self.after(victim)
            except BaseException as error:
                raise AssertionError(f"{self.title}, {self.mode}, step {n}, {self.place}: {error!r}") from error
            if not victim.place:
                return Shown(killed, overtaken, self.went_on, self.slowest_s, passed)
            if self.mode == "overtaken":
                overtaken += 1
            else:
                killed += 1
            passed.add(victim.place.rpartition(" ")[2])
            n += stride

    def at_once(self, what: str, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        made = work()
        took = time.monotonic() - start
        self.slowest_s = max(self.slowest_s, took)
        assert took < AT_ONCE_S, f"{what} took {took:.1f} s"
        return made

    def before(self) -> None:
        if self.holder:
            tell(self.holder, "open", self.name, **OPEN, **(self.scenario.holder or {}))
            tell(self.holder, "set", "old", b"content")
        self.scenario.before(self.name)

    def after(self, victim: Victim) -> None:
        """All that must hold when the victim was killed, or came through."""
        living = [child for child in (self.holder, victim.other) if child is not None]
        inode = self.inode()
        assert inode or not living, "the name was taken from a process that lives"
        whole = not any("world_size" in how for how in self.scenario.next)
        if not living and not victim.killed and self.scenario.old is False and whole:
            assert not inode, "the victim came through, was the last, and left the name"
        stores = [self.at_once("the next open", lambda how=how: opened(**how)(self.name)) for how in self.scenario.next]
        store = stores[0]
        old = None if self.scenario.closes and victim.other else self.scenario.old
        assert old is None or store.check(["old"]) is old, f"what was there before {'is not' if old else 'is'} there"
        self.check_people(store, victim, living)
        for child in living:
            store.set("to", str(child.pid))
            assert tell(child, "get", "to", 0) == b"%d" % child.pid, f"pid {child.pid} is in another segment"
            tell(child, "set", "from", str(child.pid))
            assert store.get("from", 0) == b"%d" % child.pid, f"pid {child.pid} is in another segment"
        assert store.add("n", 1) == 1
        assert store.verify() == []
        for store in stores:
            self.at_once("a close", store.close)
            self.went_on += 1
        for child in living:
            assert self.inode() == inode, "the name was taken from a process that lives"
            assert not (old and child is self.holder) or tell(child, "get", "old", 0) == b"content"
            self.at_once("a close", lambda child=child: tell(child, "close"))
            self.went_on += 1
        if self.scenario.persist:
            self.path.unlink()
        assert not [entry for entry in os.listdir(SHM) if self.name in entry], "a file is left"
        locks = {_lifelock.LockFile(os.geteuid()).path, _lifelock.LockFile(os.geteuid(), os.getegid()).path}
        assert set(_lifelock.SHM.iterdir()) <= locks, "a temporary file is left"

    def check_people(self, store: ShmStore, victim: Victim, living: list[Child]) -> None:
        people = store.peers()
        live = [peer for peer in people if peer.state == "live"]
        assert {peer.pid for peer in live} == {os.getpid(), *(child.pid for child in living)}, people
        ranks = {how["rank"]: os.getpid() for how in self.scenario.next}
        if self.holder and self.scenario.holder:
            ranks[self.scenario.holder["rank"]] = self.holder.pid
        assert {peer.rank: peer.pid for peer in live if peer.rank is not None} == ranks, people
        assert victim.killed or ("dead", victim.pid) not in {(peer.state, peer.pid) for peer in people}, people


def sweep(me: Any, title: str, modes: list[str], name: str, first: int, stride: int) -> list[Shown]:
    """One scenario, in a process of its own; with lock files of its own, so that nobody else's steps are waited for."""
    gc.collect()
    gc.freeze()
    faulthandler.register(signal.SIGALRM, chain=True)  # a victim that hangs prints its stacks, and dies of its alarm
    with tempfile.TemporaryDirectory() as locks, Team(BUDGET_S - 10) as team:
        _lifelock.SHM = Path(locks)  # type: ignore[misc]
        other = team.start(companion, how="fork")
        holder = team.start(companion, how="fork") if SCENARIOS[title].holder is not None else None
        try:
            return [Sweep(title, mode, f"{name}-{first}", holder, other).run(first, stride) for mode in modes]
        finally:
            (SHM / f"shmstore.{name}-{first}").unlink(missing_ok=True)  # of a scenario that failed
