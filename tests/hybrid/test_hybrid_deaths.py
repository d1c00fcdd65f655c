"""Ranks that are killed at each step of a meeting, on either node: nobody hangs, nobody passes alone, all learn who.

Each rank is a process that does what the test says: "wait" at the barrier, "reset" it. Where it is to die, it stands
still at that step of the protocol (`STEPS`) and says so.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Child, Me, Team

from shmstore import (
    Barrier,
    BrokenBarrierError,
    HashStore,
    HybridStore,
    PeerDiedError,
    ShmStore,
    StoreConnectionError,
    TCPStore,
    TCPStoreServer,
)
from shmstore import _barrier_hybrid as hybrid
from shmstore import _hybrid_desk as desk
from shmstore import _hybrid_world as world
from shmstore.tcp import connection

PATIENCE_S = 60.0
SIZE = 2
RANKS = 4

STEPS = {
    "leader before its first look": (world.WireWorld, "meet", False),
    "leader, the server having decided for it": (world.WireWorld, "meet", True),
    "leader before it decides": (world.WireWorld, "decide", False),
    "leader after it has decided": (world.WireWorld, "decide", True),
    "leader before the bell": (desk.Desk, "ring", False),
    "leader after the bell": (desk.Desk, "ring", True),
}
LAST_STEPS = {
    "last before it announces": (world.WireWorld, "tell", False),
    "last after it has announced": (world.WireWorld, "tell", True),
}
ABORT_STEPS = {"aborter before it wakes": (hybrid.HybridBarrier, "_ring", False)}


def stand_still(me: Me, step: str) -> None:
    """From now on this process stops at that step."""
    owner, name, after = {**STEPS, **LAST_STEPS, **ABORT_STEPS}[step]
    whole = getattr(owner, name)
    if name == "decide":
        connection.HELD_MAX = 0  # type: ignore[misc]  # as at a server that holds nothing

    def stop(*args: Any, **more: Any) -> Any:
        result = whole(*args, **more) if after else None
        me.say(step)
        me.hear()
        return result

    setattr(owner, name, stop)


def open_store(name: str, port: int, rank: int, ranks: int, size: int) -> HybridStore:
    node, local = divmod(rank, size)
    return HybridStore(
        ShmStore(f"{name}.{node}", rank=local, world_size=size, timeout=PATIENCE_S),
        TCPStore("127.0.0.1", port, timeout=PATIENCE_S),
        node_rank=node,
        num_nodes=ranks // size,
        local_rank=local,
        local_world_size=size,
    )


def party(me: Me, name: str, port: int, rank: int, ranks: int, size: int) -> None:
    with open_store(name, port, rank, ranks, size) as store:
        barrier = Barrier(store, "b", ranks, rank)
        me.say("there")
        while (what := me.hear()) != "end":
            if what == "reset":
                barrier.reset()
                me.say("whole")
                continue
            if what == "abort":
                barrier.abort()
                me.say("aborted")
                continue
            if what == "limit":
                store.set_timeout(1.5)
                me.say("limited")
                continue
            if what != "wait":
                stand_still(me, what)
                me.say("ready")
                continue
            start = time.monotonic()
            try:
                barrier.wait()
                outcome: tuple[Any, ...] = ("passed",)
            except PeerDiedError as error:
                outcome = ("died", error.rank, error.pid, str(error))
            except BrokenBarrierError as error:
                outcome = ("broken", str(error))
            except StoreConnectionError as error:
                outcome = ("lost", str(error))
            me.say((*outcome, time.monotonic() - start))


class Crew:
    """The ranks' processes, a barrier of them all, and one more handle to look on."""

    def __init__(self, team: Team, name: str, port: int) -> None:
        self.team, self.name, self.port = team, name, port
        self.ranks: dict[int, Child] = {}
        for rank in range(RANKS):
            self.hire(rank)
        for child in self.ranks.values():
            assert child.hear() == "there"

    def hire(self, rank: int) -> None:
        self.ranks[rank] = self.team.start(party, self.name, self.port, rank, RANKS, SIZE, how="fork")

    def tell(self, what: str, *ranks: int) -> None:
        for rank in ranks:
            self.ranks[rank].say(what)

    def say(self, what: str, *ranks: int) -> list[Any]:
        self.tell(what, *ranks)
        return [self.ranks[rank].hear() for rank in ranks]

    def kill(self, rank: int) -> int:
        self.ranks[rank].kill()
        return self.ranks.pop(rank).pid

    def heard(self, *ranks: int) -> list[Any]:
        return [self.ranks[rank].hear() for rank in ranks]

    def others(self) -> list[int]:
        return sorted(self.ranks)

    def all_learn(self, rank: int, pid: int) -> None:
        """The outcome of a wait of all that are left: they learn of that death."""
        for kind, who, process, text, elapsed in self.heard(*self.others()):
            assert (kind, who, process) == ("died", rank, pid), text
            assert f"rank {rank} (node {rank // SIZE}, pid {pid} on " in text
            assert elapsed < PATIENCE_S / 3

    def go_on(self, rank: int) -> None:
        """Another process takes the rank, all reset, and pass again."""
        others = self.others()
        self.hire(rank)
        assert self.heard(rank) == ["there"]
        assert set(self.say("reset", *others)) == {"whole"}
        for _ in range(2):
            self.tell("wait", *self.others())
            assert [outcome[0] for outcome in self.heard(*self.others())] == ["passed"] * RANKS

    def until_waiting(self, n: int) -> None:
        with open_look(self.name, self.port) as store:
            barrier = Barrier(store, "b", RANKS, 0)
            end = time.monotonic() + PATIENCE_S
            while barrier.n_waiting < n:
                assert time.monotonic() < end, "they never came"
                time.sleep(0.002)  # an arrival wakes nobody: it can only be looked for


def open_look(name: str, port: int) -> HybridStore:
    return HybridStore(
        ShmStore(f"{name}.0", create=False),
        TCPStore("127.0.0.1", port, timeout=PATIENCE_S),
        node_rank=0,
        num_nodes=RANKS // SIZE,
        local_rank=0,
        local_world_size=SIZE,
    )


@pytest.fixture
def server() -> Iterator[TCPStoreServer]:
    with HashStore() as keys, TCPStoreServer(keys, "127.0.0.1", 0) as made:
        yield made


@pytest.fixture
def crew(team: Team, name: str, server: TCPStoreServer) -> Iterator[Crew]:
    made = Crew(team, name, server.port)
    yield made
    for child in made.ranks.values():
        child.say("end")
    for child in made.ranks.values():
        child.result()


@pytest.mark.parametrize("dead", [0, 3])
def test_one_that_never_came(crew: Crew, dead: int) -> None:
    others = [rank for rank in range(RANKS) if rank != dead]
    crew.tell("wait", *others)
    crew.until_waiting(3)
    pid = crew.kill(dead)
    crew.all_learn(dead, pid)
    crew.go_on(dead)


@pytest.mark.parametrize("dead", [1, 2])
def test_one_that_died_before_the_others_came(crew: Crew, dead: int) -> None:
    pid = crew.kill(dead)
    crew.tell("wait", *crew.others())
    crew.all_learn(dead, pid)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dead", [0, 2])
def test_a_leader(crew: Crew, dead: int, step: str) -> None:
    """The first of its node leads. It has arrived: the others pass with it, and miss it at the next."""
    assert crew.say(step, dead) == ["ready"]
    crew.tell("wait", dead)
    if step == "leader before its first look":
        assert crew.heard(dead) == [step]
    else:
        crew.until_waiting(1)
    others = [rank for rank in range(RANKS) if rank != dead]
    crew.tell("wait", *others)
    if step != "leader before its first look":
        assert crew.heard(dead) == [step]
    pid = crew.kill(dead)
    assert [outcome[0] for outcome in crew.heard(*others)] == ["passed"] * 3
    crew.tell("wait", *others)
    crew.all_learn(dead, pid)
    crew.go_on(dead)


@pytest.mark.parametrize("what", ["all come", "one aborts"])
def test_a_leader_that_is_stopped_holds_nobody_up(crew: Crew, what: str) -> None:
    """It lives, so that nobody takes its place; the other rank of its node learns what came of the epoch."""
    crew.tell("wait", 2)
    crew.until_waiting(0)
    crew.ranks[2].signal(signal.SIGSTOP)
    crew.tell("wait", 3)
    if what == "one aborts":
        assert crew.say("abort", 0) == ["aborted"]
    crew.tell("wait", 0, 1)
    outcomes = crew.heard(0, 1, 3)
    assert {outcome[0] for outcome in outcomes} == {"passed" if what == "all come" else "broken"}
    assert outcomes[2][-1] < PATIENCE_S / 3
    crew.ranks[2].signal(signal.SIGCONT)
    assert crew.heard(2)[0][0] == outcomes[0][0]


def test_a_leader_that_waits_for_other_nodes(crew: Crew) -> None:
    crew.tell("wait", 2)
    crew.until_waiting(1)
    crew.tell("wait", 3)
    crew.until_waiting(2)
    pid = crew.kill(2)
    crew.tell("wait", 0, 1)
    assert [outcome[0] for outcome in crew.heard(0, 1, 3)] == ["passed"] * 3
    crew.tell("wait", 0, 1, 3)
    crew.all_learn(2, pid)


@pytest.mark.parametrize("step", LAST_STEPS)
def test_the_last_of_a_node(crew: Crew, step: str) -> None:
    dead = 3
    assert crew.say(step, dead) == ["ready"]
    crew.tell("wait", 2)
    crew.until_waiting(1)
    crew.tell("wait", dead)
    assert crew.heard(dead) == [step]
    crew.tell("wait", 0, 1)
    pid = crew.kill(dead)
    assert [outcome[0] for outcome in crew.heard(0, 1, 2)] == ["passed"] * 3
    crew.tell("wait", 0, 1, 2)
    crew.all_learn(dead, pid)
    crew.go_on(dead)


def test_one_that_breaks_and_dies_before_it_wakes_the_others(crew: Crew) -> None:
    assert crew.say("aborter before it wakes", 0) == ["ready"]
    crew.tell("wait", 1, 2, 3)
    crew.until_waiting(3)
    assert crew.say("abort", 0) == ["aborter before it wakes"]
    crew.kill(0)
    for kind, *_ in crew.heard(1, 2, 3):
        assert kind == "broken"


def test_a_whole_node(crew: Crew) -> None:
    """Nobody is left to tell: the others' time runs out, and the error names the node and its ranks."""
    assert crew.say("limit", 0, 1) == ["limited"] * 2
    crew.tell("wait", 3)
    crew.until_waiting(1)
    for rank in (2, 3):
        crew.kill(rank)
    crew.tell("wait", 0, 1)
    for kind, text, _ in crew.heard(0, 1):
        assert kind == "broken"
        assert "missing rank 2" in text
    for child in crew.ranks.values():
        child.say("end")
    assert [child.result() for child in crew.ranks.values()] == [None, None]
    crew.ranks.clear()
    ShmStore(f"{crew.name}.1").close()  # the last of a segment was killed: the next to come removes it


def test_an_abort_reaches_all(crew: Crew) -> None:
    for rank in range(RANKS):
        others = [one for one in range(RANKS) if one != rank]
        crew.tell("wait", *others)
        crew.until_waiting(3)
        assert crew.say("abort", rank) == ["aborted"]
        for kind, text, _ in crew.heard(*others):
            assert kind == "broken"
            assert f"rank {rank} called abort() (node {rank // SIZE})" in text
        assert set(crew.say("reset", *range(RANKS))) == {"whole"}


def test_a_lost_world(crew: Crew, server: TCPStoreServer) -> None:
    crew.tell("wait", 0, 1, 2)
    crew.until_waiting(3)
    server.close()
    for kind, text, elapsed in crew.heard(0, 1, 2):
        assert kind == "lost", text
        assert "TCPStore('127.0.0.1'" in text
        assert elapsed < PATIENCE_S / 3
    crew.tell("wait", 3)
    assert crew.heard(3)[0][0] == "lost"


def test_a_lost_world_may_be_lost_with_one_of_the_node(crew: Crew, server: TCPStoreServer) -> None:
    crew.tell("wait", 2, 3)
    crew.until_waiting(2)
    pid = crew.kill(3)
    server.close()
    kind, text, _ = crew.heard(2)[0]
    assert kind == "lost", text
    assert f"; of this node died: rank 3 (pid {pid})" in text
    assert text.count("of this node died") == 1
