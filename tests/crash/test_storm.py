"""The storm in short; its oracle and its probe shown each of the things that they are there to find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import inside
import pytest
from harness import Team
from storm import storm
from storm_journal import FOREVER, Holdings, Op, check, payload, read, tag_of
from storm_probe import Locks, in_hand

from shmstore import ShmStore
from shmstore._native import ffi, lib

KILLS = 300


@pytest.mark.parametrize("engine", ["futex", "semaphore"])
def test_storm(name: str, engine: str, proof: Callable[..., None]) -> None:
    report = storm(name, engine, KILLS, kills_a_round=KILLS // 2)
    proof(f"crash: storm, {engine}", **report.figures())  # also of one that lost something
    assert not report.wrong, "\n".join([str(report), *report.wrong[:40]])
    assert report.kills >= KILLS
    assert report.amid > 0
    assert report.operations > KILLS
    assert report.rounds >= 2, "both ways to end a round"
    assert report.recoveries, "the probe has measured nothing"


def locks_of(me: Any, name: str, what: str) -> None:
    """Holds it, says which slot it is, and is killed."""
    store = ShmStore(name)
    slot, gen = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    assert lib.sst_self(inside.seg(store), slot, gen) == lib.SST_OK
    if what:
        inside.hold(store, what)
    me.say((slot[0], gen[0]))
    me.hear()


@pytest.mark.parametrize(("what", "held"), [("", 0), ("stripe", 1), ("heap", 2)])
def test_the_probe_sees_what_the_dead_held(name: str, team: Team, what: str, held: int) -> None:
    """Until a survivor has needed it. The heap is held within a stripe."""
    with ShmStore(name) as store:
        locks = Locks(name)
        child = team.start(locks_of, name, what)
        slot, gen = child.hear()
        child.kill()
        found = locks.of(slot, gen)
        assert len(found) == held, "where the lock words lie: storm_probe.py reads it from the head of layout.h"
        assert ("heap" in found) is (what == "heap")
        assert locks.of(slot, gen + 1) == locks.of(slot + 1, gen) == []
        store.set("held", b"mine")
        assert locks.of(slot, gen) == []
        locks.close()


def test_the_probe_reads_what_a_dead_worker_was_in(tmp_path: Path) -> None:
    path = tmp_path / "1"
    assert in_hand(path) == ("", [])
    path.write_bytes(b"B 1 100 add n/0 1\n")
    assert in_hand(path) == ("add", ["n/0"])
    path.write_bytes(b"B 1 100 add n/0 1\nD 1 110 1\n")
    assert in_hand(path) == ("", [])
    path.write_bytes(b"B 1 100 add n/0 1\nD 1 110 1\nB 2 120 mset s/1,s/2 -\nD 2 1")
    assert in_hand(path) == ("mset", ["s/1", "s/2"])


# -- the oracle finds what it is there for ----------------------------------------------------------------------------


class History:
    """Operations one after the other, each 10 ns long, of workers of one's choice."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.clock = 100

    def did(self, verb: str, key: str, arg: object = "-", result: str | None = "1", worker: int = 1) -> bytes:
        """The operation's tag. result None: its worker was killed in the middle."""
        self.clock += 20
        tag = b"%d:%d" % (worker, len(self.ops))
        told = None if result is None else tag if result == "own tag" else result.encode()
        self.ops.append(Op(tag, self.clock, self.clock + 10, verb.encode(), key.encode(), str(arg).encode(), told))
        return tag

    def says(self, values: dict[str, bytes], queues: dict[str, list[bytes]] | None = None) -> str:
        held = {key.encode(): items for key, items in (queues or {}).items()}
        return "\n".join(check(self.ops, Holdings({key.encode(): value for key, value in values.items()}, held)))


def three_adds() -> History:
    history = History()
    history.did("add", "n/0", 1, "1")
    history.did("add", "n/0", 1, None)
    history.did("add", "n/0", 1, "3")
    return history


@pytest.mark.parametrize(
    ("total", "finds"), [(b"3", ""), (b"2", "answered and lost"), (b"4", "applied twice")], ids=lambda v: str(v)
)
def test_counts(total: bytes, finds: str) -> None:
    assert finds in three_adds().says({"n/0": total})
    assert bool(finds) is bool(three_adds().says({"n/0": total}))


def test_a_count_answered_twice_or_backwards() -> None:
    history = three_adds()
    history.did("add", "n/0", 1, "3")
    assert "answered twice" in history.says({"n/0": b"4"})
    history = three_adds()
    history.did("add", "n/0", 1, "2")
    assert "was taken after" in history.says({"n/0": b"3"})


@pytest.mark.parametrize(("total", "fine"), [(10, True), (15, True), (17, True), (22, True), (5, False), (12, False)])
def test_sums(total: int, fine: bool) -> None:
    history = History()
    history.did("add", "a/0", 10, "10")
    history.did("add", "a/0", 5, None)
    history.did("add", "a/0", 7, None)
    assert (history.says({"a/0": b"%d" % total}) == "") is fine


def test_registers() -> None:
    history = History()
    first = history.did("set", "s/0")
    second = history.did("set", "s/0")
    killed = history.did("set", "s/0", result=None)
    assert history.says({"s/0": payload(second, 500)}) == ""
    assert history.says({"s/0": payload(killed, 0)}) == ""
    assert "had been replaced" in history.says({"s/0": payload(first, 500)})
    assert "torn" in history.says({"s/0": payload(second, 500)[:-7] + b"-------"})
    assert "it is not there" in history.says({})
    assert "nobody had written" in history.says({"s/0": payload(b"7:7", 0)})
    history.did("get", "s/0", result=first.decode())
    assert "read by" in history.says({"s/0": payload(second, 500)})


def test_registers_that_are_deleted() -> None:
    history = History()
    assert history.says({}) == ""
    tag = history.did("set", "s/0")
    gone = History()
    gone.ops, gone.clock = [*history.ops], history.clock
    gone.did("del", "s/0", result="1")
    assert gone.says({}) == ""
    assert "had been replaced" in gone.says({"s/0": payload(tag, 9)})
    history.did("del", "s/0", result=None)
    assert history.says({}) == ""
    assert history.says({"s/0": payload(tag, 9)}) == ""


def test_two_at_once_may_come_in_either_order() -> None:
    history = History()
    one, other = history.did("set", "s/0"), history.did("set", "s/0")
    history.ops[1] = history.ops[1]._replace(start=history.ops[0].start + 5)
    assert history.says({"s/0": payload(one, 0)}) == history.says({"s/0": payload(other, 0)}) == ""


def test_appends() -> None:
    history = History()
    a, b, killed = history.did("app", "log/0"), history.did("app", "log/0"), history.did("app", "log/0", result=None)
    whole = b"<%s><%s...>" % (a, b)
    assert history.says({"log/0": whole}) == ""
    assert history.says({"log/0": whole + b"<%s>" % killed}) == ""
    assert "lost" in history.says({"log/0": b"<%s>" % a})
    assert "twice" in history.says({"log/0": whole + b"<%s>" % a})
    assert "twice" in history.says({"log/0": whole + b"<%s><%s>" % (killed, killed)})
    assert "whole pieces" in history.says({"log/0": whole + b"<9"})
    assert "nobody" in history.says({"log/0": whole + b"<9:9>"})
    assert "was taken after" in history.says({"log/0": b"<%s><%s>" % (b, a)})


def test_queues() -> None:
    def pushed() -> tuple[History, bytes, bytes]:
        history = History()
        return history, history.did("push", "q/0"), history.did("push", "q/0")

    history, a, b = pushed()
    assert history.says({}, {"q/0": [a + b"|", b + b"|"]}) == ""
    assert "lost" in history.says({}, {"q/0": [a + b"|"]})
    assert "after a later item" in history.says({}, {"q/0": [b + b"|", a + b"|"]})
    assert "of nobody" in history.says({}, {"q/0": [a + b"|", b + b"|", b"7:7|"]})
    history.did("pop", "q/0", result=a.decode(), worker=2)
    assert history.says({}, {"q/0": [b + b"|"]}) == ""
    assert "delivered twice" in history.says({}, {"q/0": [a + b"|", b + b"|"]})
    history.did("pop", "q/0", result=None, worker=3)
    assert history.says({}) == history.says({}, {"q/0": [b + b"|"]}) == ""


def test_claims_and_swaps() -> None:
    history = History()
    winner = history.did("cas", "claim/0", result="own tag")
    assert history.says({"claim/0": winner}) == ""
    assert "won, and it holds" in history.says({})
    history.did("cas", "claim/0", result="own tag")
    assert "several winners" in history.says({"claim/0": winner})
    history = History()
    history.did("cas", "cell/0", 1, "1")
    history.did("cas", "cell/0", 2, None)
    assert history.says({"cell/0": b"1 x"}) == history.says({"cell/0": b"2 x"}) == ""
    assert "nobody put there" in history.says({"cell/0": b"3 x"})
    assert "lost" in history.says({})
    history.did("cas", "cell/0", 1, "1")
    assert "answered twice" in history.says({"cell/0": b"1 x"})


def test_barriers_and_signals() -> None:
    history = History()
    history.did("bar", "b/0", result="late")
    history.did("bar", "b/0", result=None)
    assert history.says({"b/0": b"1"}) == history.says({"b/0": b"2"}) == ""
    assert "arrivals" in history.says({"b/0": b"3"})
    assert "arrivals" in history.says({})
    history = History()
    history.did("wait", "sig/0", result="late")
    tag = history.did("set", "sig/0")
    history.did("wait", "sig/0", result="there")
    assert history.says({"sig/0": tag}) == ""
    assert "not there" in history.says({})
    history.did("wait", "sig/0", result="late")
    assert "in vain" in history.says({"sig/0": tag})


def test_what_nobody_made() -> None:
    assert "nobody made it" in History().says({"stranger": b""})


@pytest.mark.parametrize(
    "cut", [len, lambda text: len(text) - 1, lambda text: text.rindex(b"D") + 3], ids=["whole", "a byte", "a record"]
)
def test_a_journal_cut_short(tmp_path: Path, cut: Callable[[bytes], int]) -> None:
    text = b"B 1 100 add n/0 1\nD 1 110 1\nB 2 120 mset s/1,s/2 -\nD 2 130 1\n"
    (tmp_path / "7").write_bytes(text[: cut(text)])
    ops, failures = read(tmp_path, {7: 500})
    assert not failures
    whole = cut(text) == len(text)
    assert [(op.key, op.end, op.result) for op in ops] == [
        (b"n/0", 110, b"1"),
        *((key, 130 if whole else 500, b"1" if whole else None) for key in (b"s/1", b"s/2")),
    ]
    assert read(tmp_path, {})[0][-1].end == (130 if whole else FOREVER)


def test_payloads() -> None:
    for size in (0, 3, 4, 5, 1000):
        value = payload(b"1:2", size)
        assert len(value) == max(size, 4)
        assert tag_of(value) == b"1:2"
        assert tag_of(value[:-1] + b"?") == tag_of(value + b"?") == b"torn"
    assert tag_of(b"") == b"torn"
