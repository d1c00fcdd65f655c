"""Torch's own client against our server: each operation, with the answers of torch's libuv server beside ours; what
is built on it, up to a gloo process group.

Requests without a reply (set, push) are not ordered between two connections: each step asks on the one that it set by,
or waits, before it goes on with the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from harness import Me, Team
from kinds import torchs, warm_torch

from shmstore import HashStore
from shmstore.tcp.server import TCPStoreServer

dist: Any = torchs("torch.distributed", "the wire of torch's client")
SOON = timedelta(seconds=20)
BRIEF = timedelta(milliseconds=50)


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    warm_torch()


def client(port: int) -> Any:
    return dist.TCPStore("127.0.0.1", port, None, False, SOON)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returned, or the name of what it raised."""
    try:
        result = call()
    except Exception as error:
        return type(error).__name__
    return sorted(result) if isinstance(result, list) and result and isinstance(result[0], str) else result


def late(store: Any, verb: str, *args: Any) -> Any:
    thread = threading.Timer(0.05, lambda: getattr(store, verb)(*args))
    thread.start()
    return thread


def waited(store: Any, other: Any, setter: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    thread = late(other, *setter)
    result = outcome(call)
    thread.join()
    return result


SCRIPT: list[tuple[str, Callable[[Any, Any], Any]]] = [
    ("set, get", lambda a, b: (a.set("k", "v\0w"), b.get("k"))),
    ("empty value", lambda a, b: (a.set("e", ""), b.get("e"), b.check(["e"]))),
    ("add", lambda a, b: (a.add("n", 5), b.add("n", -7), a.add("zero", 0), b.get("n"))),
    ("add to text", lambda a, b: (a.set("t", "12abc"), a.add("t", 1), b.get("t"))),
    ("compare_set", lambda a, b: [a.compare_set(*c) for c in (("c", "", "x"), ("c", "x", "y"), ("c", "x", "z"))]),
    ("compare_set, missing", lambda a, b: (a.compare_set("c0", "want", "get"), b.check(["c0"]))),
    ("check", lambda a, b: (a.check(["k", "n"]), a.check(["k", "none"]), a.check([]))),
    ("delete_key", lambda a, b: (a.delete_key("zero"), b.delete_key("zero"), b.check(["zero"]))),
    ("append", lambda a, b: (a.append("ap", "1"), a.append("ap", "2"), a.append("n", "0"), a.get("ap"), b.get("n"))),
    ("multi", lambda a, b: (a.multi_set(["m1", "m2"], ["", "2"]), b.multi_get(["m2", "m1"]))),
    ("multi, none", lambda a, b: (outcome(lambda: a.multi_set([], [])), outcome(lambda: b.multi_get([])))),
    ("num_keys", lambda a, b: a.num_keys()),
    ("list_keys", lambda a, b: sorted(a.list_keys())),
    ("large", lambda a, b: (a.set("big", "x" * (1 << 20)), len(b.get("big")), a.delete_key("big"))),
    ("largest", lambda a, b: (a.set("big", "x" * (8 << 20)), len(b.get("big")), a.delete_key("big"))),
    ("long key", lambda a, b: (a.set("y" * 8000, "v"), b.get("y" * 8000), a.delete_key("y" * 8000))),
    ("queue", lambda a, b: (a.queue_push("q", "1"), a.queue_push("q", "2"), a.queue_len("q"), b.queue_pop("q"))),
    ("queue is no key", lambda a, b: (a.check(["q"]), a.delete_key("q"), "q" in a.list_keys(), a.queue_pop("q"))),
    ("queue, empty", lambda a, b: (a.queue_len("q"), outcome(lambda: a.queue_pop("q", False)), a.check(["q"]))),
    ("queue, late", lambda a, b: waited(a, b, ("queue_push", "q2", "x"), lambda: a.queue_pop("q2"))),
    ("wait, late", lambda a, b: waited(a, b, ("set", "w", "x"), lambda: a.wait(["k", "w"], SOON))),
    ("get, late", lambda a, b: waited(a, b, ("add", "g", 3), lambda: a.get("g"))),
    ("wait, late append", lambda a, b: waited(a, b, ("append", "wa", "x"), lambda: a.wait(["wa"], SOON))),
    ("wait, late cas", lambda a, b: waited(a, b, ("compare_set", "wc", "", "x"), lambda: a.wait(["wc"], SOON))),
    ("wait, late multi_set", lambda a, b: waited(a, b, ("multi_set", ["wm"], ["x"]), lambda: a.wait(["wm"], SOON))),
    ("wait, too late", lambda a, b: (outcome(lambda: a.wait(["never"], BRIEF)), a.get("k"), b.get("k"))),
    ("wait again", lambda a, b: [outcome(lambda: a.wait(["never"], BRIEF)) for _ in range(3)]),
    ("wait for none", lambda a, b: outcome(lambda: a.wait([], SOON))),
    ("barrier of one", lambda a, b: (outcome(lambda: a.barrier("b1", 1)), a.get("b1"))),
    ("barrier, late", lambda a, b: waited(a, b, ("barrier", "b2", 2), lambda: a.barrier("b2", 2))),
    ("barrier, again", lambda a, b: (outcome(lambda: a.barrier("b2", 2)), a.get("b2"))),
    ("barrier, too late", lambda a, b: (outcome(lambda: a.barrier("b3", 2, BRIEF)), a.get("b3"), a.get("k"))),
    ("barrier over text", lambda a, b: (a.set("b4", "1x"), outcome(lambda: a.barrier("b4", 2)), a.get("b4"))),
    ("prefix", lambda a, b: (dist.PrefixStore("p", a).set("x", "1"), b.get("p/x"), dist.PrefixStore("p", b).get("x"))),
    ("prefix barrier", lambda a, b: outcome(lambda: dist.PrefixStore("p", a).barrier("pb", 1))),
    ("add, wraps", lambda a, b: (a.add("wrap", 2**63 - 1), b.add("wrap", 1), a.get("wrap"))),
    (
        "add to no number",
        lambda a, b: (a.set("words", "x"), outcome(lambda: b.clone().add("words", 1)), a.get("words")),
    ),
    ("nothing as a key", lambda a, b: (a.set("", "v"), a.get(""), "" in a.list_keys(), b.delete_key(""))),
    ("no text as a key", lambda a, b: (a.set(b"\xff", "v"), outcome(a.list_keys), a.get("\xff".encode("latin1")))),
    ("and gone", lambda a, b: (b.delete_key(b"\xff"), outcome(b.list_keys))),
    ("longest key", lambda a, b: (a.set("z" * 8191, "v"), a.get("z" * 8191), b.delete_key("z" * 8191))),
    ("too long a key", lambda a, b: outcome(lambda: a.clone().get("z" * 8192))),
    ("too big a value", lambda a, b: outcome(lambda: a.clone().compare_set("big", "", "x" * ((8 << 20) + 1)))),
    ("key and queue", lambda a, b: (a.set("kq", "k"), a.queue_push("kq", "i"), a.get("kq"), a.queue_len("kq"))),
    (
        "the key goes",
        lambda a, b: (b.delete_key("kq"), b.check(["kq"]), b.get("kq"), b.queue_pop("kq"), b.check(["kq"])),
    ),
    ("multi, one twice", lambda a, b: (a.multi_set(["t2", "t2"], ["1", "22"]), a.multi_get(["t2", "t2"]))),
    ("multi, unequal", lambda a, b: (outcome(lambda: a.multi_set(["u"], [])), a.check(["u"]))),
    ("compare_set, nothing", lambda a, b: (a.compare_set("c2", "", ""), b.check(["c2"]), b.compare_set("c2", "", "x"))),
    ("barrier of none", lambda a, b: (outcome(lambda: a.barrier("b5", 0)), a.get("b5"))),
    ("clone", lambda a, b: (a.clone().set("cl", "1"), b.clone().get("cl"))),
    ("extended", lambda a, b: (a.has_extended_api(), a.host, a.timeout == SOON)),
]


def test_each_operation_answers_as_torchs_server_does() -> None:
    theirs = dist.TCPStore("127.0.0.1", 0, None, True, SOON, wait_for_workers=False, use_libuv=True)
    with HashStore() as store, TCPStoreServer(store) as server:
        pairs = [(theirs, client(theirs.port)), (client(server.port), client(server.port))]
        wrong = {}
        for what, step in SCRIPT:
            want, got = (outcome(partial(step, *pair)) for pair in pairs)
            if got != want:
                wrong[what] = (want, got)
        assert not wrong


def test_what_is_no_number_disconnects() -> None:
    """As torch's server does: the protocol has no error replies."""
    with HashStore() as store, TCPStoreServer(store) as server:
        one, other = client(server.port), client(server.port)
        one.set("t", "words")
        with pytest.raises(RuntimeError):
            one.add("t", 1)
        assert other.get("t") == b"words"
        assert store.get("t") == b"words"


def test_poppers_each_get_an_item() -> None:
    """Torch's client takes an empty pop for an error, so each item must wake one of those who wait."""
    got: list[bytes] = []
    with HashStore() as store, TCPStoreServer(store) as server:
        clients = [client(server.port) for _ in range(12)]
        threads = [threading.Thread(target=lambda c=c: got.append(c.queue_pop("q"))) for c in clients]
        for thread in threads:
            thread.start()
        for i in range(12):
            if i % 2:
                store.queue_push("q", str(i))
            else:
                clients[0].clone().queue_push("q", str(i))
        for thread in threads:
            thread.join()
        assert sorted(got) == sorted(str(i).encode() for i in range(12))


def test_workers_count_themselves_in() -> None:
    with HashStore() as store, TCPStoreServer(store) as server:
        clients = [dist.TCPStore("127.0.0.1", server.port, 3, False, SOON) for _ in range(3)]
        assert clients[0].num_keys() == 1
        assert store.num_keys() == 0


def _group_member(me: Me, port: int, world: int) -> list[Any]:
    dist = torchs("torch.distributed")
    torch = torchs("torch")
    store = dist.TCPStore("127.0.0.1", port, world, False, timedelta(seconds=60))
    me.ready()
    dist.init_process_group("gloo", store=store, rank=me.index, world_size=world)
    tensor = torch.full((4,), float(me.index + 1))
    dist.all_reduce(tensor)
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, {"rank": me.index})
    dist.barrier()
    dist.destroy_process_group()
    return [tensor.tolist(), gathered]


def test_a_gloo_process_group_of_four(team: Team) -> None:
    with HashStore() as store, TCPStoreServer(store) as server:
        results = team.run(4, _group_member, server.port, 4)
        assert results == [[[10.0] * 4, [{"rank": i} for i in range(4)]]] * 4
        assert store.num_keys() > 0


def test_a_local_process_and_torch_meet() -> None:
    """The barrier of torch's client and the local one are one barrier; nothing is polled."""
    with HashStore() as store, TCPStoreServer(store) as server:
        torchs_client = client(server.port)
        thread = late(store, "barrier", "meet", 2, 20)
        start = time.monotonic()
        torchs_client.barrier("meet", 2)
        thread.join()
        assert time.monotonic() - start < 15
        assert store.get("meet") == b"2"
