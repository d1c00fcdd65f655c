"""Processes die or stop where it hurts; the others go on, and nothing in the segment is broken."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inside
import pytest
import workers
from harness import Team

from shmstore import HashStore, PeerDiedError, ShmStore, StoreTimeoutError
from shmstore._native import ffi, lib

HELD = ["stripe", "heap", "waiter", "peer"]


@pytest.fixture(params=["futex", "semaphore"])
def store(request: pytest.FixtureRequest, name: str) -> Iterator[ShmStore]:
    with ShmStore(name, sync=request.param, timeout=20) as store:
        yield store


def use_everything(store: ShmStore | HashStore) -> None:
    """Each verb once, on the key whose stripe was held and on others, on every part of the segment."""
    store.set("held", b"x" * 5000)
    assert store.get("held", 0) == b"x" * 5000
    assert store.compare_set("held", b"x" * 5000, b"5") == b"5"
    assert store.add("held", 1) == 6
    for i in range(300):  # every stripe
        store.set(f"all-{i}", b"y" * i)
    assert store.multi_get([f"all-{i}" for i in range(300)], 0) == [b"y" * i for i in range(300)]
    for i in range(300):
        assert store.delete_key(f"all-{i}") is True
    store.queue_push("held", b"item")
    assert store.queue_pop("held") == b"item"
    with pytest.raises(StoreTimeoutError):
        store.wait(["gone"], 0.02)


@pytest.mark.parametrize("what", HELD)
def test_a_killed_holder_is_taken_over(store: ShmStore, name: str, team: Team, what: str) -> None:
    store.set("held", b"before")
    store.set("other", b"kept")
    team.start(workers.hold_and_die, name, what).kill_when("holding")
    assert store.get("held", 5) == b"before"
    use_everything(store)
    assert store.get("other") == b"kept"
    assert store.get("n") == b"1"
    assert inside.verify(store) == []
    child = team.start(workers.call, name, "add", ("n", 1))
    child.wait_ready()
    child.say(None)
    assert child.result() == 2
    assert inside.verify(store) == []


def test_list_keys_misses_nothing_behind_a_holder(store: ShmStore, name: str, team: Team) -> None:
    """Half of the keys are read when a live holder stands in the way, again and again until it is killed."""
    keys = {f"k{i}" for i in range(2000)}
    for key in keys:
        store.set(key, b"v")
    holder = team.start(workers.hold_and_die, name, "stripe")
    assert holder.hear() == "holding"
    killer = threading.Timer(0.3, holder.kill)
    killer.start()
    try:
        assert set(store.list_keys()) == keys | {"n"}
    finally:
        killer.join()
    assert inside.verify(store) == []


def test_queues_of_one_name_a_step_fill_nothing(name: str) -> None:
    with ShmStore(name, capacity=2 << 20, timeout=20) as store:
        for step in range(10_000):
            queue = f"a rather long name of a queue that is used at one step only/{step}"
            store.queue_push(queue, b"item")
            assert store.queue_pop(queue) == b"item"
            assert store.queue_len(queue) == 0
        assert inside.verify(store) == []


@pytest.mark.parametrize("what", HELD)
def test_everybody_goes_on_after_a_killed_holder(store: ShmStore, name: str, team: Team, what: str) -> None:
    """Workers are in the middle of it when the holder dies."""
    holder = team.start(workers.hold_and_die, name, what)
    assert holder.hear() == "holding"
    rest = [team.start(workers.add_many, name, 500) for _ in range(3)]
    for child in rest:
        child.wait_ready()
    for child in rest:
        child.say(None)
    holder.kill()
    values = sorted(v for child in rest for v in child.result())
    assert values == list(range(2, 1502))
    assert inside.verify(store) == []


def test_many_holders_die_in_a_row(store: ShmStore, name: str, team: Team) -> None:
    for what in HELD * 2:
        team.start(workers.hold_and_die, name, what).kill_when("holding")
    use_everything(store)
    assert store.get("n") == b"8"
    assert inside.verify(store) == []


def test_threads_meet_a_killed_holder_at_once(store: ShmStore, name: str, team: Team) -> None:
    from shmstore.testing.contract import in_threads

    team.start(workers.hold_and_die, name, "stripe").kill_when("holding")
    answers = in_threads(8, lambda i: [store.add("held", 1) for _ in range(50)])
    assert sorted(v for values in answers for v in values) == list(range(1, 401))
    assert inside.verify(store) == []


@pytest.mark.parametrize("what", ["stripe", "heap"])
def test_a_stopped_holder_is_alive_and_named(store: ShmStore, name: str, team: Team, what: str) -> None:
    store.set("held", b"before")
    holder = team.start(workers.hold_and_die, name, what)
    assert holder.hear() == "holding"
    holder.signal(signal.SIGSTOP)
    store.set_timeout(0.3)
    start = time.monotonic()
    with pytest.raises(StoreTimeoutError) as caught:
        for i in range(1000):  # the heap is needed at the latest when no block is at hand
            store.set("held" if what == "stripe" else f"new-{i}", b"x" * 20000)
    assert str(holder.pid) in str(caught.value)
    assert time.monotonic() - start >= 0.3
    if what == "stripe":
        store.set_timeout(0)
        with pytest.raises(StoreTimeoutError):
            store.add("held", 1)
    holder.signal(signal.SIGCONT)
    holder.kill()
    store.set_timeout(20)
    assert store.get("held") == b"before"
    use_everything(store)
    assert inside.verify(store) == []


def test_killed_waiters_leave_no_trace(store: ShmStore, name: str, team: Team) -> None:
    for verb, args in (("get", ("key-x",)), ("queue_pop", ("key-x",)), ("barrier", ("key-b", 9))):
        child = team.start(workers.call, name, verb, args)
        child.wait_ready()
        child.say(None)
        inside.parked(store, args[0])
        child.kill()
    assert inside.waits(store) == []
    store.queue_push("key-x", b"for the living")
    assert store.queue_pop("key-x") == b"for the living"
    assert inside.verify(store) == []


def test_a_dead_popper_ahead_does_not_block_the_next(store: ShmStore, name: str, team: Team) -> None:
    children = []
    for n in (1, 2):
        child = team.start(workers.call, name, "queue_pop", ("queue",))
        child.wait_ready()
        child.say(None)
        inside.parked(store, "queue", n)
        children.append(child)
    children[0].kill()
    store.queue_push("queue", b"item")
    assert children[1].result() == b"item"
    assert store.queue_len("queue") == 0
    assert inside.verify(store) == []


@pytest.mark.parametrize("what", HELD)
def test_a_hash_store_survives_its_forked_child(team: Team, what: str) -> None:
    with HashStore(timeout=20) as store:
        store.set("held", b"before")

        def child(me: Any) -> None:
            store.add("n", 1)
            inside.hold(store, what)
            me.say("holding")
            signal.pause()

        team.start(child, how="fork").kill_when("holding")
        assert store.get("held", 0) == b"before"
        use_everything(store)
        assert store.get("n", 0) == b"1"
        assert inside.verify(store) == []


@pytest.mark.parametrize("verb", ["get", "wait", "multi_get"])
def test_watch_peers_ends_a_wait_when_a_rank_dies(name: str, team: Team, verb: str) -> None:
    with ShmStore(name, rank=0, watch_peers=True, timeout=30) as store:
        child = team.start(workers.stay, name, {"rank": 1})
        child.hear()
        from shmstore.testing.contract import blocked

        call = blocked(store, verb, "never")
        inside.parked(store, "never")
        child.kill()
        with pytest.raises(PeerDiedError) as caught:
            call.result()
        assert caught.value.rank == 1
        assert caught.value.pid == child.pid
        assert str(child.pid) in str(caught.value)


def test_watch_peers_does_not_mind_who_left(name: str, team: Team) -> None:
    with ShmStore(name, rank=0, watch_peers=True, timeout=0.5) as store:
        child = team.start(workers.stay, name, {"rank": 1})
        child.hear()
        child.say("close")
        child.result()
        with pytest.raises(StoreTimeoutError):
            store.get("never")


# -- every invariant can be seen broken -----------------------------------------------------------------------------


def test_verify_names_every_broken_invariant(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    count = lib.sst_invariants()
    assert count >= 5
    names = [ffi.string(lib.sst_invariant_name(i)).decode() for i in range(count)]
    assert len(set(names)) == count
    for index, broken in enumerate(names):
        with ShmStore(f"{name}-{index}", timeout=5) as store:
            fill(store)
            assert inside.verify(store) == []
            code = lib.sst_test_break(inside.seg(store), index)
            assert code == 0, f"{broken}: sst_test_break said {code}"
            report = inside.verify(store)
        Path(f"/dev/shm/shmstore.{name}-{index}").unlink(missing_ok=True)  # with a broken header nobody can
        assert any(line.startswith(broken) for line in report), f"{broken} was broken, report is {report}"
    with capsys.disabled():
        print(f"\n{count} invariants, each broken and named: {', '.join(names)}")


def fill(store: ShmStore) -> None:
    """Something of everything, so that there is something to break."""
    for i in range(600):
        store.set(f"key-{i}", b"v" * (i * 7 % 3000))
    for i in range(0, 600, 4):
        store.delete_key(f"key-{i}")
    for i in range(20):
        store.add(f"n-{i}", i)
        for j in range(3):
            store.queue_push(f"queue-{i}", b"item" * j)
    store.set("big", b"b" * 100000)
    store.append("key-1", b"more")
    seg, forever, barrier = inside.seg(store), (1 << 64) - 1, ffi.new("sst_bar *")
    code = lib.sst_bar_open(seg, lib.SST_USER, b"barrier", len(b"barrier"), 3, 0, 0, forever, barrier)
    assert code == lib.SST_OK, code


# -- everybody dies ---------------------------------------------------------------------------------------------------


def test_the_killed_leave_no_file(name: str, team: Team) -> None:
    children = [team.start(workers.storm, name) for _ in range(2)]
    for child in children:
        child.wait_ready()
    for child in children:
        child.say(None)
    for child in children:
        child.hear()
        child.kill()
    with ShmStore(name) as store:
        assert store.num_keys() == 0
    assert not Path(f"/dev/shm/shmstore.{name}").exists()
