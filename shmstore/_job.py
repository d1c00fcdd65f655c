"""Who this process is in its job, as launchers tell it: a rank, a world size, and a name that only this run has.

    SHMSTORE_JOB         the name as it is, with RANK and WORLD_SIZE: whoever starts the processes sets it. So does
                         torchrun with our handler, and SHMSTORE_JOB_PORT beside it: under torchrun the name counts only
                         where that is MASTER_PORT, so that what a worker starts in its turn is a job of its own
    TORCHELASTIC_RUN_ID  torchrun with another handler: torchrun.<run id>.<MASTER_PORT>.<restart count>
    SLURM_JOB_ID         Slurm: slurm.<job>.<step>.<restart count>, with SLURM_PROCID and SLURM_NTASKS

The first that is there counts. The restart count is in the name, so that a process that is started again never joins
what the attempt before it left; MASTER_PORT because two jobs at once may have one run id (torchrun's default is "none")
but no port in common. A segment reaches one host, so a job that says it has more is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

__all__ = ["NAME_VARIABLE", "PORT_VARIABLE", "Job", "Place", "job_of", "number_of", "place_of"]

NAME_VARIABLE: Final = "SHMSTORE_JOB"
PORT_VARIABLE: Final = "SHMSTORE_JOB_PORT"
_HOW: Final = "give a name and who this is, shm://NAME?rank=R&world_size=N"
_HOW_ON_NODES: Final = "give a place and who this is, hybrid://HOST:PORT?rank=R&world_size=N&local_world_size=L"


@dataclass(frozen=True, slots=True)
class Job:
    """A run of a job, and this process's place in it.

    Attributes:
        name: of the segment.
        rank: 0 to world_size - 1.
        world_size: how many processes there are.
        before: the names of the attempts before this one.
    """

    name: str
    rank: int
    world_size: int
    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """This process's place in a job on several nodes, and where its world is.

    Attributes:
        rank: among all.
        world_size: how many processes there are.
        local_world_size: how many on each node; rank // local_world_size is the node.
        host: the world's server.
        port: its port.
        hosts: this process hosts it.
        prefix: of the world's keys, on a server that others use too; may be empty.
        name: of the node's segment.
        before: the names of the attempts before this one.
    """

    rank: int
    world_size: int
    local_world_size: int
    host: str
    port: int
    hosts: bool
    prefix: str
    name: str
    before: tuple[str, ...] = ()


def place_of(environ: Mapping[str, str] = os.environ) -> Place:
    """The place that the environment speaks of, in torchrun's variables.

    Raises:
        ValueError: one is missing or wrong, or they contradict each other; says which.
    """

    def number(variable: str) -> int:
        return number_of(variable, environ, _HOW_ON_NODES)

    rank, world_size, local_rank, local = map(number, ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    node = number_of("GROUP_RANK", environ) if "GROUP_RANK" in environ else rank // max(local, 1)
    nodes = number_of("GROUP_WORLD_SIZE", environ) if "GROUP_WORLD_SIZE" in environ else world_size // max(local, 1)
    if (
        not rank < world_size
        or not local_rank < local
        or nodes * local != world_size
        or node * local + local_rank != rank
    ):
        raise ValueError(
            f"RANK {rank} of WORLD_SIZE {world_size} is not LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE {local} on "
            f"node {node} of {nodes}: all nodes need the same number of processes, with ranks node by node"
        )
    host = environ.get("MASTER_ADDR", "")
    if not host:
        raise ValueError(f"MASTER_ADDR is not in the environment: {_HOW_ON_NODES}")
    port = number("MASTER_PORT")
    if not 0 < port < 1 << 16:
        raise ValueError(f"MASTER_PORT must be 1 to 65535, got {port}")
    agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    run = environ.get("TORCHELASTIC_RUN_ID", "")
    attempt = number("TORCHELASTIC_RESTART_COUNT") if "TORCHELASTIC_RESTART_COUNT" in environ else 0
    given = _given(environ)
    *before, name = (_name("hybrid", run, str(port), str(i), str(node)) for i in range(attempt + 1))
    return Place(
        rank=rank,
        world_size=world_size,
        local_world_size=local,
        host=host,
        port=port,
        hosts=rank == 0 and not agent,
        prefix=f"shmstore/{run}/{attempt}" if agent else "",
        name=f"{given}.{node}" if given else name,
        before=() if given else tuple(before),
    )


def job_of(environ: Mapping[str, str] = os.environ) -> Job:
    """The job that the environment speaks of.

    Raises:
        ValueError: it speaks of none, or of one on several hosts; says which variable is missing or wrong.
    """
    name = _given(environ)
    if name:
        return Job(name, *_place(environ))
    if "TORCHELASTIC_RUN_ID" in environ:
        return _torchrun(environ)
    if "SLURM_JOB_ID" in environ:
        return _slurm(environ)
    raise ValueError(
        f"no name, and the environment speaks of no job ({NAME_VARIABLE}, torchrun's or Slurm's variables): {_HOW}"
    )


def _given(environ: Mapping[str, str]) -> str:
    """The name that was given, where it counts, or nothing."""
    name = environ.get(NAME_VARIABLE, "")
    foreign = "TORCHELASTIC_RUN_ID" in environ and environ.get(PORT_VARIABLE) != environ.get("MASTER_PORT")
    return "" if foreign else name


def _name(*parts: str) -> str:
    return ".".join(quote(part, safe="") for part in parts)


def number_of(variable: str, environ: Mapping[str, str] = os.environ, how: str = _HOW) -> int:
    """A number of the environment.

    Raises:
        ValueError: it is missing or no number.
    """
    text = environ.get(variable)
    if text is None:
        raise ValueError(f"{variable} is not in the environment: {how}")
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{variable} must be a number, got {text[:40]!r}")
    return int(text)


def _torchrun(environ: Mapping[str, str]) -> Job:
    rank, world_size = _place(environ)
    local = number_of("LOCAL_WORLD_SIZE", environ)
    if local != world_size:
        raise ValueError(
            f"LOCAL_WORLD_SIZE is {local} and WORLD_SIZE {world_size}: a segment reaches the processes of one "
            "host, whose agents have to agree on its name: use torchrun --rdzv-backend=shm where they share the host"
        )
    run = "torchrun", environ["TORCHELASTIC_RUN_ID"], environ.get("MASTER_PORT", "")
    return _attempt(run, "TORCHELASTIC_RESTART_COUNT", environ, rank, world_size)


def _slurm(environ: Mapping[str, str]) -> Job:
    nodes = environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", "1"))
    if nodes != "1":
        raise ValueError(f"the Slurm step has {nodes} nodes: a segment reaches the processes of one host")
    tasks = next((what for what in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if what in environ), "SLURM_NTASKS")
    step = "slurm", environ["SLURM_JOB_ID"], environ.get("SLURM_STEP_ID", "0")
    place = number_of("SLURM_PROCID", environ), number_of(tasks, environ)
    return _attempt(step, "SLURM_RESTART_COUNT", environ, *place)


def _attempt(run: tuple[str, ...], variable: str, environ: Mapping[str, str], rank: int, world_size: int) -> Job:
    """The job of this attempt, whose number is in the environment; 0 where it is not."""
    number = number_of(variable, environ) if variable in environ else 0
    *before, name = (_name(*run, str(i)) for i in range(number + 1))
    return Job(name, rank, world_size, tuple(before))


def _place(environ: Mapping[str, str]) -> tuple[int, int]:
    return number_of("RANK", environ), number_of("WORLD_SIZE", environ)
