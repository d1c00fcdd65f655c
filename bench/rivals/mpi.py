"""MPI_Barrier through mpi4py: a job under mpirun for each sample, so that nothing of it runs, or spins, in between."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence

from bench.records import Case, Sample
from bench.rivals.base import ProgramRival, absent
from bench.rivals.limits import SKEW

__all__ = ["Mpi"]

RUN = "mpirun"
# Open MPI wants to be told that root, and more processes than cores, are meant. Cores are bound by the job itself.
OPEN_MPI = ("--allow-run-as-root", "--oversubscribe", "--bind-to", "none")


class Mpi(ProgramRival):
    """comm.Barrier() of mpi4py on whatever MPI there is."""

    name = "mpi4py"
    lacks = dict.fromkeys(
        ("set", "get", "add", "check", "holds", "elastic", "attach", "memory"), "MPI has messages and no store"
    )
    first = 100

    def missing(self) -> str | None:
        """No mpi4py, or no mpirun."""
        found = absent("mpi4py")
        if found is None and shutil.which(RUN) is None:
            found = f"no MPI: {RUN} is not installed"
        return found

    def run(self, case: Case, processes: int, count: int, cpus: Sequence[int]) -> Sample:
        """A job of `count` barriers."""
        version = subprocess.run([RUN, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
        flags = OPEN_MPI if "Open MPI" in version.stdout else ()
        words = [RUN, *flags, "-n", processes, sys.executable, "-m", "bench.rivals.mpi_job"]
        command = [str(word) for word in [*words, count, case.params.get(SKEW, 0), *cpus]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603 -- ours
        if done.returncode:
            raise RuntimeError(f"{RUN} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        value, took_s = map(float, done.stdout.split())
        return Sample(value, took_s)
