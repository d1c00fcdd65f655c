"""TCPStore against a server that does what it is told: connecting, answers that are late, torn, wrong or none, ends."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import inside
import pytest
from fake_server import Answer, Fake, Peer

from shmstore import (
    DistStoreError,
    HashStore,
    StoreClosedError,
    StoreConnectionError,
    StoreError,
    StoreTimeoutError,
    TCPStoreServer,
)
from shmstore.tcp import connection, pool, verbs
from shmstore.tcp.client import TCPStore
from shmstore.tcp.codec import ANSWERED, HELLO, Op, Request, encode, encode_reply
from shmstore.testing.contract import Later


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as fake:
        yield fake


@pytest.fixture
def store(fake: Fake) -> Iterator[TCPStore]:
    with TCPStore("127.0.0.1", fake.port, timeout=10) as store:
        yield store


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


# -- connecting -------------------------------------------------------------------------------------------------------


def test_the_handshake_is_one_write(fake: Fake, store: TCPStore) -> None:
    first = fake.peers[0].chunks[0]
    assert first[:10] == HELLO + encode(Op.PING, struct.unpack("<I", first[6:10])[0])


def test_nobody_listens() -> None:
    port = free_port()
    start = time.monotonic()
    with pytest.raises(StoreConnectionError) as caught:
        TCPStore("127.0.0.1", port, timeout=0.3)
    assert time.monotonic() - start >= 0.3
    for part in ("127.0.0.1", str(port), "0.3", "tries", "refused"):
        assert part in str(caught.value)
    assert isinstance(caught.value, DistStoreError)


def test_a_server_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with Fake(listening=False) as fake:
        failed = threading.Event()

        def note(_: float) -> None:
            if not failed.is_set():
                failed.set()
                fake.listen()

        monkeypatch.setattr(pool, "sleep", note)
        with TCPStore("127.0.0.1", fake.port, timeout=20) as store:
            assert failed.is_set()
            store.set("k", b"v")
            assert fake.keys == {b"/k": b"v"}


def test_pauses_grow_and_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def note(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(pool, "sleep", note)
    with pytest.raises(KeyboardInterrupt):
        TCPStore("127.0.0.1", free_port(), timeout=60)
    assert 0.005 <= pauses[0] <= 0.01
    assert 0.5 <= pauses[-1] <= 1.0
    assert len(set(pauses)) == 12


def test_a_name_with_several_addresses(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "several"
        kind = socket.SOCK_STREAM
        return [
            (socket.AF_INET6, kind, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, kind, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with TCPStore("several", fake.port, timeout=10) as store:
        assert (store.host, store.port) == ("several", fake.port)
        store.set("k", b"v")
    fake.stop()
    with pytest.raises(StoreConnectionError, match=r"::1: .*; 127\.0\.0\.1: "):
        TCPStore("several", fake.port, timeout=0)


def test_ipv6() -> None:
    try:
        fake = Fake("::1")
    except OSError:
        pytest.skip("this host has no IPv6")
    with fake, TCPStore("::1", fake.port, timeout=10) as store:
        store.set("k", b"v")
        assert store.get("k") == b"v"


def test_a_timeout_of_nothing_connects_to_who_is_there(fake: Fake) -> None:
    with TCPStore("127.0.0.1", fake.port, timeout=0) as store:
        store.set("k", b"v")
        assert store.get("k") == b"v"


def test_a_name_that_is_none() -> None:
    with pytest.raises(StoreConnectionError, match=r"nowhere\.invalid"):
        TCPStore("nowhere.invalid", 1, timeout=0)


def test_somebody_else_answers(fake: Fake) -> None:
    fake.on = lambda peer, request: b"HTTP/1.0" if request.op is Op.PING else NotImplemented
    with pytest.raises(StoreConnectionError, match="is no TCPStore server"):
        TCPStore("127.0.0.1", fake.port, timeout=20)


def test_somebody_answers_nothing(fake: Fake) -> None:
    fake.on = lambda peer, request: b""
    start = time.monotonic()
    with pytest.raises(StoreConnectionError, match="no answer"):
        TCPStore("127.0.0.1", fake.port, timeout=0.2)
    assert time.monotonic() - start >= 0.2


def test_a_server_that_ends_the_first_connections(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "sleep", lambda _: None)
    fake.on = lambda peer, request: None if peer.index < 3 else NotImplemented
    with TCPStore("127.0.0.1", fake.port, timeout=20) as store:
        store.set("k", b"v")
    assert len(fake.peers) == 4


def test_a_server_without_queues_is_found_out(fake: Fake) -> None:
    fake.on = lambda peer, request: None if request.op is Op.QUEUE_LEN else NotImplemented
    with TCPStore("127.0.0.1", fake.port, timeout=20) as store:
        assert store.capabilities.queues is False
        with pytest.raises(StoreError, match="queues"):
            store.queue_push("q", b"x")
        store.set("k", b"v")
        assert store.get("k") == b"v"


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        (("", 1), ValueError),
        ((1, 1), TypeError),
        (("h", "1"), TypeError),
        (("h", True), TypeError),
        (("h", 0), ValueError),
        (("h", -1), ValueError),
        (("h", 65536), ValueError),
        (("h", 1, 0), ValueError),
        (("h", 1, "2"), TypeError),
        (("h", 1, None, False, -1), ValueError),
        (("h", 1, None, False, "1"), TypeError),
    ],
)
def test_wrong_arguments(args: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        TCPStore(*args)


# -- workers ----------------------------------------------------------------------------------------------------------


def test_workers_are_counted(fake: Fake) -> None:
    with TCPStore("127.0.0.1", fake.port, 3, timeout=10) as one, TCPStore("127.0.0.1", fake.port, 3, timeout=10):
        assert fake.keys == {b"init/": b"2"}  # and neither waited for the third
        one.set("k", b"v")
        assert one.num_keys() == 1
        assert one.list_keys() == ["k"]


def test_workers_are_not_counted_without_a_world_or_a_wait(fake: Fake) -> None:
    with (
        TCPStore("127.0.0.1", fake.port, timeout=10),
        TCPStore("127.0.0.1", fake.port, 3, timeout=10, wait_for_workers=False),
    ):
        assert fake.keys == {}


# -- answers that are late, torn, wrong or none -------------------------------------------------------------------


def test_torn_answers(fake: Fake, store: TCPStore) -> None:
    fake.torn = True
    store.set("k", b"value" * 50)
    assert store.get("k") == b"value" * 50
    assert store.add("n", 5) == 5
    assert store.multi_get(["k", "n"]) == [b"value" * 50, b"5"]
    assert sorted(store.list_keys()) == ["k", "n"]


GARBAGE: list[tuple[str, Op, bytes]] = [
    ("get", Op.GET, struct.pack("<Q", 2**62)),
    ("get", Op.GET, struct.pack("<Q", 2**64 - 1)),
    ("wait", Op.CHECK, b"\7"),
    ("check", Op.CHECK, b"\xff"),
    ("list_keys", Op.LIST_KEYS, struct.pack("<Q", 2**63)),
    ("list_keys", Op.LIST_KEYS, struct.pack("<QQ", 1, 2**40)),
    ("num_keys", Op.GETNUMKEYS, struct.pack("<q", -1)),
    ("multi_get", Op.MULTI_GET, struct.pack("<Q", 2**50)),
    ("queue_pop", Op.QUEUE_POP, struct.pack("<qQ", 1, 2**50)),
    ("queue_pop", Op.QUEUE_POP, struct.pack("<q", -5)),
    ("add", Op.ADD, struct.pack("<q", 1) + b"more"),
    ("set", Op.PING, b"\0\0\0\0"),
    ("wait", Op.WAIT, b"\1"),
    ("wait", Op.WAIT, b"\x63"),
    ("barrier", Op.BARRIER, b"\x63"),
]


@pytest.mark.parametrize(("verb", "op", "said"), GARBAGE, ids=lambda p: p.hex() if isinstance(p, bytes) else str(p))
def test_garbage_is_an_error_and_takes_no_memory(fake: Fake, store: TCPStore, verb: str, op: Op, said: bytes) -> None:
    store.set("k", b"v")
    calls: dict[str, Any] = {
        "get": lambda: store.get("k"),
        "check": lambda: store.check(["k"]),
        "list_keys": lambda: store.list_keys(),
        "num_keys": lambda: store.num_keys(),
        "multi_get": lambda: store.multi_get(["k"]),
        "queue_pop": lambda: store.queue_pop("k", False),
        "add": lambda: store.add("n", 1),
        "set": lambda: store.set("k", b"v"),
        "wait": lambda: store.wait(["gone"], 5),
        "barrier": lambda: store.barrier("b", 2, 5),
    }
    fake.on = lambda peer, request: said if request.op is op and peer.index == 0 else NotImplemented
    with pytest.raises(StoreConnectionError, match=f"{verb}.*{fake.port}"):
        calls[verb]()
    assert fake.peers[0].ended.wait(10), "the connection was used on"
    assert store.get("k") == b"v"


def test_an_answer_that_never_comes(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "PATIENCE_NS", 50_000_000)
    with TCPStore("127.0.0.1", fake.port, timeout=0.01) as store:
        late: list[Peer] = []

        def silent(peer: Peer, request: Request) -> Answer:
            if request.op is Op.ADD and not late:
                late.append(peer)
                return b""
            return NotImplemented

        fake.on = silent
        start = time.monotonic()
        with pytest.raises(StoreConnectionError, match=r"add.*no answer.*may have happened"):
            store.add("n", 1)
        assert time.monotonic() - start >= 0.05
        late[0].send(encode_reply(Op.ADD, 77))
        assert store.add("n", 5) == 5, "another call's answer was taken"


def test_a_wait_that_is_released_as_it_is_taken_back(fake: Fake, store: TCPStore) -> None:
    """STOP_WAITING was on its way: what was waited for has come, so it is no timeout."""

    def on(peer: Peer, request: Request) -> Answer:
        if request.op is Op.WAIT:
            return b""
        if request.op is Op.CANCEL_WAIT:
            fake.keys[b"/k"] = b"just in time"
            return b"\0\1"
        return NotImplemented

    fake.on = on
    assert store.get("k", 0.5) == b"just in time"
    assert fake.keys[b"/k"] == b"just in time"
    assert len(fake.peers) == 1


# -- what is held back until a wait is over ---------------------------------------------------------------------------

THEN = [(Op.COMPARE_SET, (b"/state", b"", b"over")), (Op.MULTI_GET, ([b"/k", b"/k"],))]


def _meet(store: TCPStore, span: float, look: bool = False) -> tuple[bool, list[Any] | None]:
    """A question, a wait for `k`, and what comes then, by TCPStore's own way; ends at the first look if `look`."""
    heard: list[Any] = []
    deadline = time.monotonic_ns() + int(span * 1e9)

    def seen(answers: list[Any]) -> bool:
        heard.extend(answers)
        return False

    first = [(Op.ADD, (b"/n", 1))]
    met = store._ask_and_await("meet", first, [b"k"], THEN, deadline, seen, lambda: look)
    assert len(heard) == 1
    return met


def test_a_server_of_ours_does_then_what_was_asked_with_the_wait() -> None:
    with (
        HashStore() as keys,
        TCPStoreServer(keys, "127.0.0.1", 0) as server,
        TCPStore("127.0.0.1", server.port, timeout=10) as store,
    ):
        waits = Later(_meet, store, 20)
        inside.until(lambda: server.stats().waiting == 1)
        assert not keys.check(["state"])
        keys.set("k", "x")
        assert waits.result() == (True, [b"over", [b"x", b"x"]])
        assert keys.get("state") == b"over"
        assert _meet(store, 20) == (True, [b"over", [b"x", b"x"]]), "it was over already"
        keys.delete_key("k")
        keys.delete_key("state")
        assert _meet(store, 0) == (False, None)
        assert _meet(store, 20, look=True) == (False, None)
        assert not keys.check(["state"]), "it was taken back with the wait"
        assert store.add("n", 0) == 4, "the connection is whole"


def test_another_server_is_not_asked_to_hold(fake: Fake, store: TCPStore) -> None:
    fake.keys[b"/k"] = b"x"
    assert _meet(store, 20) == (True, None)
    assert not fake.asked(Op.HOLD)
    assert not fake.asked(Op.COMPARE_SET)


def test_what_was_held_was_done_as_the_wait_was_taken_back(fake: Fake) -> None:
    """Three answers were on their way."""

    def on(peer: Peer, request: Request) -> Answer:
        if request.op is Op.PING:
            return encode_reply(Op.PING, ANSWERED)
        if request.op in (Op.WAIT, Op.HOLD):
            return b""
        if request.op is Op.CANCEL_WAIT:
            return b"\0" + encode_reply(Op.COMPARE_SET, b"over") + encode_reply(Op.MULTI_GET, [b"x", b"y"]) + b"\1"
        return NotImplemented

    fake.on = on
    with TCPStore("127.0.0.1", fake.port, timeout=10) as store:
        assert _meet(store, 0.5) == (True, [b"over", [b"x", b"y"]])
        assert fake.asked(Op.HOLD) == [0]
        assert store.add("n", 1) == 2, "the connection is whole"
        assert len(fake.peers) == 1


def test_what_is_hoped_for_is_known_by_its_bytes_and_everything_else_is_read(fake: Fake) -> None:
    """Whether the answers come at once, torn, or otherwise."""
    said = [encode_reply(Op.WAIT, 0) + encode_reply(Op.COMPARE_SET, b"over"), b""]

    def on(peer: Peer, request: Request) -> Answer:
        if request.op is Op.PING:
            return encode_reply(Op.PING, ANSWERED)
        return b"" if request.op is Op.WAIT else said[0] if request.op is Op.HOLD else NotImplemented

    fake.on = on
    then = [(Op.COMPARE_SET, (b"/state", b"", b"over"))]

    def meet(store: TCPStore) -> Any:
        deadline = time.monotonic_ns() + 20 * 10**9
        first = [(Op.ADD, (b"/n", 1))]
        return store._ask_and_await("meet", first, [b"k"], then, deadline, lambda _: False, lambda: False, [b"over"])

    with TCPStore("127.0.0.1", fake.port, timeout=10) as store:
        assert meet(store) == (True, [b"over"])
        fake.torn = True
        assert meet(store) == (True, [b"over"])
        fake.torn = False
        said[0] = encode_reply(Op.WAIT, 0) + encode_reply(Op.COMPARE_SET, b"another")
        assert meet(store) == (True, [b"another"])
        assert store.add("n", 0) == 3
        assert len(fake.peers) == 1, "the connection is whole"


# -- what is posted ---------------------------------------------------------------------------------------------------


def test_what_is_posted_is_answered_later(fake: Fake, store: TCPStore) -> None:
    """Its answers are read by the next call of the connection, whatever that is."""
    gate = threading.Event()

    def on(peer: Peer, request: Request) -> Answer:
        if request.op is Op.DELETE_KEY:
            assert gate.wait(20)
            return encode_reply(Op.DELETE_KEY, 0)
        return NotImplemented

    fake.on = on
    post: list[Any] = [(Op.SET, (b"/k", b"v")), (Op.DELETE_KEY, (b"/gone",))]
    store._post("set", post)
    gate.set()
    assert store.get("k") == b"v"
    store._post("set", post)
    store._post("set", [(Op.SET, (b"/k", b"w"))])
    with pytest.raises(StoreTimeoutError):
        store.wait(["gone"], 0.3)
    store._post("set", post)
    assert _meet(store, 0.05) == (True, None)
    assert len(fake.peers) == 1, "the connection was used on"


def test_a_connection_that_owes_an_answer_is_not_stale_unless_it_has_ended(
    fake: Fake, store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STALE_NS", 0)
    fake.on = lambda peer, request: encode_reply(Op.DELETE_KEY, 0) if request.op is Op.DELETE_KEY else NotImplemented
    store._post("set", [(Op.DELETE_KEY, (b"/gone",))])
    fake.until(lambda: fake.asked(Op.DELETE_KEY))
    assert store.add("n", 1) == 1
    assert len(fake.peers) == 1
    store._post("set", [(Op.DELETE_KEY, (b"/gone",))])
    fake.drop_all()
    assert store.add("n", 1) == 2
    assert len(fake.peers) == 2


def test_who_is_still_sending_is_heard_to_the_end(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience is for silence: a piece each 0.1 s, of an answer that takes longer than the patience."""
    for module in (connection, verbs):
        monkeypatch.setattr(module, "PATIENCE_NS", 500_000_000)
    answer = encode_reply(Op.GET, b"x" * 7)
    pieces = [answer[i : i + 1] for i in range(len(answer) - 1)]
    pause = threading.Event()

    def on(peer: Peer, request: Request) -> Answer:
        if request.op is not Op.GET:
            return NotImplemented
        for piece in pieces:
            peer.send(piece)
            pause.wait(0.1)
        return answer[-1:]

    fake.on = on
    fake.keys[b"/k"] = b"x"
    with TCPStore("127.0.0.1", fake.port, timeout=0.3) as store:
        assert store.get("k") == b"x" * 7


def test_a_wait_that_timed_out_gives_its_connection_back_whole(fake: Fake, store: TCPStore) -> None:
    for _ in range(5):
        with pytest.raises(StoreTimeoutError):
            store.get("gone", 0.01)
        with pytest.raises(StoreTimeoutError):
            store.wait(["gone"], 0.01)
    waits = fake.asked(Op.WAIT)  # on a loaded machine the time of one may be over before it is sent
    assert waits
    assert fake.asked(Op.CANCEL_WAIT) == waits
    assert len(fake.peers) == 1


def test_a_wait_that_is_not_even_taken_back_is_a_timeout(
    fake: Fake, store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PATIENCE_NS", 50_000_000)
    fake.on = lambda peer, request: b"" if request.op is Op.CANCEL_WAIT else NotImplemented
    for call in (
        lambda limit: store.wait(["gone"], limit),
        lambda limit: store.get("gone", limit),
        lambda limit: store.barrier("gone", 2, limit),
    ):
        before, limit = len(fake.asked(Op.CANCEL_WAIT)), 0.01
        # On a loaded machine a call's time may be over before its wait begins.
        while len(fake.asked(Op.CANCEL_WAIT)) == before:
            limit *= 2
            with pytest.raises(StoreTimeoutError, match="gone"):
                call(limit)
        assert fake.requests[-1][1].op is Op.CANCEL_WAIT, "it was asked more"
    fake.until(lambda: all(peer.ended.is_set() for peer in fake.peers[:3]))
    store.set("k", b"v")
    assert fake.asked(Op.SET) == [3]


def test_a_timeout_of_nothing_sends_no_wait(fake: Fake, store: TCPStore) -> None:
    for call in (lambda: store.get("gone", 0), lambda: store.wait(["gone"], 0), lambda: store.multi_get(["gone"], 0)):
        with pytest.raises(StoreTimeoutError):
            call()
    assert fake.asked(Op.WAIT) == []


def test_a_key_that_is_deleted_between_the_answers_is_waited_for(fake: Fake, store: TCPStore) -> None:
    looked: list[Op] = []

    def on(peer: Peer, request: Request) -> Answer:
        looked.append(request.op)
        if request.op is Op.CHECK and looked.count(Op.CHECK) == 1:
            return encode_reply(Op.CHECK, 0)  # and it is gone when GET comes
        return NotImplemented

    fake.on = on
    call = Later(store.get, "k", 20)
    fake.until(lambda: Op.WAIT in looked)
    store.set("k", b"again")
    assert call.result() == b"again"


def test_empty_values_are_told_from_missing_keys_together(fake: Fake, store: TCPStore) -> None:
    keys = [f"k{i}" for i in range(300)]
    store.multi_set(keys, [b"" if i % 3 else b"v" for i in range(300)])
    assert store.multi_get(keys) == [b"" if i % 3 else b"v" for i in range(300)]
    assert len(fake.asked(Op.COMPARE_SET)) == 200
    assert len(fake.asked(Op.GET)) == 0


def test_many_keys_go_in_several_requests(fake: Fake, store: TCPStore) -> None:
    keys = [f"k{i}" for i in range(2 * verbs.AT_ONCE + 1)]
    store.multi_set(keys, [b"v"] * len(keys))
    assert store.check(keys) is True
    store.wait(keys, 0)
    assert store.multi_get(keys) == [b"v"] * len(keys)
    sizes = [len(request.fields[0]) for _, request in fake.requests if request.op is Op.CHECK]
    assert sizes == [1000, 1000, 1] * 3
    with pytest.raises(ValueError, match="131072"):
        store.multi_set([f"k{i}" for i in range(131073)], [b""] * 131073)


# -- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["get", "wait", "multi_get", "queue_pop", "barrier"])
def test_a_server_that_dies_ends_waits(fake: Fake, store: TCPStore, verb: str) -> None:
    calls: dict[str, Any] = {
        "get": lambda: store.get("gone", 20),
        "wait": lambda: store.wait(["gone"], 20),
        "multi_get": lambda: store.multi_get(["gone"], 20),
        "queue_pop": lambda: store.queue_pop("gone"),
        "barrier": lambda: store.barrier("gone", 2, 20),
    }
    fake.on = lambda peer, request: (
        encode_reply(Op.QUEUE_POP, (0, None)) if request.op is Op.QUEUE_POP else NotImplemented
    )
    call = Later(calls[verb])
    fake.until(lambda: fake.asked(Op.BARRIER if verb == "barrier" else Op.WAIT))
    fake.stop()
    with pytest.raises(StoreConnectionError) as caught:
        call.result()
    for part in (verb, "127.0.0.1", str(fake.port), "lost after", " s"):
        assert part in str(caught.value)
    start = time.monotonic()
    with pytest.raises(StoreConnectionError, match="refused"):
        store.set("k", b"v")
    assert time.monotonic() - start < 5, "a server that is gone is an error at once"


def test_a_server_whose_host_is_gone_is_no_timeout(
    fake: Fake, store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system gives a connection up that nobody answers on with ETIMEDOUT, which is a TimeoutError in Python."""
    take = connection.Line._take

    def gone(line: connection.Line, size: int, deadline: int) -> bytes:
        if fake.asked(Op.WAIT):
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return take(line, size, deadline)

    monkeypatch.setattr(connection.Line, "_take", gone)
    fake.on = lambda peer, request: b"" if request.op is Op.WAIT else NotImplemented
    monkeypatch.setattr(connection.Line, "_send", sent_and_heard(fake, connection.Line._send))
    with pytest.raises(StoreConnectionError, match=r"wait.*lost.*timed out"):
        store.wait(["gone"], 20)


def sent_and_heard(fake: Fake, send: Any) -> Any:
    """Sends, and returns when a WAIT has come to the server."""

    def send_wait(line: connection.Line, data: bytes, deadline: int) -> None:
        send(line, data, deadline)
        if data[0] == Op.WAIT:
            fake.until(lambda: fake.asked(Op.WAIT))

    return send_wait


def test_a_connection_that_died_idle_is_not_used(fake: Fake, store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "STALE_NS", 0)
    store.set("k", b"v")
    fake.drop_all()
    assert store.get("k") == b"v"
    assert len(fake.peers) == 2


def test_a_wait_has_a_connection_of_its_own_and_others_share_one(fake: Fake, store: TCPStore) -> None:
    calls = [Later(store.get, f"later{i}", 20) for i in range(3)]
    fake.until(lambda: len(fake.asked(Op.WAIT)) == 3)
    for i in range(5):
        store.set(f"k{i}", b"v")
    assert len(set(fake.asked(Op.WAIT))) == 3
    assert len(set(fake.asked(Op.SET))) == 1
    assert not set(fake.asked(Op.SET)) & set(fake.asked(Op.WAIT))
    for i in range(3):
        store.set(f"later{i}", b"%d" % i)
    assert [call.result() for call in calls] == [b"0", b"1", b"2"]


def test_idle_connections_are_few(fake: Fake, store: TCPStore) -> None:
    calls = [Later(store.get, "later", 20) for _ in range(pool.KEPT + 5)]
    fake.until(lambda: len(fake.asked(Op.WAIT)) == len(calls))
    store.set("later", b"v")
    for call in calls:
        call.result()
    fake.until(lambda: sum(not peer.ended.is_set() for peer in fake.peers) == pool.KEPT)


def test_close_ends_every_connection(fake: Fake, store: TCPStore) -> None:
    calls = [Later(store.get, "gone", 20), Later(store.barrier, "b", 2, 20), Later(store.wait, ["gone"], 20)]
    fake.until(lambda: len(fake.asked(Op.WAIT) + fake.asked(Op.BARRIER)) == 3)
    store.close()
    for call in calls:
        with pytest.raises(StoreClosedError, match=str(fake.port)):
            call.result()
    fake.until(lambda: all(peer.ended.is_set() for peer in fake.peers))


def test_close_ends_a_call_that_is_connecting(fake: Fake, store: TCPStore) -> None:
    fake.on = lambda peer, request: None
    with pytest.raises(StoreConnectionError):
        store.set("k", b"v")  # and no connection is left
    fake.on = lambda peer, request: b""
    call = Later(store.set, "k", b"v")
    fake.until(lambda: 1 in fake.asked(Op.PING))
    store.close()
    with pytest.raises(StoreClosedError):
        call.result()


def test_a_handle_that_is_collected_hangs_up(fake: Fake) -> None:
    store = TCPStore("127.0.0.1", fake.port, timeout=10)
    store.set("k", b"v")
    del store
    gc.collect()
    fake.until(lambda: all(peer.ended.is_set() for peer in fake.peers))


def test_a_pickled_handle_connects_there(fake: Fake, store: TCPStore) -> None:
    store.set("k", b"v")
    with pickle.loads(pickle.dumps(store)) as other:
        assert (other.host, other.port, other.timeout) == (store.host, store.port, store.timeout)
        assert other.get("k") == b"v"
    assert set(fake.asked(Op.SET)).isdisjoint(fake.asked(Op.GET))
    store.close()
    with pytest.raises(StoreClosedError):
        pickle.dumps(store)
