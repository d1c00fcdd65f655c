"""MPI_Barrier through mpi4py: one job under mpirun for a session, whose ranks sleep in a socket between the samples.

To start a job of 64 ranks takes many times as long as a sample. Blocked in a socket no rank runs, or spins, while the
others are timed. All ranks are told of a sample by the harness, as the members of a team are.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType

from bench.meetings import result
from bench.records import Case, Sample, Session, Timing
from bench.rivals.base import ProgramRival, Run, absent
from bench.rivals.limits import SKEW

__all__ = ["Mpi"]

RUN = "mpirun"
# Open MPI wants to be told that root, and more processes than cores, are meant. Cores are bound by the job itself.
OPEN_MPI = ("--allow-run-as-root", "--oversubscribe", "--bind-to", "none")
YIELD_WHEN_IDLE = {"OMPI_MCA_mpi_yield_when_idle": "1"}
"""Where ranks share a core, polling would keep the others from coming. Beside a hog alone it is the better way."""
START_S = 120.0
PATIENCE_S = 300.0
END_S = 10.0


class Mpi(ProgramRival):
    """comm.Barrier() of mpi4py on whatever MPI there is."""

    name = "mpi4py"
    lacks = MappingProxyType(
        {
            **dict.fromkeys(
                ("set", "get", "add", "check", "holds", "elastic", "barrier", "attach", "memory"),
                "MPI has messages and no store",
            ),
            "parks": "polls, and never sleeps",
        }
    )

    def missing(self) -> str | None:
        """No mpi4py, or no mpirun."""
        found = absent("mpi4py")
        if found is None and shutil.which(RUN) is None:
            found = f"no MPI: {RUN} is not installed"
        return found

    @contextmanager
    def started(self, session: Session, cpus: Sequence[int], directory: Path) -> Iterator[Run]:
        """Starts the job; it ends with the block."""
        shared = session.processes > len(cpus)
        with _job(session.processes, cpus, directory, YIELD_WHEN_IDLE if shared else {}) as ranks:

            def run(case: Case, count: int) -> Sample:
                skew_us = int(case.params.get(SKEW, 0))
                for rank in ranks:
                    rank.send((count, skew_us))
                return result([_answer(rank) for rank in ranks], count, skew_us)

            yield run


@contextmanager
def _job(
    processes: int, cpus: Sequence[int], directory: Path, environment: Mapping[str, str]
) -> Iterator[list[Connection]]:
    """A job, and the pipe to each of its ranks. A rank ends when its pipe does."""
    version = subprocess.run([RUN, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 -- MPI's
    flags = OPEN_MPI if "Open MPI" in version.stdout else ()
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile(dir=directory))
        door = stack.enter_context(socket.socket(socket.AF_UNIX))
        door.bind(str(directory / "mpi"))
        door.listen(processes)
        door.settimeout(0.2)
        words = [RUN, *flags, "-n", processes, sys.executable, "-m", "bench.rivals.mpi_job", directory / "mpi", *cpus]
        job = subprocess.Popen(  # noqa: S603 -- MPI's
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env={**os.environ, **environment},
        )
        stack.callback(_end, job)
        ranks: list[Connection] = []
        end = time.monotonic() + START_S
        while len(ranks) < processes:
            if job.poll() is not None or time.monotonic() > end:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise RuntimeError(
                    f"{RUN} started {len(ranks)} of {processes} ranks: {said[-1] if said else 'no word'}"
                )
            with suppress(TimeoutError):
                ranks.append(stack.enter_context(Connection(door.accept()[0].detach())))
        yield ranks


def _answer(rank: Connection) -> Timing:
    if not rank.poll(PATIENCE_S):
        raise RuntimeError(f"a rank gave no answer in {PATIENCE_S:g} s")
    timing = rank.recv()
    assert isinstance(timing, Timing)
    return timing


def _end(job: subprocess.Popen[bytes]) -> None:
    """Waits for it to end by itself, as its pipes are closed by now, and not for long."""
    try:
        job.wait(END_S)
    except subprocess.TimeoutExpired:
        job.terminate()  # which mpirun hands on
        with suppress(subprocess.TimeoutExpired):
            job.wait(END_S)
        job.kill()
        job.wait()
