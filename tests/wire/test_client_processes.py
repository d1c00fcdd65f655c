"""TCPStore across fork, and under Ctrl-C: real processes, real signals."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from fake_server import Fake
from harness import Me, Team

from shmstore.tcp.client import TCPStore
from shmstore.tcp.codec import Op

VERBS = ["get", "wait", "multi_get", "queue_pop", "barrier"]


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as fake:
        yield fake


def call(store: TCPStore, verb: str) -> object:
    if verb == "barrier":
        return store.barrier("gone", 2, 60)
    if verb == "queue_pop":
        store.set_timeout(60)
        return store.queue_pop("gone")
    return getattr(store, verb)("gone" if verb == "get" else ["gone"], 60)


def interrupted(me: Me, port: int, verb: str) -> tuple[float, bytes]:
    with TCPStore("127.0.0.1", port, timeout=10) as store:
        store.set("k", b"before")
        me.say("waiting")
        try:
            call(store, verb)
        except KeyboardInterrupt:
            caught = time.monotonic()
        else:
            raise AssertionError("it was not interrupted")
        return caught, store.get("k")  # the next call is whole


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_ends_a_wait_at_once_and_leaves_the_next_call_whole(fake: Fake, team: Team, verb: str) -> None:
    fake.on = lambda peer, request: bytes(8) if request.op is Op.QUEUE_POP else NotImplemented
    child = team.start(interrupted, fake.port, verb)
    assert child.hear() == "waiting"
    fake.until(lambda: fake.asked(Op.BARRIER if verb == "barrier" else Op.WAIT))
    sent = time.monotonic()
    child.signal(signal.SIGINT)
    caught, value = child.result()
    assert value == b"before"
    assert caught - sent < 5
    (waited,) = set(fake.asked(Op.BARRIER if verb == "barrier" else Op.WAIT))
    last = [request.op for index, request in fake.requests if index == waited][-1]
    assert last in (Op.WAIT, Op.BARRIER), "a connection was used again that owes an answer"
    fake.until(lambda: fake.peers[waited].ended.is_set())


def interrupted_often(me: Me, port: int) -> int:
    """Counts under a rain of signals: each call gives its own answer, or ends with the interrupt."""
    with TCPStore("127.0.0.1", port, timeout=10) as store:
        me.say("counting")
        hits = i = 0
        while hits < 20:
            try:
                while True:  # within the try: a signal may come in the jump back, too
                    i += 1
                    store.set("k", b"%d" % i)
                    got = store.get("k")
                    assert got == b"%d" % i, (got, i)
            except KeyboardInterrupt:
                hits += 1
                me.say("hit")
        return hits


def test_no_answer_is_taken_for_another_calls_under_a_rain_of_ctrl_c(fake: Fake, team: Team) -> None:
    child = team.start(interrupted_often, fake.port)
    assert child.hear() == "counting"
    for _ in range(20):
        before = len(fake.requests)
        fake.until(lambda before=before: len(fake.requests) > before + 5)  # type: ignore[misc]
        child.signal(signal.SIGINT)
        assert child.hear() == "hit"
    assert child.result() == 20


def forked(me: Me, store: TCPStore) -> bytes:
    store.set("child", b"1")
    value = store.get("parent", 10)
    store.close()
    return value


def test_a_forked_child_has_connections_of_its_own(fake: Fake, team: Team) -> None:
    with TCPStore("127.0.0.1", fake.port, timeout=20) as store:
        store.set("k", b"v")
        child = team.start(forked, store, how="fork")
        assert store.get("child") == b"1"
        store.set("parent", b"2")
        assert child.result() == b"2"
        store.set("k", b"after")  # the child's close left the parent's connections alone
        assert store.get("k") == b"after"
        assert not fake.peers[0].ended.is_set()
        by_child = {i for i, r in fake.requests if r.op is Op.SET and r.fields[0] == b"/child"}
        by_parent = {i for i, r in fake.requests if r.op is Op.SET and r.fields[0] != b"/child"}
        assert by_child and not by_child & by_parent


def test_a_fork_beside_a_waiting_thread(fake: Fake, team: Team) -> None:
    with TCPStore("127.0.0.1", fake.port, timeout=20) as store:
        got: list[bytes] = []
        waiter = threading.Thread(target=lambda: got.append(store.get("later", 20)))
        waiter.start()
        fake.until(lambda: fake.asked(Op.WAIT))
        child = team.start(forked, store, how="fork")
        store.set("parent", b"2")
        assert child.result() == b"2"
        store.set("later", b"here")
        waiter.join(20)
        assert got == [b"here"]
        assert os.getpid() != child.pid


# -- hosting ----------------------------------------------------------------------------------------------------------


def worker(me: Me, port: int) -> int:
    with TCPStore("127.0.0.1", port, 2, timeout=20) as store:
        store.barrier("all", 2, 20)
        return store.add("n", 1)


def test_the_master_hosts_and_waits_for_workers(team: Team) -> None:
    pytest.importorskip("shmstore.tcp.server", reason="shmstore's own server is not built")
    with TCPStore("127.0.0.1", 0, is_master=True, timeout=20) as first:
        assert first.port
    port = first.port
    child = team.start(worker, port)
    with TCPStore("127.0.0.1", port, 2, is_master=True, timeout=30) as master:
        master.barrier("all", 2, 20)
        assert child.result() == 1
        assert master.get("n") == b"1"
        assert master.list_keys() and master.num_keys() == len(master.list_keys())
        with pytest.raises(OSError):
            TCPStore("127.0.0.1", port, is_master=True, timeout=1)
    with pytest.raises(ConnectionError):
        TCPStore("127.0.0.1", port, timeout=0)


def test_tenants_share_a_server() -> None:
    pytest.importorskip("shmstore.tcp.server", reason="shmstore's own server is not built")
    one = TCPStore("127.0.0.1", 0, is_master=True, timeout=20, multi_tenant=True)
    with TCPStore("127.0.0.1", one.port, is_master=True, timeout=20, multi_tenant=True) as two:
        two.set("k", b"v")
        one.close()
        assert two.get("k") == b"v"
