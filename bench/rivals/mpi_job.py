"""What mpirun runs: `python -m bench.rivals.mpi_job COUNT SKEW_US CORE...`; prints seconds of a barrier, and of all."""

from __future__ import annotations

import sys
from importlib import import_module

from bench.host import pin_to
from bench.scenarios.barriers import meetings, result

WARM = 100


def main() -> None:
    """Warms up, meets COUNT times, and has rank 0 print what all ranks' times come to."""
    count, skew_us, *cpus = map(int, sys.argv[1:])
    comm = import_module("mpi4py.MPI").COMM_WORLD
    rank, world = comm.Get_rank(), comm.Get_size()
    pin_to({cpus[rank % len(cpus)]})
    for _ in range(WARM):
        comm.Barrier()
    timings = comm.gather(meetings(lambda _: comm.Barrier(), [""] * count, skew_us, rank, world), root=0)
    if timings is not None:
        sample = result(timings, skew_us)
        sys.stdout.write(f"{sample.value:.12f} {sample.took_s:.12f}\n")


if __name__ == "__main__":
    main()
