"""Where the processes of a job meet to make a gloo process group: torch's ways, and shm:// of ours."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import count as counter
from pathlib import Path
from typing import Any, Final, Literal

from bench.groups import LOOKUPS, Meeting, failed, start_all, until_up
from bench.host import cpus_for
from bench.records import Case, Sample, Session
from bench.rivals.base import ProgramRival, Run, absent
from bench.team import Gate, Team

__all__ = ["FAILED", "JOBS", "LIMIT", "UP", "Group"]

JOBS: Final = "jobs"
"""The parameter of a case that says how many jobs start at once; 1 where it is not there."""
LIMIT: Final = "limit_s"
"""The parameter that says the timeout of each group, in seconds; LIMIT_S where it is not there."""
LIMIT_S: Final = 60
UP: Final = "until the last is up"
FAILED: Final = "failed jobs"
"""The one measure that is a count; all others are the time until the jobs are up."""

HOST: Final = "127.0.0.1"
FIRST_PORT: Final = 10_000
PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
EPHEMERAL: Final = 32_768

Way = Literal["env", "picked", "agent", "shm", "file"]
NAMES: Final[Mapping[Way, str]] = {
    "env": "torch env://",
    "picked": "torch env://, ports picked free",
    "agent": "torch env://, servers up before",
    "shm": "shmstore shm://",
    "file": "torch file://",
}


class Group(ProgramRival):
    """init_process_group("gloo", …), by one way to meet. Its sample's processes do nothing before the gate.

    Args:
        way: "env", a TCPStore that rank 0 hosts on a port that all jobs are told, as who starts jobs with the port of
            the documentation has it · "picked", the same with a port for each job that was free when it was picked ·
            "agent", a server for each job that is up before, on a port of its own, as torchrun's agents have it ·
            "shm", a segment with a name for each · "file", a FileStore with a file for each, on tmpfs where there is
            one.
    """

    kind = "group"

    def __init__(self, way: Way) -> None:
        self.name = NAMES[way]
        if way == "picked":
            self.lacks = {"alone": "is the other env:// where there is one job only"}
        self._way: Way = way

    def missing(self) -> str | None:
        """No torch."""
        return absent("torch.distributed")

    @contextmanager
    def started(self, session: Session, cpus: Sequence[int], directory: Path) -> Iterator[Run]:
        """Imports torch; nothing runs between the samples."""
        import_module("torch.distributed")
        if self._way == "shm":
            import_module("shmstore.torch")
        pins = [cpus_for(session.pin, cpus, rank) for rank in range(session.processes)]
        serials = counter(1)

        def run(case: Case, count: int) -> Sample:
            if count != 1:
                raise ValueError("a sample is one start: its case has to say most=1 or fixed=1")
            jobs, limit_s = int(case.params.get(JOBS, 1)), int(case.params.get(LIMIT, LIMIT_S))
            fresh = f"{self._way}-{next(serials)}"
            with self._meetings(jobs, directory, fresh, set(cpus)) as meetings:
                starts = start_all(meetings, session.processes // jobs, limit_s, pins)
            return failed(starts) if case.measure == FAILED else until_up(starts)

        yield run

    @contextmanager
    def _meetings(self, jobs: int, directory: Path, fresh: str, cpus: set[int]) -> Iterator[list[Meeting]]:
        """A place to meet for each job, which was none before: `fresh` is new in the directory, whose name is new."""
        if self._way == "agent":
            with Team(1, [cpus], _Servers) as host:
                (ports,) = host.ask(jobs)
                yield [_at_port(port, TORCHELASTIC_USE_AGENT_STORE="True") for port in ports]
        elif self._way == "env":
            yield [_at_port(quiet_port())] * jobs
        elif self._way == "picked":
            yield [_at_port(picked_port()) for _ in range(jobs)]
        elif self._way == "file":
            yield [Meeting(f"file://{directory / fresh}-{job}") for job in range(jobs)]
        else:
            yield [Meeting(f"shm://{directory.name}-{fresh}-{job}") for job in range(jobs)]


class _Servers:
    """So many TCPStore servers, in the one process of a team."""

    def __init__(self, rank: int) -> None:
        del rank
        self._servers: list[Any] = []

    def __call__(self, jobs: int, gate: Gate) -> list[int]:
        """Starts them; gives their ports."""
        del gate
        os.environ.update(LOOKUPS)
        make = import_module("torch.distributed").TCPStore
        self._servers += (make(HOST, 0, is_master=True, wait_for_workers=False) for _ in range(jobs))
        return [int(server.port) for server in self._servers]


def _at_port(port: int, **more: str) -> Meeting:
    return Meeting("env://", {"MASTER_ADDR": HOST, "MASTER_PORT": str(port), **more})


def picked_port() -> int:
    """A port that is free now, by the kernel's choice; anybody may have it before it is bound again."""
    with socket.socket() as door:
        door.bind(("", 0))
        return int(door.getsockname()[1])


def quiet_port() -> int:
    """A free port of those that the kernel gives to nobody by itself: it stays free until it is bound on purpose."""
    try:
        end = int(PORTS.read_text(encoding="ascii").split()[0])
    except OSError:
        end = EPHEMERAL
    while True:
        port = FIRST_PORT + secrets.randbelow(max(end - FIRST_PORT, 1000))
        with socket.socket() as door, suppress(OSError):
            door.bind(("", port))
            return port
