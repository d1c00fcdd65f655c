"""hybrid:// and from_env, the checkpoint barrier, docs/examples/hybrid.py: how a HybridStore is come by, and left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Me, Team

import shmstore
from shmstore import (
    BrokenBarrierError,
    HashStore,
    HybridStore,
    PrefixStore,
    ShmStore,
    TCPStore,
    TCPStoreServer,
)
from shmstore._names import listed
from shmstore.checkpoint import BarrierConfig, HybridStoreBarrier, create_barrier_from_config
from shmstore.testing.contract import Later, in_threads

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "hybrid.py"
LONG = 30
VARIABLES = [
    "SHMSTORE_JOB",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_USE_AGENT_STORE",
]


@pytest.fixture
def port() -> int:
    with HashStore() as keys, TCPStoreServer(keys, "127.0.0.1", 0) as server:
        return server.port


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)

    def put(rank: int, port: int, **more: str) -> None:
        values = {
            "RANK": str(rank),
            "WORLD_SIZE": "4",
            "LOCAL_RANK": str(rank % 2),
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": str(rank // 2),
            "GROUP_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **more,
        }
        for variable, value in values.items():
            monkeypatch.setenv(variable, value)

    return put


def closed_together(stores: list[HybridStore]) -> None:
    in_threads(len(stores), lambda i: stores[i].close())


def test_a_url(port: int) -> None:
    stores: list[Any] = [None] * 4

    def rank(i: int) -> None:
        url = f"hybrid://127.0.0.1:{port}?local_world_size=2&timeout=30"
        stores[i] = shmstore.connect(url, rank=i, world_size=4)
        stores[i].barrier("start", 4)

    in_threads(4, rank)
    places = [(one.rank, one.node_rank, one.local_rank, one.num_nodes, one.local_world_size) for one in stores]
    assert places == [(0, 0, 0, 2, 2), (1, 0, 1, 2, 2), (2, 1, 0, 2, 2), (3, 1, 1, 2, 2)]
    assert stores[3].node.name == f"hybrid.127.0.0.1.{port}.1"
    assert [one.rank for one in stores[3].peers()] == [0, 1]
    closed_together(stores)


def test_the_host_waits_for_the_other_nodes(port: int) -> None:
    url = f"hybrid://127.0.0.1:{port}?local_world_size=1&timeout=30"
    host = shmstore.connect(url, rank=0, world_size=2)
    other = shmstore.connect(url, rank=1, world_size=2)
    call = Later(host.close)
    other.set("k", b"1")
    assert other.get("k") == b"1"
    other.close()
    call.result()


def test_a_host_that_nobody_leaves_waits_five_seconds(port: int) -> None:
    url = f"hybrid://127.0.0.1:{port}?local_world_size=1&timeout=30"
    with shmstore.connect(url, rank=1, world_size=1 + 1, is_master=True) as host:
        other = shmstore.connect(url, rank=0, world_size=2, is_master=False)
        start = time.monotonic()
        host.close()
        assert time.monotonic() - start >= 5
    other.close()


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("hybrid://h:1", {"rank": 0}, "needs rank and world_size"),
        ("hybrid://h:1", {"rank": 0, "world_size": 2}, "LOCAL_WORLD_SIZE"),
        ("hybrid://h:1?local_world_size=2", {"rank": 0, "world_size": 3}, "no multiple"),
        ("hybrid://h:1?local_world_size=0", {"rank": 0, "world_size": 3}, "local_world_size must be 1 to 3, got 0"),
        ("hybrid://h:0?local_world_size=1", {"rank": 0, "world_size": 1}, "a port that all ranks know"),
        ("hybrid://h?local_world_size=1", {"rank": 0, "world_size": 1}, "hybrid://HOST:PORT"),
        ("hybrid://h:1?local_world_size=x", {}, "whole number"),
        ("hybrid://h:1?persist=true", {}, "no option"),
        ("hybrid://", {}, "RANK"),
        ("hybrid://?local_world_size=2", {}, "from the environment"),
    ],
)
def test_urls_that_are_refused(environ: Any, url: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shmstore.connect(url, **options)


@pytest.mark.parametrize("how", ["from_env", "connect"])
def test_the_environment(environ: Any, port: int, how: str) -> None:
    stores: list[HybridStore] = []
    for rank in range(4):
        environ(rank, port)
        made = HybridStore.from_env(timeout=LONG) if how == "from_env" else shmstore.connect("hybrid://", timeout=LONG)
        assert isinstance(made, HybridStore)
        stores.append(made)
    assert [one.rank for one in stores] == [0, 1, 2, 3]
    in_threads(4, lambda i: stores[i].barrier("b", 4))
    closed_together(stores)


def test_the_agents_store(environ: Any) -> None:
    with HashStore() as keys, TCPStoreServer(keys, "127.0.0.1", 0) as server:
        environ(
            0,
            server.port,
            TORCHELASTIC_USE_AGENT_STORE="True",
            TORCHELASTIC_RUN_ID="a/b",
            TORCHELASTIC_RESTART_COUNT="3",
        )
        with HybridStore.from_env(timeout=LONG) as store:
            assert isinstance(store.world, PrefixStore)
            assert isinstance(store.node, ShmStore)
            assert store.node.name == f"hybrid.a%2Fb.{server.port}.3.0"
            store.set("k", b"1")
            assert keys.get("shmstore/a/b/3/k", 0) == b"1"
            environ(1, server.port)
            HybridStore.from_env(timeout=LONG).close()  # a segment stays until all its ranks have been there


def test_what_attempts_before_left_is_removed(environ: Any, port: int, team: Team) -> None:
    run = f"run-{os.getpid()}"
    for attempt in (0, 1):
        child = team.start(_stays, f"hybrid.{run}.{port}.{attempt}.0")
        child.hear()
        child.kill()
    more = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "1"}
    environ(0, port, **more, TORCHELASTIC_RUN_ID=run, TORCHELASTIC_RESTART_COUNT="2")
    with HybridStore.from_env(timeout=LONG):
        assert [one for one in listed() if run in one] == [f"hybrid.{run}.{port}.2.0"]


def _stays(me: Me, name: str) -> None:
    store = ShmStore(name)
    me.say(store.name)
    me.hear()


@pytest.mark.parametrize("half", ["node", "world"])
def test_a_half_that_was_closed_before_keeps_the_other_no_longer(port: int, half: str) -> None:
    store: Any = shmstore.connect(f"hybrid://127.0.0.1:{port}?local_world_size=1&timeout=30", rank=0, world_size=1)
    name = store.node.name
    getattr(store, half).close()
    store.close()
    store.close()
    assert name not in listed()
    with pytest.raises(shmstore.StoreConnectionError):
        TCPStore("127.0.0.1", port, timeout=0.1)


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a host waits for the others."""
    waits = threading.Event()
    whole = TCPStore.wait

    def wait(store: TCPStore, keys: Any, timeout: Any = None) -> None:
        if "hybrid/bye" in str(keys):
            waits.set()
        whole(store, keys, timeout)

    monkeypatch.setattr(TCPStore, "wait", wait)
    return waits


def test_two_threads_close_the_host_and_both_wait(port: int, leaving: threading.Event) -> None:
    url = f"hybrid://127.0.0.1:{port}?local_world_size=1&timeout=30"
    host = shmstore.connect(url, rank=0, world_size=2)
    other = shmstore.connect(url, rank=1, world_size=2)
    calls = [Later(host.close)]
    assert leaving.wait(LONG)
    calls.append(Later(host.close))
    calls[1]._thread.join(0.3)
    assert not calls[1].done, "it does not end the server under the one that waits"
    other.set("k", b"1")
    other.close()
    for call in calls:
        call.result()


def test_a_signal_handler_closes_the_host_that_is_closing(port: int, leaving: threading.Event) -> None:
    url = f"hybrid://127.0.0.1:{port}?local_world_size=1&timeout=30"
    host = shmstore.connect(url, rank=0, world_size=2)
    other = shmstore.connect(url, rank=1, world_size=2)
    handled = threading.Event()

    def handler(*_: object) -> None:
        host.close()
        handled.set()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        call = Later(lambda: leaving.wait(LONG) and os.kill(os.getpid(), signal.SIGUSR1))
        host.close()
        call.result()
        assert handled.is_set()
    finally:
        signal.signal(signal.SIGUSR1, before)
        other.close()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"RANK": "9"}, "RANK 9 of WORLD_SIZE 4"),
        ({"LOCAL_WORLD_SIZE": "3"}, "same number"),
        ({"LOCAL_RANK": "0"}, "same number"),
        ({"GROUP_WORLD_SIZE": "3"}, "same number"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT must be 1 to 65535"),
        ({"TORCHELASTIC_RESTART_COUNT": "-1"}, "TORCHELASTIC_RESTART_COUNT must be a number"),
    ],
)
def test_environments_that_are_refused(environ: Any, port: int, more: dict[str, str], said: str) -> None:
    environ(1, port, **more)
    with pytest.raises(ValueError, match=said):
        HybridStore.from_env()


# -- the checkpoint barrier -----------------------------------------------------------------------------------------


@pytest.fixture
def barriers(name: str, port: int) -> Iterator[list[HybridStoreBarrier]]:
    made: list[Any] = [None] * 4

    def rank(i: int) -> None:
        args = {
            "global_rank": i,
            "global_world_size": 4,
            "local_world_size": 2,
            "barrier_prefix": "checkpoint",
            "timeout_barrier_init_secs": LONG,
            "store_name": name,
            "tcpstore_port": str(port),
            "master_address": "127.0.0.1",
            "timeout_secs": LONG,
        }
        made[i] = create_barrier_from_config(BarrierConfig("hybrid_store", args))

    in_threads(4, rank)
    yield made
    in_threads(4, lambda i: made[i].close())


def test_checkpoint_barriers(barriers: list[HybridStoreBarrier]) -> None:
    in_threads(4, lambda i: [barriers[i].execute_barrier() for _ in range(5)])
    calls = [Later(barriers[i].execute_barrier) for i in (0, 1, 3)]
    barriers[2].abort()
    for call in calls:
        with pytest.raises(BrokenBarrierError, match=r"rank 2 called abort\(\)"):
            call.result()
    in_threads(4, lambda i: barriers[i].execute_barrier())
    assert isinstance(barriers[0].store.world, TCPStore)


@pytest.mark.parametrize(
    "change", [{"global_rank": 4}, {"global_world_size": 5}, {"local_world_size": 0}, {"tcpstore_port": "x"}]
)
def test_checkpoint_barriers_that_are_refused(name: str, port: int, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"global_rank": 0, "global_world_size": 4, "local_world_size": 2, "tcpstore_port": port}
    with pytest.raises(ValueError):
        HybridStoreBarrier(
            **{**good, **change},
            barrier_prefix="c",
            timeout_barrier_init_secs=1,
            store_name=name,
            master_address="127.0.0.1",
        )


# -- the example ----------------------------------------------------------------------------------------------------


def run(*more: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *more],
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize("scheme", ["hybrid", "shm", "tcp"])
def test_the_example_runs_anywhere_by_its_url_alone(scheme: str, name: str, port: int) -> None:
    url = {
        "hybrid": f"hybrid://127.0.0.1:{port}?local_world_size=2",
        "shm": f"shm://{name}",
        "tcp": f"tcp://127.0.0.1:{port}",
    }[scheme]
    done = run("--url", url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 3, squares: 9 16 25 36" in done.stdout
    assert "exit codes: 0 0 0 0" in done.stdout


def test_the_example_when_a_rank_is_killed() -> None:
    done = run("--kill", "3")
    assert done.returncode == 1
    assert "exit codes: 3 3 3 -9" in done.stdout, done.stdout + done.stderr
    told = re.findall(r"rank (\d): gave up: .*rank 3 \(node 1, pid \d+ on .*\) died", done.stdout)
    assert sorted(told) == ["0", "1", "2"]
