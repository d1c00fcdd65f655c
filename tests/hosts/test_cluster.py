"""The harness of hosts: they are apart, they see each other, and what is done to one is done to it alone."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import namespaces
import pytest
import residents
from cluster import Cluster, Process
from harness import ChildFailed, Overrun


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as cluster:
        yield cluster


@pytest.fixture
def pair(cluster: Cluster) -> tuple[Process, Process]:
    """A process on each host, and a connection between them."""
    listening = cluster.hosts[0].start(residents.listen, cluster.hosts[0].address)
    connecting = cluster.hosts[1].start(residents.connect, listening.hear())
    assert connecting.hear() == listening.hear() == "connected"
    return listening, connecting


def ask(child: Process, verb: str, what: object = None) -> object:
    child.say((verb, what))
    return child.hear()


# -- apart ------------------------------------------------------------------------------------------------------------


def test_each_host_has_a_name_pids_and_links_of_its_own() -> None:
    with Cluster(3) as cluster:
        for host in cluster.hosts:
            host.start(residents.who)
        cluster.go()
        seen = cluster.results()
        assert [each["name"] for each in seen] == ["node0", "node1", "node2"]
        assert len({each["pid"] for each in seen}) == 1, "the first process of each: the same number"
        assert len({child.pid for child in cluster.children}) == 3
        for each in seen:
            assert each["proc"] == str(each["pid"])
            assert each["links"] == ["eth0", "lo"]
            assert each["others"] == [host.address for host in cluster.hosts]
            assert each["shm"] == []


def test_one_name_on_two_hosts_is_two_segments(cluster: Cluster, name: str) -> None:
    for host in cluster.hosts:
        for i in range(2):
            host.start(residents.segment, name, f"{host.name}.{i}".encode())
    cluster.go()
    assert cluster.results() == 2 * [[b"node0.0", b"node0.1"]] + 2 * [[b"node1.0", b"node1.1"]]
    assert not Path(f"/dev/shm/shmstore.{name}").exists()


def test_ranks_go_through_one_gate_and_answer_in_order(cluster: Cluster) -> None:
    address = cluster.serve(cluster.hosts[0]).address
    spans = cluster.start_ranks(2, residents.meet, address, 3)
    cluster.go()
    assert [child.hear() for child in spans] == ["done"] * 4
    for child in spans:
        child.say(None)
    for came_and_left in zip(*cluster.results(), strict=True):
        came, left = zip(*came_and_left, strict=True)
        assert max(came) <= min(left), "one clock for all hosts, and nobody left before all had come"


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_a_cut_link_is_silent_and_a_restored_one_goes_on(
    cluster: Cluster, pair: tuple[Process, Process], which: int
) -> None:
    cluster.hosts[which].cut()
    for child in pair:
        assert ask(child, "send", b"from %d" % child.index) == 0, "nobody tells it"
    for child in pair:
        assert ask(child, "recv", 0.3) == "silence"
    cluster.hosts[which].restore()
    first, second = pair
    assert ask(first, "recv", 20) == b"from %d" % second.index
    assert ask(second, "recv", 20) == b"from %d" % first.index


def test_a_connect_through_a_cut_is_not_refused(cluster: Cluster) -> None:
    listening = cluster.hosts[0].start(residents.listen, cluster.hosts[0].address)
    address = listening.hear()
    cluster.hosts[0].cut()
    connecting = cluster.hosts[1].start(residents.connect, address)
    assert not connecting._conn.poll(0.3)
    cluster.hosts[0].restore()
    assert connecting.hear() == listening.hear() == "connected"


def test_a_dropped_host_says_nothing_and_all_of_it_is_dead(cluster: Cluster, pair: tuple[Process, Process]) -> None:
    there, gone = pair
    assert cluster.hosts[1].start(residents.with_a_child).hear() == "both"
    inside = namespaces.of_process(gone.pid)
    cluster.drop(cluster.hosts[1])
    assert [child.alive for child in cluster.children] == [True, False, False]
    assert gone.wait() == -signal.SIGKILL
    assert namespaces.holders(inside) == [], "nor a process that the test knew nothing of"
    assert ask(there, "recv", 0.3) == "silence"
    assert ask(there, "send", b"is there anybody?") == 0
    assert ask(there, "recv", 0.3) == "silence"
    with pytest.raises(ChildFailed, match="KeyError"):
        cluster.hosts[1].start(residents.who)
    cluster.boot(cluster.hosts[1])
    assert ask(there, "recv", 20) == "ConnectionResetError", "the new one knows nothing of that connection"
    again = cluster.hosts[1].start(residents.who)
    again.wait_ready()
    again.say(None)
    assert again.result()["name"] == "node1"


def test_a_killed_process_is_seen_at_once_and_its_host_goes_on(cluster: Cluster, pair: tuple[Process, Process]) -> None:
    there, killed = pair
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert ask(there, "recv", 20) == b""
    beside = cluster.hosts[1].start(residents.who)
    beside.wait_ready()
    beside.say(None)
    beside.result()


# -- its own end ------------------------------------------------------------------------------------------------------


def test_one_that_raises_is_shown() -> None:
    with Cluster(1) as cluster:
        child = cluster.hosts[0].start(residents.fails)
        with pytest.raises(ChildFailed, match="what it says"):
            child.result()


def test_one_that_hangs_is_shown_with_the_stacks_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    with Cluster(2, budget=2.0) as cluster:
        cluster.relay(cluster.serve(cluster.hosts[0]).address)
        children = [host.start(residents.stuck) for host in cluster.hosts]
        cluster.go()
        with pytest.raises(Overrun, match="was silent") as caught:
            children[1].result()
    assert str(caught.value).count("in in_here") == 2
    assert "in _serve_store" in str(caught.value)
    assert "relay.py" in str(caught.value)


SCRIPT = """
import os, pickle, sys
sys.path[:] = pickle.loads(sys.stdin.buffer.read())
import residents
from cluster import Cluster
with Cluster(2) as cluster:
    cluster.relay(cluster.serve(cluster.hosts[0]).address)
    for host in cluster.hosts:
        host.start(residents.with_a_child).hear()
    pids = [child.pid for child in (*cluster._services, *cluster.children)]
    pids += [host.init for host in (*cluster.hosts, cluster._wire)]
    os.write(1, pickle.dumps((cluster._nursery.pid, pids, cluster.made)))
    cluster.children[0].hear()
"""


@pytest.mark.parametrize("who", ["the test", "the nursery"])
def test_a_sigkill_leaves_nothing(who: str) -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as test:
        assert test.stdin is not None
        assert test.stdout is not None
        with test.stdin as stdin:
            stdin.write(pickle.dumps(sys.path))
        nursery, pids, inside = pickle.load(test.stdout)
        assert namespaces.holders(inside) != []
        ends = [os.pidfd_open(pid) for pid in (nursery, *pids)]
        os.kill(test.pid if who == "the test" else nursery, signal.SIGKILL)
        for fd in ends:
            assert select.select([fd], [], [], 20)[0], "it lives on"
            os.close(fd)
        test.wait(20)
    for line in namespaces.holders(inside):
        pytest.fail(f"left behind: {line}")
