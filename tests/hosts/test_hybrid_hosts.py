"""HybridStore on hosts of their own, with links between them: whole, with ranks killed, links cut, hosts gone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import residents
from cluster import Address, Cluster, Host, Process, Served

Ranks = list[Process]
LONG = 20.0


@pytest.mark.parametrize(("nodes", "each"), [(2, 2), (2, 4), (3, 3), (4, 2), (4, 4)])
def test_all_together(nodes: int, each: int) -> None:
    """Everybody has everybody's values; and what each node says over the wire does not grow with its ranks."""
    rounds, world = 4, nodes * each
    with Cluster(nodes) as cluster:
        relay = cluster.relay(cluster.serve(cluster.hosts[0]).address, 0.001)
        ranks = cluster.start_ranks(each, residents.together, relay.address, rounds)
        for rank in ranks:
            rank.wait_ready()
        relay.quiet()
        relay.reset()
        for rank in ranks:
            rank.say(None)
        assert [rank.hear() for rank in ranks] == ["done"] * world
        counts = relay.counts()
        for rank in ranks:
            rank.say(None)
        for result in cluster.results():
            for i, (gathered, given, shared) in enumerate(result):
                values = [f"{i}.{rank}".encode() for rank in range(world)]
                assert (gathered, given, shared) == (values, values[i % world], values)
        assert counts.total.unread == 0
        meetings = 5 * rounds
        for host in cluster.hosts:
            ops = counts.by_host[host.address].ops
            assert meetings <= ops["WAIT"] <= 2 * meetings, "one a node; more where a slice was over"
            assert ops["SET"] <= 2 * meetings, "one a node, and who is there, where that took longer"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two hosts, and one for the server."""
    with Cluster(3, budget=70) as cluster:
        yield cluster


@pytest.fixture
def served(cluster: Cluster) -> Served:
    return cluster.serve(cluster.hosts[2])


@pytest.fixture
def start(cluster: Cluster, served: Served) -> Callable[[float], Ranks]:
    """Two ranks on each of the two hosts, which have met once."""

    def start(timeout: float) -> Ranks:
        address: Address = served.address
        ranks = cluster.start_ranks(2, residents.waits_at_will, address, timeout, hosts=cluster.hosts[:2])
        cluster.go()
        come(ranks)
        assert [passed(rank) for rank in ranks] == [0, 1, 2, 3]
        return ranks

    return start


def come(ranks: Sequence[Process], verb: str = "wait") -> None:
    for rank in ranks:
        rank.say(verb)
    for rank in ranks:
        assert rank.hear() == "coming"


def passed(rank: Process) -> Any:
    said, facts, _ = rank.hear()
    assert facts == {}, said
    return said


def meet_again(ranks: Sequence[Process]) -> None:
    """All reset it, and it is whole."""
    come(ranks, "reset")
    assert [passed(rank) for rank in ranks] == [None] * len(ranks)
    come(ranks)
    assert [passed(rank) for rank in ranks] == list(range(len(ranks)))


def waiting(served: Served, n: int) -> None:
    """So many leaders wait at the server."""
    while served.stats().waiting != n:
        pass


def test_a_killed_member_is_named_on_all_hosts(start: Callable[[float], Ranks], served: Served) -> None:
    ranks = start(LONG)
    come(ranks[:3])
    waiting(served, 2)
    ranks[3].kill()
    for rank in ranks[:3]:
        said, facts, _ = rank.hear()
        assert said.startswith("PeerAtBarrierDiedError"), said
        assert facts["rank"] == 3
        assert "node 1" in said
        assert facts["pid"] > 0


def test_a_leaders_death_hangs_nobody(start: Callable[[float], Ranks], served: Served) -> None:
    """It had arrived: the epoch is passed, by the lead of another; the next one misses it."""
    ranks = start(LONG)
    come([ranks[2]])
    waiting(served, 1)  # the first of its host leads
    come([ranks[3]])
    come([ranks[0]])
    waiting(served, 2)
    ranks[2].kill()
    come([ranks[1]])
    assert [passed(ranks[i]) for i in (0, 1, 3)] == [0, 1, 3]
    come([ranks[i] for i in (0, 1, 3)])
    for i in (0, 1, 3):
        said, facts, _ = ranks[i].hear()
        assert (said.partition(":")[0], facts["rank"]) == ("PeerAtBarrierDiedError", 2), said


def test_a_host_that_is_gone_is_missing_with_its_ranks(
    cluster: Cluster, start: Callable[[float], Ranks], served: Served
) -> None:
    ranks = start(2.0)
    cluster.drop(cluster.hosts[1])
    come(ranks[:2])
    heard = [rank.hear() for rank in ranks[:2]]
    assert [facts["missing_ranks"] for _, facts, _ in heard] == [(2, 3)] * 2, heard
    assert any("rank 2 (node 1, did not arrive)" in said for said, _, _ in heard), "who timed out says where they are"


def _lost(ranks: Sequence[Process], within: float) -> None:
    for rank in ranks:
        said, _, took = rank.hear()
        assert said.startswith("StoreConnectionError"), said
        assert re.search("lost|no answer|no connection", said), said
        assert took < within


def test_a_cut_link_is_a_lost_world_for_that_host_alone(
    cluster: Cluster, start: Callable[[float], Ranks], served: Served
) -> None:
    """The others pass, as all had come. Restored, it meets the others again after a reset."""
    ranks = start(LONG)
    come(ranks[1:])
    waiting(served, 2)
    cut: Host = cluster.hosts[1]
    cut.cut()
    come(ranks[:1])
    assert [passed(rank) for rank in ranks[:2]] == [0, 1]
    _lost(ranks[2:], 15.0)
    cut.restore()
    meet_again(ranks)


@pytest.mark.parametrize("how", ["killed", "gone"])
def test_a_lost_server_is_told_to_all(
    cluster: Cluster, start: Callable[[float], Ranks], served: Served, how: str
) -> None:
    ranks = start(LONG)
    come(ranks[1:])
    waiting(served, 2)
    if how == "killed":
        served.process.kill()
    else:
        cluster.drop(cluster.hosts[2])
    _lost(ranks[1:], 15.0)
    come(ranks[:1])
    _lost(ranks[:1], 15.0)
