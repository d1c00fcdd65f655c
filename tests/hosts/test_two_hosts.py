"""Stores across hosts without HybridStore: our client and torch's, a barrier through a relay, hosts that are gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import residents
from cluster import Cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as cluster:
        yield cluster


def test_our_client_and_torchs_on_two_hosts(cluster: Cluster) -> None:
    pytest.importorskip("torch.distributed", reason="torch's client")
    address = cluster.serve(cluster.hosts[0]).address
    assert cluster.run(1, residents.either_client, address) == [[b"node0", b"node1"]] * 2


def test_a_flat_barrier_through_the_relay(cluster: Cluster) -> None:
    """Each rank asks for itself: the messages of a barrier grow with the ranks."""
    relay = cluster.relay(cluster.serve(cluster.hosts[0]).address, 0.001)
    ranks = cluster.start_ranks(2, residents.meet, relay.address, 3)
    for rank in ranks:
        rank.wait_ready()
    relay.quiet()
    relay.reset()
    for rank in ranks:
        rank.say(None)
    assert [rank.hear() for rank in ranks] == ["done"] * 4
    counts = relay.counts()
    assert counts.total.ops["ADD"] == 3 * 4
    assert counts.total.ops["SET"] == 3, "who is last opens it"
    assert counts.total.unread == 0
    for host in cluster.hosts:
        assert counts.by_host[host.address].ops["ADD"] == 3 * 2
    for rank in ranks:
        rank.say(None)
    for came_and_left in zip(*cluster.results(), strict=True):
        came, left = zip(*came_and_left, strict=True)
        assert min(left) - max(came) >= 0.004, "an ADD and its answer, a SET and the release"


# -- gone -------------------------------------------------------------------------------------------------------------


def test_ranks_of_a_host_that_is_gone_are_missing_at_a_barrier(cluster: Cluster) -> None:
    address = cluster.serve(cluster.hosts[0]).address
    ranks = cluster.start_ranks(2, residents.meet_without_some, address, 1)
    cluster.go()
    assert [rank.hear() for rank in ranks[2:]] == ["there"] * 2
    cluster.drop(cluster.hosts[1])
    said = [rank.result() for rank in ranks[:2]]
    assert "missing_ranks=[2, 3]" in said[0]
    assert "check rank 0" in said[1]


def test_a_call_to_a_server_whose_host_is_gone_ends(cluster: Cluster) -> None:
    """Its power is cut: nobody says so. What needs no wait is given 5 s, however short its timeout."""
    server, here = cluster.hosts
    child = here.start(residents.verbs, cluster.serve(server).address)
    assert child.hear() == "open"
    cluster.drop(server)
    child.say(("get", "k", 0.1))
    assert "StoreConnectionError" in (said := child.hear())
    assert "no answer" in said


IDLE = ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 1))


def test_keepalive_ends_a_wait_on_a_host_that_is_gone(cluster: Cluster) -> None:
    """Our client's probes end it after a minute; here with others, of the same kind."""
    host, here = cluster.hosts
    server = cluster.serve(host)
    child = here.start(residents.wait_with, server.address, IDLE)
    assert child.hear() == "open"
    child.say("wait")
    while server.stats().waiting == 0:
        pass
    child.say("acknowledged?")
    assert child.hear() == "acknowledged"
    cluster.drop(host)
    said, took = child.result()
    assert said.startswith("StoreConnectionError")
    assert took >= 1, "a probe, and a second without an answer"


def test_a_wait_that_is_sent_to_a_host_that_is_gone_ends(cluster: Cluster) -> None:
    """While something is not acknowledged there are no probes: TCP_USER_TIMEOUT is what ends it then."""
    host, here = cluster.hosts
    child = here.start(residents.wait_with, cluster.serve(host).address, (*IDLE, (socket.TCP_USER_TIMEOUT, 1000)))
    assert child.hear() == "open"
    cluster.drop(host)
    child.say("wait")
    said, took = child.result()
    assert said.startswith("StoreConnectionError")
    assert took >= 1
