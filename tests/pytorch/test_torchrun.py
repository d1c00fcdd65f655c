"""torchrun --rdzv-backend=shm: unmodified scripts, restarts, agents that leave, two jobs at once, what is loaded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kinds import torchs

from shmstore import ShmStore
from shmstore._names import SHM

torchs("torch.distributed", "torchrun is torch's")

SCRIPT = """
import json, os, sys, time
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1) * dist.get_rank()
dist.all_reduce(total)
rank, attempt = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"]
said = {"rank": rank, "world": dist.get_world_size(), "total": total.item(), "attempt": attempt,
        "job": os.environ["SHMSTORE_JOB"], "port": os.environ["MASTER_PORT"], "address": os.environ["MASTER_ADDR"],
        "ours": any(name.startswith("shmstore") for name in sys.modules), "pid": os.getpid()}
os.write(1, (json.dumps(said) + "\\n").encode())
"""
LEAVE = """
dist.barrier()
dist.destroy_process_group()
"""
STAY = """
import signal
signal.pause()
"""
HEARS = """
server = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
server.wait(["after"])
os.write(1, (json.dumps({"rank": rank, "pid": os.getpid(), "heard": server.get("after").decode()}) + "\\n").encode())
import signal
signal.pause()
"""
LIMIT_S = 80


class Agent:
    """A torchrun; `more` is for its environment."""

    def __init__(self, folder: Path, job: str, script: str, *options: str, **more: str) -> None:
        path = folder / f"{len(list(folder.iterdir()))}.py"
        path.write_text(SCRIPT + script)
        command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=shm", f"--rdzv-id={job}"]
        environ = {key: value for key, value in os.environ.items() if key != "SHMSTORE_JOB"}
        self.process = subprocess.Popen(
            [*command, "--rdzv-conf=join_timeout=60,last_call_timeout=1", *options, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environ, "OMP_NUM_THREADS": "1", **more},
        )
        self._workers: list[int] = []

    def said(self, n: int) -> list[dict[str, Any]]:
        """What its next n workers say, by rank."""
        assert self.process.stdout is not None
        lines = [json.loads(self.process.stdout.readline() or "{}") for _ in range(n)]
        assert all(lines), self.process.communicate(timeout=LIMIT_S)[1]
        self._workers += [line["pid"] for line in lines]
        return sorted(lines, key=lambda line: int(line["rank"]))

    def end(self) -> int:
        """Its status; the test fails with what it wrote where that takes too long."""
        _, self.errors = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode

    def kill(self) -> None:
        """The agent, and its workers, which are in sessions of their own."""
        if self.process.poll() is None:
            self.process.kill()
            for pid in self._workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def start(*args: str, **more: str) -> Agent:
        agents.append(Agent(tmp_path, *args, **more))
        return agents[-1]

    yield start
    for agent in agents:
        agent.kill()


def segments(name: str) -> list[str]:
    return sorted(path.name for path in SHM.glob(f"shmstore.*{name}*"))


def test_an_unmodified_script(name: str, torchrun: Callable[..., Agent]) -> None:
    agent = torchrun(name, LEAVE, "--nproc-per-node=3")
    said = agent.said(3)
    assert agent.end() == 0, agent.errors
    assert [(line["rank"], line["world"], line["total"]) for line in said] == [(i, 3, 3.0) for i in range(3)]
    assert {line["address"] for line in said} == {"127.0.0.1"}
    assert len({line["port"] for line in said}) == 1
    assert not any(line["ours"] for line in said)  # the workers are torch's alone
    assert re.fullmatch(rf"torchrun\.{name}\.0\.[0-9a-f]+", said[0]["job"])
    assert segments(name) == []


DIES_ONCE = """
dist.barrier()
if attempt == "0" and rank == 1:
    os.kill(os.getpid(), 9)
dist.barrier()
dist.destroy_process_group()
"""


def test_a_restart_meets_nothing_of_the_attempt_before(name: str, torchrun: Callable[..., Agent]) -> None:
    agent = torchrun(name, DIES_ONCE, "--nproc-per-node=2", "--max-restarts=1")
    first, second = agent.said(2), agent.said(2)
    assert agent.end() == 0, agent.errors
    assert [line["attempt"] for line in first + second] == ["0", "0", "1", "1"]
    assert [line["total"] for line in second] == [1.0, 1.0]
    assert first[0]["job"] != second[0]["job"]
    assert segments(name) == []


def test_no_restart_is_left(name: str, torchrun: Callable[..., Agent]) -> None:
    """By os._exit: the worker has torch alone in it, whose gloo may abort at an exit with its group alive."""
    agent = torchrun(name, "if rank == 1: os._exit(7)" + STAY, "--nproc-per-node=2", "--max-restarts=0")
    assert agent.end() == 1
    assert "exitcode: 7" in agent.errors or "exitcode  : 7" in agent.errors
    assert segments(name) == []


def test_two_jobs_at_once(name: str, torchrun: Callable[..., Agent]) -> None:
    agents = [torchrun(f"{name}-{i}", LEAVE, "--nproc-per-node=2") for i in range(2)]
    said = [agent.said(2) for agent in agents]
    assert [agent.end() for agent in agents] == [0, 0]
    assert [line["total"] for job in said for line in job] == [1.0] * 4
    assert len({job[0]["port"] for job in said}) == len({job[0]["job"] for job in said}) == 2


def test_two_agents_of_a_job(name: str, torchrun: Callable[..., Agent]) -> None:
    """Each serves the segment to its own workers; all of them are one group."""
    agents = [torchrun(name, LEAVE, "--nnodes=2", "--nproc-per-node=1") for _ in range(2)]
    said = [agent.said(1)[0] for agent in agents]
    assert [agent.end() for agent in agents] == [0, 0]
    assert sorted(line["rank"] for line in said) == [0, 1]
    assert {line["total"] for line in said} == {1.0}
    assert len({line["job"] for line in said}) == 1
    assert len({line["port"] for line in said}) == 2
    assert segments(name) == []


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_agent_leaves_the_other_its_store(name: str, torchrun: Callable[..., Agent], which: int) -> None:
    """The agent of rank 0 too: its workers' store is not in it."""
    agents = [torchrun(name, HEARS, "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3") for _ in range(2)]
    said = [agent.said(1)[0] for agent in agents]
    while any(line["world"] != 2 for line in said):  # the last call was over before the second agent came
        said = [line if line["world"] == 2 else agent.said(1)[0] for line, agent in zip(said, agents, strict=True)]
    by_rank = sorted(zip(said, agents, strict=True), key=lambda pair: int(pair[0]["rank"]))
    (_, victim), (left, survivor) = by_rank[which], by_rank[1 - which]
    with ShmStore(left["job"], create=False) as keys:
        victim.kill()
        keys.set("after", "that")
        assert survivor.said(1)[0]["heard"] == "that"
    os.kill(survivor.process.pid, signal.SIGTERM)
    assert survivor.end() != 0
    assert segments(name) == []


MEETS = """
dist.destroy_process_group()
import shmstore.torch
dist.init_process_group("gloo", init_method="shm://")
name = shmstore.torch.group_store().name
if rank == 0 and len(sys.argv) > 1:
    import subprocess
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", sys.argv[1]]
    name += " " + subprocess.run(command, check=True, capture_output=True, text=True).stdout
os.write(1, (json.dumps({"rank": rank, "pid": os.getpid(), "name": name}) + "\\n").encode())
"""
INNER = """
import torch.distributed as dist, shmstore.torch
dist.init_process_group("gloo", init_method="shm://")
print(shmstore.torch.group_store().name, flush=True)
dist.destroy_process_group()
"""


def test_shm_in_a_worker_and_a_job_that_it_starts(name: str, torchrun: Callable[..., Agent], tmp_path: Path) -> None:
    """The worker's is the round's segment; a torchrun in it has a name of its own, though it inherits the variables."""
    inner = tmp_path / "inner"
    inner.write_text(INNER)
    agent = torchrun(name, MEETS.replace("sys.argv[1]", repr(str(inner))).replace("len(sys.argv) > 1", "True"))
    job = agent.said(1)[0]["job"]
    outer, inside = agent.said(1)[0]["name"].split()
    assert agent.end() == 0, agent.errors
    assert outer == job
    assert inside.startswith("torchrun.") and name not in inside


def test_stores_need_not_be_shared(name: str, torchrun: Callable[..., Agent]) -> None:
    agent = torchrun(name, LEAVE, "--nproc-per-node=1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    assert agent.said(1)[0]["total"] == 0.0
    assert agent.end() == 0, agent.errors
    assert segments(name) == []


def test_what_a_killed_agent_left_goes_with_the_next_run(name: str, torchrun: Callable[..., Agent]) -> None:
    killed = torchrun(name, STAY, "--nproc-per-node=1")
    job = killed.said(1)[0]["job"]
    killed.kill()
    assert f"shmstore.{job}" in segments(name)
    again = torchrun(name, LEAVE, "--nproc-per-node=1")
    assert again.said(1)[0]["job"] != job
    assert again.end() == 0, again.errors
    assert segments(name) == []


def test_a_name_that_is_too_long_is_refused_at_once(name: str, torchrun: Callable[..., Agent]) -> None:
    agent = torchrun("x" * 222, LEAVE)
    assert agent.end() == 1
    assert "a segment's name has at most 240 bytes" in agent.errors


def test_an_endpoint_is_refused(name: str, torchrun: Callable[..., Agent]) -> None:
    agent = torchrun(name, LEAVE, "--rdzv-endpoint=localhost:1234")
    assert agent.end() == 1
    assert "the shm backend has no endpoint" in agent.errors


LOADED = """
import sys
from torch.distributed.elastic.rendezvous.registry import handler_registry
before = set(sys.modules)
import json
creator = handler_registry._registry["shm"]
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] in ("shmstore", "click", "rich", "pytest")
                        or name.startswith("torch.distributed.checkpoint"))))
"""


def test_torch_loads_no_more_of_us_than_it_needs() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    loaded = set(json.loads(done.stdout))
    assert "shmstore.torch.torchrun" in loaded
    assert not {name for name in loaded if not name.startswith("shmstore")}
    assert not loaded & {"shmstore.torch.agents", "shmstore.torch.checkpoint", "shmstore.testing", "shmstore.cli"}
