"""Our client and torch's at one torch server: the same keys, waits, queues, barriers, prefixes and workers."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from harness import Me, Team

from shmstore import PrefixStore, StoreConnectionError, elastic
from shmstore.tcp.client import TCPStore
from shmstore.testing.contract import Later

dist = pytest.importorskip("torch.distributed", reason="torch's client and server")
LONG = timedelta(seconds=20)


def torch_server(*, libuv: bool, port: int = 0, **more: Any) -> Any:
    args = {"is_master": True, "wait_for_workers": False, "timeout": LONG, "use_libuv": libuv} | more
    return dist.TCPStore("127.0.0.1", port, **args)


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """The first torch server of a process opens a pipe that stays: before descriptors are counted."""
    torch_server(libuv=True)
    gc.collect()


@dataclass
class Both:
    """Our client, torch's, and whether the server is libuv's."""

    ours: TCPStore
    torchs: Any
    libuv: bool


@pytest.fixture(params=[True, False], ids=["libuv", "legacy"])
def both(request: pytest.FixtureRequest) -> Iterator[Both]:
    server = torch_server(libuv=request.param)
    torchs = dist.TCPStore(
        "127.0.0.1", server.port, is_master=False, wait_for_workers=False, timeout=LONG, use_libuv=request.param
    )
    with TCPStore("127.0.0.1", server.port, timeout=20) as ours:
        both = Both(ours, torchs, request.param)
        yield both
    both.torchs = None  # torch's stores have no close(), and pytest keeps what a fixture gave
    del torchs, server


def test_keys(both: Both) -> None:
    ours, torchs = both.ours, both.torchs
    ours.set("a", b"1\0")
    torchs.set("b", "2")
    assert (torchs.get("a"), ours.get("b")) == (b"1\0", b"2")
    assert (ours.add("n", 5), torchs.add("n", -7), ours.get("n")) == (5, -2, b"-2")
    assert ours.compare_set("c", b"", b"x") == torchs.compare_set("c", "", "y") == b"x"
    torchs.append("c", "+")
    ours.append("c", b"-")
    assert ours.multi_get(["a", "b", "c"]) == torchs.multi_get(["a", "b", "c"]) == [b"1\0", b"2", b"x+-"]
    assert sorted(ours.list_keys()) == sorted(torchs.list_keys()) == ["a", "b", "c", "n"]
    assert ours.num_keys() == torchs.num_keys() == 4
    assert ours.delete_key("a") is True
    assert torchs.check(["a"]) is False


def test_a_set_has_happened_when_it_returns(both: Both) -> None:
    ours, torchs = both.ours, both.torchs
    for i in range(200):
        ours.set(f"k{i}", b"v")
        assert torchs.check([f"k{i}"]) is True


@pytest.mark.parametrize(
    "release",
    [
        lambda store, key: store.set(key, "v"),
        lambda store, key: store.add(key, 1),
        lambda store, key: store.append(key, "v"),
        lambda store, key: store.multi_set([key], ["v"]),
    ],
    ids=["set", "add", "append", "multi_set"],
)
def test_each_wakes_the_other(both: Both, release: Callable[[Any, str], None]) -> None:
    ours, torchs = both.ours, both.torchs
    call = Later(ours.get, "for us", 20)
    release(torchs, "for us")
    assert call.result() in (b"v", b"1")
    call = Later(torchs.wait, ["for torch"], LONG)
    release(ours, "for torch")
    call.result()


def test_a_key_made_by_our_compare_set_wakes_torchs(both: Both) -> None:
    ours, torchs = both.ours, both.torchs
    call = Later(torchs.wait, ["k"], LONG)
    assert ours.compare_set("k", b"", b"") == b""
    call.result()


def test_barriers_meet(both: Both) -> None:
    ours, torchs = both.ours, both.torchs
    call = Later(torchs.barrier, "b", 2, LONG)
    ours.barrier("b", 2, 20)
    call.result()
    call = Later(elastic.barrier, torchs, 2, "e", 20)
    elastic.barrier(ours, 2, "e", 20)
    call.result()


def test_queues_meet(both: Both) -> None:
    ours, torchs, libuv = both.ours, both.torchs, both.libuv
    assert ours.capabilities.queues is libuv
    if not libuv:
        return
    torchs.queue_push("q", "1")
    ours.queue_push("q", b"2")
    assert (ours.queue_len("q"), torchs.queue_len("q")) == (2, 2)
    assert (ours.queue_pop("q"), torchs.queue_pop("q")) == (b"1", b"2")
    call = Later(ours.queue_pop, "q")
    torchs.queue_push("q", "3")
    assert call.result() == b"3"


def test_prefixes_are_the_same_keys(both: Both) -> None:
    ours, torchs = both.ours, both.torchs
    PrefixStore("o", PrefixStore("i", ours)).set("k", b"v")
    assert dist.PrefixStore("o", dist.PrefixStore("i", torchs)).get("k") == b"v"


def host(me: Me, world_size: int) -> int:
    me.say(port := me.hear())
    store = torch_server(libuv=True, port=port, world_size=world_size, wait_for_workers=True)
    me.say("all are here")
    me.hear()
    return int(store.num_keys())


def test_torchs_master_counts_us_as_workers(team: Team) -> None:
    server = torch_server(libuv=True)
    port = server.port
    del server
    gc.collect()
    child = team.start(host, 3)
    child.say(port)
    assert child.hear() == port
    stores = [TCPStore("127.0.0.1", port, 3, timeout=60) for _ in range(2)]
    assert child.hear() == "all are here"
    assert [store.num_keys() for store in stores] == [0, 0]
    child.say("go")
    assert child.result() == 1
    for store in stores:
        store.close()


def serve(me: Me) -> None:
    server = torch_server(libuv=True)
    me.say(server.port)
    threading.Event().wait()


def test_a_torch_server_that_is_killed_ends_a_wait(team: Team) -> None:
    child = team.start(serve)
    port = child.hear()
    with TCPStore("127.0.0.1", port, timeout=60) as store:
        call = Later(store.wait, ["gone"], 60)
        store.set("k", b"v")
        child.kill()
        with pytest.raises(StoreConnectionError, match=rf"wait on TCPStore\('127.0.0.1', {port}\)"):
            call.result()
