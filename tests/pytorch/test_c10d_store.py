"""C10dStore beyond the contract: torch's exceptions, its timeout, its C++ half, deaths, threads, fork, the end.

The contract through C++ is tests/contract/test_contract_c10d.py.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import inside
import pytest
from harness import Me, Team
from kinds import torchs

import shmstore
from shmstore import HashStore, PrefixStore, ShmStore, TCPStore, TCPStoreServer
from shmstore.testing.contract.support import Later

dist: Any = torchs("torch.distributed", "C10dStore is one of torch's stores")
from shmstore.torch import C10dStore  # noqa: E402 -- torch is there

LONG = timedelta(seconds=30)


@pytest.fixture
def below() -> Iterator[HashStore]:
    with HashStore(timeout=30) as store:
        yield store


@pytest.fixture
def store(below: HashStore) -> Iterator[C10dStore]:
    made = C10dStore(below)
    yield made
    made.close()


def through(store: Any) -> Any:
    """What C++ sees of the store."""
    return dist.PrefixStore("p", store)


# -- what it is -------------------------------------------------------------------------------------------------------


def test_it_is_one_of_torchs_stores(store: C10dStore, below: HashStore) -> None:
    assert isinstance(store, dist.Store)
    store.set("k", "v")
    assert (below.get("k"), store.get("k"), store.num_keys(), store.list_keys()) == (b"v", b"v", 1, ["k"])
    assert repr(store) == "C10dStore(HashStore())"


def test_both_spellings(store: C10dStore) -> None:
    store.set("k", "v")
    assert (store.getNumKeys(), store.num_keys()) == (1, 1)
    assert (store.deleteKey("k"), store.delete_key("k")) == (True, False)


@pytest.mark.parametrize("given", [None, "store", {}, 1], ids=repr)
def test_what_is_no_store_of_ours_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="needs a store of shmstore"):
        C10dStore(given)


def test_a_store_of_torchs_is_refused() -> None:
    with pytest.raises(TypeError, match="not HashStore"):
        C10dStore(dist.HashStore())


def test_over_a_tcp_store(below: HashStore) -> None:
    with TCPStoreServer(below) as server, TCPStore("127.0.0.1", server.port) as client:
        made = C10dStore(client)
        through(made).set("k", "v")
        assert below.get("p/k") == b"v"
        made.close()


def test_what_python_calls_and_cpp_does_not(store: C10dStore) -> None:
    store.queue_push("q", b"1")
    assert (store.queue_len("q"), store.queue_pop("q"), store.queue_len("q")) == (1, b"1", 0)
    store.barrier("b", 1)
    assert store.has_extended_api()


# -- its C++ half -----------------------------------------------------------------------------------------------------


def test_nobody_else_needs_to_keep_it(below: HashStore) -> None:
    prefix = through(C10dStore(PrefixStore("q", below)))
    gc.collect()
    prefix.set("k", "v")
    assert (prefix.get("k"), below.get("q/p/k")) == (b"v", b"v")
    prefix.underlying_store.close()


def test_a_clone_that_cpp_made_is_kept_too(below: HashStore) -> None:
    prefix = through(C10dStore(below))
    copy = prefix.clone()
    gc.collect()
    copy.set("k", "v")
    assert prefix.get("k") == b"v"
    for each in (copy, prefix):
        each.underlying_store.close()


def test_a_clone_has_a_timeout_of_its_own(store: C10dStore) -> None:
    store.set_timeout(timedelta(seconds=7))
    copy = store.clone()
    copy.set_timeout(timedelta(seconds=3))
    assert (store.timeout, copy.timeout) == (timedelta(seconds=7), timedelta(seconds=3))
    copy.close()


def test_closed(store: C10dStore, below: HashStore) -> None:
    prefix = through(store)
    store.close()
    store.close()
    for call in (lambda: store.get("k"), lambda: prefix.get("k"), lambda: prefix.set("k", "v"), prefix.num_keys):
        with pytest.raises(shmstore.StoreClosedError):
            call()
    below.set("k", "v")


def test_close_ends_waits(store: C10dStore) -> None:
    prefix = through(store)
    waiting = Later(prefix.wait, ["k"], LONG)
    inside.parked(store.store, "k")
    store.close()
    with pytest.raises(shmstore.StoreClosedError):
        waiting.result()


# -- timeouts ---------------------------------------------------------------------------------------------------------


def test_its_timeout_is_the_stores_at_first() -> None:
    for given, there in ((12.5, 12.5), (0.0004, 0.001), (float("inf"), 36500 * 86400)):
        with HashStore(timeout=given) as below:
            made = C10dStore(below)
            assert made.timeout == timedelta(seconds=there)
            made.close()


@pytest.mark.parametrize("verb", ["get", "wait", "multi_get", "queue_pop", "barrier"])
def test_the_timeout_is_read_at_each_call(store: C10dStore, below: HashStore, verb: str) -> None:
    calls: dict[str, Any] = {
        "get": lambda: store.get("k"),
        "wait": lambda: store.wait(["k"]),
        "multi_get": lambda: store.multi_get(["k"]),
        "queue_pop": lambda: store.queue_pop("k"),
        "barrier": lambda: store.barrier("k", 100),
    }
    for ms in (30, 10):
        through(store).set_timeout(timedelta(milliseconds=ms))  # C++'s: no method of ours is called
        start = time.monotonic()
        with pytest.raises(dist.DistStoreError, match="Wait timeout") as caught:
            calls[verb]()
        assert time.monotonic() - start >= ms / 1000
        assert caught.value.timeout == ms / 1000
    assert below.timeout == timedelta(seconds=30)


# -- exceptions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda store: store, through], ids=["itself", "C++"])
def test_a_timeout_is_torchs_and_ours(store: C10dStore, wrap: Any) -> None:
    seen = wrap(store)
    seen.set_timeout(timedelta(milliseconds=20))
    for call in (lambda: seen.get("gone"), lambda: seen.wait(["gone"]), lambda: seen.wait(["gone"], timedelta(0))):
        for kind in (dist.DistStoreError, shmstore.StoreTimeoutError, TimeoutError, RuntimeError):
            with pytest.raises(kind, match=r"Wait timeout.*gone") as caught:
                call()
            assert [key.removeprefix("p/") for key in caught.value.keys] == ["gone"]
            assert type(caught.value.__cause__) is shmstore.StoreTimeoutError


def test_an_empty_pop(store: C10dStore) -> None:
    for kind in (dist.QueueEmptyError, shmstore.QueueEmptyError):
        with pytest.raises(kind):
            store.queue_pop("q", block=False)


def test_a_barrier_that_not_all_come_to(store: C10dStore) -> None:
    for kind in (dist.DistStoreError, shmstore.BarrierTimeoutError):
        with pytest.raises(kind, match="Wait timeout"):
            store.barrier("b", 10, timedelta(milliseconds=5))


def test_a_lost_server(below: HashStore) -> None:
    with TCPStoreServer(below) as server:
        client = TCPStore("127.0.0.1", server.port)
        made = C10dStore(client)
        made.set("k", "v")
        assert made.get("k") == b"v"
    for kind in (dist.DistNetworkError, shmstore.StoreConnectionError, ConnectionError):
        with pytest.raises(kind):
            made.get("k")
    made.close()
    client.close()


def test_what_is_no_dist_error_passes_as_it_is(store: C10dStore) -> None:
    seen = through(store)
    seen.set("k", "text")
    with pytest.raises(ValueError, match="no leading number"):
        seen.add("k", 1)
    with pytest.raises(ValueError, match="8191"):
        seen.get("k" * 9000)


# -- deaths -----------------------------------------------------------------------------------------------------------


def _dies(me: Me, name: str) -> None:
    store = ShmStore(name, rank=me.index + 1)
    me.say(store.rank)
    me.hear()


@pytest.mark.parametrize("verb", ["get", "wait", "multi_get", "barrier"])
def test_a_death_ends_a_wait_of_cpp_and_is_named(name: str, team: Team, verb: str) -> None:
    made = C10dStore(ShmStore(name, rank=0, timeout=60))
    seen = through(made)
    child = team.start(_dies, name)
    assert child.hear() == 1
    calls: dict[str, Any] = {
        "get": lambda: seen.get("k"),
        "wait": lambda: seen.wait(["k"], LONG),
        "multi_get": lambda: seen.multi_get(["k"]),
        "barrier": lambda: seen.barrier("k", 2),
    }
    waiting = Later(calls[verb])
    inside.until(lambda: any(peer.waiting_on is not None for peer in made.store.peers()))
    child.kill()
    with pytest.raises(dist.DistStoreError, match=rf"rank 1 \(pid {child.pid} .* died") as caught:
        waiting.result()
    assert isinstance(caught.value, shmstore.PeerDiedError)
    cause = caught.value.__cause__
    assert type(cause) is shmstore.PeerDiedError
    assert (cause.rank, cause.pid, caught.value.rank) == (1, child.pid, 1)
    made.close()


def test_watching_can_be_left_out(name: str, team: Team) -> None:
    made = C10dStore(ShmStore(name, rank=0, timeout=60), watch_peers=False)
    child = team.start(_dies, name)
    child.hear()
    child.kill()
    inside.until(lambda: any(peer.state == "dead" for peer in made.store.peers()))
    with pytest.raises(dist.DistStoreError, match="Wait timeout"):
        through(made).wait(["k"], timedelta(milliseconds=300))
    made.close()


# -- threads, signals, fork, the end ----------------------------------------------------------------------------------


def test_a_wait_of_cpp_gives_up_the_gil(store: C10dStore) -> None:
    waiting = Later(through(store).wait, ["k"], LONG)
    inside.parked(store.store, "p/k")
    store.set("p/k", "")  # this thread runs while that one waits
    waiting.result()


def test_ctrl_c_ends_a_wait_of_cpp(store: C10dStore) -> None:
    def press() -> None:
        inside.parked(store.store, "p/k")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        through(store).wait(["k"], LONG)
    thread.join()


def test_a_forked_child_uses_it(name: str, team: Team) -> None:
    made = C10dStore(ShmStore(name, rank=0))
    prefix = through(made)

    def child(_: Me) -> bytes:
        prefix.set("child", "1")
        return bytes(prefix.get("parent"))

    running = team.start(child, how="fork")
    prefix.set("parent", "2")
    assert running.result() == b"2"
    assert prefix.get("child") == b"1"
    made.close()


ENDS = """
import sys, threading
import torch.distributed as dist
import shmstore.torch
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"shm://{sys.argv[1]}", rank=rank, world_size=2)
dist.barrier()
store = dist.distributed_c10d._get_default_store()
if sys.argv[3] == "waits":
    threading.Thread(target=lambda: store.wait(["never"]), daemon=True).start()
"""


@pytest.mark.parametrize("how", ["idle", "waits"])
def test_a_process_ends_with_its_group_alive(name: str, how: str) -> None:
    """No destroy_process_group; and C++ waits in the store, in a daemon thread, as the interpreter ends."""
    ranks = [subprocess.Popen([sys.executable, "-c", ENDS, name, str(rank), how]) for rank in range(2)]
    assert [rank.wait(60) for rank in ranks] == [0, 0]


BEGINS = """
import sys, threading
import torch.distributed as dist
import shmstore, shmstore.torch
def begin():
    store = shmstore.torch.C10dStore(shmstore.ShmStore(sys.argv[1]))
    dist.init_process_group("gloo", store=store, rank=0, world_size=2)  # C++ waits for rank 1's address
threading.Thread(target=begin, daemon=True).start()
with shmstore.ShmStore(sys.argv[1]) as keys:
    while not any(peer.waiting_on for peer in keys.peers()):
        pass
"""


def test_a_process_ends_while_a_daemon_thread_begins_a_group(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", BEGINS, name], timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
