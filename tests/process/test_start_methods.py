"""multiprocessing's three start methods, and HashStore under fork."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
from collections.abc import Iterator
from typing import Any

import inside
import pytest
import workers

from shmstore import HashStore, PrefixStore, ShmStore

pytestmark = pytest.mark.shows("process: fork, spawn, forkserver")


@pytest.fixture(autouse=True)
def stop_helpers() -> Iterator[None]:
    """multiprocessing's own helper processes end with the test."""
    yield
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
    multiprocessing.resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def use(method: str, store: Any, n: int = 2, each: int = 200) -> None:
    context: Any = multiprocessing.get_context(method)
    children = []
    for _ in range(n):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=workers.mp_add, args=(store, each, theirs))
        process.start()
        theirs.close()
        children.append((process, ours))
    mine = [store.add("n", 1) for _ in range(each)]
    values = list(mine)
    pids = set()
    for process, ours in children:
        assert ours.poll(30), "a child never answered"
        values += ours.recv()
        ours.close()
        process.join(30)
        assert process.exitcode == 0
        pids.add(process.pid)
        process.close()
    assert sorted(values) == list(range(1, (n + 1) * each + 1))
    assert store.get("n") == str((n + 1) * each).encode()
    assert sorted(k for k in store.list_keys() if k.startswith("pid-")) == sorted(f"pid-{pid}" for pid in pids)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("engine", ["futex", "semaphore"])
def test_shm(name: str, method: str, engine: str) -> None:
    with ShmStore(name, sync=engine, timeout=30) as store:
        use(method, store)
        assert inside.verify(store) == []
        assert [peer.state for peer in store.peers() if peer.state not in ("live", "left")] == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_prefix(name: str, method: str) -> None:
    with ShmStore(name, timeout=30) as store:
        use(method, PrefixStore("p", store))


def test_hash_store_is_shared_with_forked_children() -> None:
    with HashStore(timeout=30) as store:
        use("fork", store)
        assert inside.verify(store) == []


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_hash_store_goes_no_further(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with HashStore() as store, pytest.raises(TypeError):
        context.Process(target=workers.mp_wait, args=(store, None)).start()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_is_woken(name: str, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with ShmStore(name, timeout=30) as store:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=workers.mp_wait, args=(store, theirs))
        process.start()
        theirs.close()
        inside.parked(store, "for child")
        store.set("for child", b"up")
        assert ours.poll(20)
        assert ours.recv() == b"up"
        ours.close()
        process.join(20)
        process.close()
