"""A death among many who wait: everybody is told at once, and told who it was.

Sixty-four processes pass one barrier again and again. One is killed wherever it is; each of the others must get
PeerDiedError with its rank and pid. Then another process takes the rank, all reset, and go on. A few rounds here;
SHMSTORE_LONG=1 makes it 200.
"""

from __future__ import annotations

import os
import random
import select
import signal
import statistics
import time
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn

import proofs
import pytest
from harness import Me, Team

from shmstore import PeerDiedError, ShmStore
from shmstore.barrier import Barrier

PARTIES = 64
ROUNDS = 200 if proofs.LONG else 20
PATIENCE_S = 60
SEED = 5


def work(name: str, rank: int, line: Connection) -> NoReturn:
    """Passes the barrier until it ends; tells of each death, and goes on when it is told to."""
    with ShmStore(name, rank=rank, create=False, timeout=PATIENCE_S) as store:
        barrier = Barrier(store, "loop", PARTIES, rank)
        line.send("attached")
        told = False
        while line.recv() == "go":
            if told:  # else a reset would throw out who waits; this one does nothing where another was first
                barrier.reset()
                line.send("whole")
            passed = 0
            try:
                while True:
                    barrier.wait()
                    passed += 1
                    if passed == 1 + rank % 7:  # all are under way, and not all at the same step
                        store.add("under way", 1)
            except PeerDiedError as error:
                told = True
                line.send((error.rank, error.pid, time.monotonic_ns()))
    os._exit(0)


class Crew:
    """The processes, forked by one small interpreter; each has a line to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pids: dict[int, int] = {}
        self.lines: dict[int, Connection] = {}

    def hire(self, rank: int) -> None:
        ours, theirs = Pipe()
        pid = os.fork()
        if pid == 0:
            try:
                for line in [ours, *self.lines.values()]:
                    line.close()
                work(self.name, rank, theirs)
            finally:
                os._exit(1)
        theirs.close()
        self.pids[rank], self.lines[rank] = pid, ours
        assert self.hear(rank) == "attached"

    def hear(self, rank: int) -> Any:
        if not self.lines[rank].poll(PATIENCE_S):
            raise AssertionError(f"rank {rank} (pid {self.pids[rank]}) said nothing for {PATIENCE_S} s")
        return self.lines[rank].recv()

    def go(self, new: Collection[int]) -> None:
        """All go on; the new ones when the barrier is whole again, else they would be told of the death, too."""
        told = [rank for rank in self.lines if rank not in new]
        for rank in told:
            self.lines[rank].send("go")
        for rank in told:
            assert self.hear(rank) == "whole"
        for rank in new:
            self.lines[rank].send("go")

    def kill(self, rank: int) -> tuple[int, int]:
        """Its pid, and when its files were closed: a pidfd tells of the end of a process, which is later than that."""
        pid = self.pids.pop(rank)
        ended = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert select.select([ended], [], [], PATIENCE_S)[0], "it does not die"
        at = time.monotonic_ns()
        os.close(ended)
        os.waitpid(pid, 0)
        self.lines.pop(rank).close()
        return pid, at


def rounds(me: Me, name: str, count: int) -> list[tuple[int, float]]:
    """Of each death: how many were told of it, and the milliseconds to the last of them."""
    chance = random.Random(SEED)
    crew = Crew(name)
    shown: list[tuple[int, float]] = []
    with ShmStore(name, create=False, timeout=PATIENCE_S) as store:
        for rank in range(PARTIES):
            crew.hire(rank)
        new = list(crew.lines)
        for number in range(count):
            store.set("under way", "0")
            crew.go(new)
            until_under_way(store, crew)
            victim = chance.randrange(PARTIES)
            pid, at = crew.kill(victim)
            told = {rank: crew.hear(rank) for rank in crew.pids}
            wrong = {rank: said for rank, said in told.items() if said[:2] != (victim, pid)}
            assert not wrong, f"round {number}: rank {victim} (pid {pid}) died, and these were told otherwise: {wrong}"
            shown.append((len(told), (max(when for _, _, when in told.values()) - at) / 1e6))
            crew.hire(victim)
            new = [victim]
            me.say(number)
        store.set("under way", "0")
        crew.go(new)
        until_under_way(store, crew)
        assert store.verify() == []
    for pid in crew.pids.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return shown


def until_under_way(store: ShmStore, crew: Crew) -> None:
    """Each has passed the barrier in this round: by a look, as a counter wakes nobody who waits for a value."""
    end = time.monotonic() + PATIENCE_S
    while (count := int(store.get("under way"))) < PARTIES:
        if time.monotonic() > end:
            where = [(peer.rank, peer.state, peer.waiting_on) for peer in store.peers()]
            raise AssertionError(f"{count} of {PARTIES} came under way: {where}")
        time.sleep(0.001)


@pytest.mark.timeout(1800 if proofs.LONG else 240)
@pytest.mark.parametrize("engine", ["futex", "semaphore"])
def test_everybody_is_told_who_died(name: str, path: Any, engine: str, proof: Callable[..., None]) -> None:
    with ShmStore(name, sync=engine), Team(1700 if proofs.LONG else 220) as team:
        boss = team.start(rounds, name, ROUNDS)
        for number in range(ROUNDS):
            assert boss.hear() == number
        shown = boss.result()
    took_ms = [took for _, took in shown]
    proof(
        f"barrier: {PARTIES} processes in a loop, one killed",
        engine=engine,
        kills=len(took_ms),
        told=sum(told for told, _ in shown),
        median_ms=statistics.median(took_ms),
        max_ms=max(took_ms),
    )
