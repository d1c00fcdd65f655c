"""The relay between hosts and a server: its delay, its counts, and what it does with ends and resets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import residents
from cluster import Cluster, Process


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as cluster:
        yield cluster


def done(*children: Process) -> None:
    for child in children:
        assert child.hear() == "done"


def ask(child: Process, *what: object) -> object:
    child.say(what)
    return child.hear()


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.01])
def test_each_direction_takes_its_delay(cluster: Cluster, delay_s: float) -> None:
    relay = cluster.relay(cluster.serve(cluster.hosts[0]).address, delay_s)
    child = cluster.hosts[1].start(residents.sets_and_gets, relay.address, "k", 20)
    cluster.go()
    done(child)
    child.say(None)
    assert child.result() >= 2 * delay_s
    assert min(relay.counts().late_us) >= 0


def test_another_delay_is_for_what_comes(cluster: Cluster) -> None:
    relay = cluster.relay(cluster.serve(cluster.hosts[0]).address, 0.0)
    child = cluster.hosts[1].start(residents.sets_and_gets, relay.address, "k", 3)
    child.wait_ready()
    relay.delay(0.02)
    child.say(None)
    done(child)
    child.say(None)
    assert child.result() >= 0.04


def test_counts_are_exact(cluster: Cluster) -> None:
    """Of our client: a set is SET and PING in one write, a get is one GET; the answers, a PING and a value."""
    relay = cluster.relay(cluster.serve(cluster.hosts[0]).address, 0.0)
    first = cluster.hosts[0].start(residents.sets_and_gets, relay.address, "a", 7)
    second = cluster.hosts[1].start(residents.sets_and_gets, relay.address, "bb", 5)
    for child in (first, second):
        child.wait_ready()
    relay.quiet()
    relay.reset()
    for child in (first, second):
        child.say(None)
    done(first, second)
    counts = relay.counts()
    ours, theirs = (counts.by_host[host.address] for host in cluster.hosts)
    assert ours.ops == {"SET": 7, "PING": 7, "GET": 7}
    assert theirs.ops == {"SET": 5, "PING": 5, "GET": 5}
    for tally, n, key in ((ours, 7, 3), (theirs, 5, 4)):
        assert tally.answers == 2 * n
        assert (tally.writes_up, tally.writes_down) == (2 * n, 2 * n)
        assert tally.bytes_up == n * ((1 + 8 + key + 8 + 10) + 5 + (1 + 8 + key))
        assert tally.bytes_down == n * (4 + 8 + 10)
        assert tally.unread == 0
    assert counts.total.requests == 36
    assert counts.total.messages == 60
    assert counts.total.bytes == ours.bytes + theirs.bytes
    assert sorted(tally.requests for _, tally in counts.by_connection) == [15, 21]
    relay.reset()
    assert relay.counts().total.messages == 0
    assert relay.counts().total.bytes == 0
    for child in (first, second):
        child.say(None)
        child.result()


def test_counts_of_torchs_client_are_exact(cluster: Cluster) -> None:
    pytest.importorskip("torch.distributed", reason="torch's client")
    relay = cluster.relay(cluster.serve(cluster.hosts[0]).address, 0.0)
    child = cluster.hosts[1].start(residents.sets_and_gets_of_torch, relay.address, "k", 4)
    child.wait_ready()
    assert relay.counts().total.ops == {"VALIDATE": 1, "PING": 1}
    relay.reset()
    child.say(None)
    done(child)
    total = relay.counts().total
    assert total.ops == {"SET": 4, "WAIT": 4, "GET": 4}
    assert total.answers == 8
    assert total.unread == 0
    child.say(None)
    child.result()


def test_waits_that_are_taken_back_are_counted(cluster: Cluster) -> None:
    """The answer to a WAIT that was taken back is that to CANCEL_WAIT."""
    relay = cluster.relay(cluster.serve(cluster.hosts[0]).address, 0.001)
    child = cluster.hosts[1].start(residents.verbs, relay.address)
    assert child.hear() == "open"
    relay.quiet()
    relay.reset()
    assert str(ask(child, "wait", ["never"], 1.0)).startswith("StoreTimeoutError")
    total = relay.counts().total
    assert total.ops["WAIT"] == total.ops["CANCEL_WAIT"] == 1
    before = total.answers
    assert ask(child, "add", "n", 1) == 1
    total = relay.counts().total
    assert total.ops["ADD"] == 1
    assert total.answers == before + 1
    assert total.unread == 0


def test_a_delay_is_no_limit_of_the_throughput(cluster: Cluster) -> None:
    """32 MiB, in pieces of 50 kB and less, there and back: one piece after the other would take 64 s."""
    echo = cluster.hosts[0].start(residents.echo, cluster.hosts[0].address)
    relay = cluster.relay(echo.hear(), 0.05)
    same, took = cluster.hosts[1].start(residents.stream, relay.address, 32 << 20, b"1").result()
    assert same, "in order, to the last byte, and the end of it behind"
    assert 0.1 <= took < 20
    total = relay.counts().total
    assert total.bytes_up == total.bytes_down == 32 << 20
    assert total.unread > 0, "it is no c10d"


def test_several_streams_and_an_idle_one(cluster: Cluster) -> None:
    echo = cluster.hosts[0].start(residents.echo, cluster.hosts[0].address)
    relay = cluster.relay(echo.hear(), 0.001)
    streams = [host.start(residents.stream, relay.address, 100_000, host.name.encode()) for host in cluster.hosts]
    assert all(stream.result()[0] for stream in streams)


def test_an_end_and_a_kill_pass_through(cluster: Cluster) -> None:
    listening = cluster.hosts[0].start(residents.listen, cluster.hosts[0].address)
    relay = cluster.relay(listening.hear(), 0.001)
    connecting = cluster.hosts[1].start(residents.connect, relay.address)
    assert connecting.hear() == listening.hear() == "connected"
    ask(connecting, "send", b"last words")
    ask(connecting, "shut", None)
    assert ask(listening, "recv", 20) == b"last words"
    assert ask(listening, "recv", 20) == b""
    ask(listening, "send", b"and of the other")
    listening.kill()
    assert ask(connecting, "recv", 20) == b"and of the other"
    assert ask(connecting, "recv", 20) == b""
    relay.quiet()
    assert relay.counts().total.connections == 1


def test_resets(cluster: Cluster) -> None:
    """All connections are reset: an error for whoever waits, and the next call has a new connection."""
    relay = cluster.relay(cluster.serve(cluster.hosts[0]).address, 0.001)
    waiting = cluster.hosts[1].start(residents.verbs, relay.address)
    idle = cluster.hosts[1].start(residents.verbs, relay.address)
    assert waiting.hear() == idle.hear() == "open"
    relay.quiet()
    waiting.say(("wait", ["never"], 60))
    while relay.counts().total.ops["WAIT"] == 0:
        pass
    assert relay.reset_connections() >= 2
    assert "StoreConnectionError" in waiting.hear()
    ask(idle, "add", "n", 0)  # an error, or a new connection: as long as it was idle
    assert ask(idle, "add", "n", 1) == 1
    assert ask(waiting, "add", "n", 1) == 2
    assert relay.counts().total.unread == 0


def test_a_server_that_is_not_there_is_no_server(cluster: Cluster) -> None:
    relay = cluster.relay((cluster.hosts[0].address, 9), 0.001)
    assert cluster.hosts[1].start(residents.how_it_ends, relay.address).result() == "ConnectionResetError"
    assert relay.counts().total.connections == 1


def test_a_cut_host_does_not_hold_up_the_others(cluster: Cluster) -> None:
    a, b = cluster.hosts
    relay = cluster.relay(cluster.serve(a).address, 0.001)
    cut, other = b.start(residents.verbs, relay.address), a.start(residents.verbs, relay.address)
    assert cut.hear() == other.hear() == "open"
    b.cut()
    cut.say(("set", "late", b"value"))
    assert ask(other, "check", ["late"]) is False
    assert ask(other, "add", "n", 1) == 1
    b.restore()
    assert cut.hear() is None
    assert ask(other, "get", "late") == b"value"
