"""Verbs between processes: wakes, timeouts, pickles, what others see of a wait."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import inside
import pytest
import workers
from harness import Team

from shmstore import PrefixStore, ShmStore

pytestmark = pytest.mark.shows("process: waits and wakes, pickles, forks amid verbs")


@pytest.fixture(params=["futex", "semaphore"])
def store(request: pytest.FixtureRequest, name: str) -> Iterator[ShmStore]:
    with ShmStore(name, sync=request.param, timeout=30) as store:
        yield store
        assert inside.verify(store) == []


WAKES: dict[str, tuple[str, tuple[Any, ...], Any, Any]] = {
    "get by set": ("get", ("key-x",), lambda s: s.set("key-x", b"v"), b"v"),
    "get by add": ("get", ("key-x",), lambda s: s.add("key-x", 3), b"3"),
    "get by append": ("get", ("key-x",), lambda s: s.append("key-x", b"a"), b"a"),
    "get by swap": ("get", ("key-x",), lambda s: s.compare_set("key-x", b"", b"c"), b"c"),
    "get by multi_set": ("get", ("key-x",), lambda s: s.multi_set(["o", "key-x"], [b"", b"m"]), b"m"),
    "wait by set": ("wait", (["key-x"],), lambda s: s.set("key-x", b""), None),
    "wait by push": ("wait", (["key-x"],), lambda s: s.queue_push("key-x", b""), None),
    "multi_get": ("multi_get", (["key-x"],), lambda s: s.set("key-x", b"v"), [b"v"]),
    "pop": ("queue_pop", ("key-x",), lambda s: s.queue_push("key-x", b"item"), b"item"),
    "barrier": ("barrier", ("key-x", 2), lambda s: s.barrier("key-x", 2, 20), None),
}


@pytest.mark.parametrize("what", list(WAKES))
def test_wakes(store: ShmStore, name: str, team: Team, what: str) -> None:
    verb, args, release, expected = WAKES[what]
    child = team.start(workers.call, name, verb, args)
    team.go()
    inside.parked(store, "key-x")
    release(store)
    assert child.result() == expected


def test_one_set_wakes_every_process(store: ShmStore, name: str, team: Team) -> None:
    for _ in range(6):
        team.start(workers.call, name, "get", ("key-x",))
    team.go()
    inside.parked(store, "key-x", 6)
    store.set("key-x", b"all")
    assert team.results() == [b"all"] * 6


def test_poppers_of_processes_are_served_in_order(store: ShmStore, name: str, team: Team) -> None:
    children = []
    for n in range(1, 4):
        child = team.start(workers.call, name, "queue_pop", ("queue",))
        child.wait_ready()
        child.say(None)
        inside.parked(store, "queue", n)
        children.append(child)
    for child, item in zip(children, (b"0", b"1", b"2"), strict=True):
        store.queue_push("queue", item)
        assert child.result() == item


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("get", ("gone",)),
        ("wait", (["gone"],)),
        ("multi_get", (["gone"],)),
        ("queue_pop", ("gone",)),
        ("barrier", ("gone", 9)),
    ],
)
def test_timeouts(store: ShmStore, name: str, team: Team, verb: str, args: tuple[Any, ...]) -> None:
    child = team.start(workers.call_timed_out, name, verb, args, 0.08)
    team.go()
    took, text = child.result()
    assert took >= 0.08
    assert "gone" in text
    assert inside.waits(store) == []


def test_peers_show_what_is_waited_for(store: ShmStore, name: str, team: Team) -> None:
    child = team.start(workers.call, name, "get", ("the awaited",))
    team.go()
    inside.parked(store, "the awaited")
    mine = [peer for peer in store.peers() if peer.pid == child.pid]
    assert len(mine) == 1
    assert mine[0].state == "live"
    assert "the awaited" in repr(mine[0])
    store.set("the awaited", b"")
    child.result()


def test_pickle_names_the_segment(store: ShmStore, team: Team) -> None:
    store.set("from parent", b"hello")
    child = team.start(workers.unpickle, pickle.dumps(store))
    pid = child.pid
    assert child.result() == b"hello"
    assert store.get("from child", 0) == str(pid).encode()


def test_pickled_prefix(store: ShmStore, team: Team) -> None:
    inner = PrefixStore("p", store)
    inner.set("from parent", b"hello")
    child = team.start(workers.unpickle, pickle.dumps(inner))
    assert child.result() == b"hello"
    assert store.check(["p/from child"]) is True


def test_handle_made_before_the_fork_works_in_both(store: ShmStore, team: Team) -> None:
    def child(me: Any) -> int:
        me.ready()
        store.set("child", b"1")
        value = store.get("parent")
        for _ in range(500):
            store.add("n", 1)
        store.close()
        return len(value)

    for _ in range(3):
        team.start(child, how="fork")
    team.go()
    store.get("child")
    inside.parked(store, "parent", 3)
    store.set("parent", b"xy")
    for _ in range(500):
        store.add("n", 1)
    assert team.results() == [2, 2, 2]
    assert store.get("n") == b"2000"


def test_fork_while_a_thread_waits(store: ShmStore, team: Team) -> None:
    from shmstore.testing.contract import Later

    waiting = Later(store.get, "later", 20)
    inside.parked(store, "later")

    def child(me: Any) -> list[str]:
        store.set("from child", b"1")
        seen = inside.waits(store)
        store.set("later", b"by child")
        store.close()
        return seen

    forked = team.start(child, how="fork")
    assert forked.result() == ["later"]
    assert waiting.result() == b"by child"


def test_forks_in_the_middle_of_everything(store: ShmStore, team: Team) -> None:
    """Threads are inside verbs at every moment of each fork; the children use the same keys."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def hammer(i: int) -> None:
        try:
            while not stop.is_set():
                store.add("n", 1)
                store.set("same", bytes([65 + i]) * 3000)
                store.append(f"log-{i}", b"x")
                store.delete_key(f"log-{i}")
        except BaseException as error:
            errors.append(error)

    def child(me: Any) -> int:
        for _ in range(20):
            store.add("of children", 1)
            store.set("same", b"c" * 3000)
            value = store.get("same", 0)
            assert value == value[:1] * 3000
        n = store.add("n", 0)
        store.close()
        return n

    threads = [threading.Thread(target=hammer, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        counts = [team.start(child, how="fork").result() for _ in range(25)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert counts == sorted(counts)
    assert store.get("of children") == b"500"


def test_closing_in_the_child_leaves_the_parents_open(store: ShmStore, team: Team) -> None:
    def child(me: Any) -> None:
        store.close()

    team.start(child, how="fork").result()
    store.set("k", b"1")
    assert store.get("k") == b"1"


def test_time_goes_by_the_monotonic_clock(store: ShmStore) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        store.wait(["gone"], 0.1)
    assert time.monotonic() - start >= 0.1
