"""What mpirun runs: `python -m bench.rivals.mpi_job SOCKET CORE...`; a rank meets as often as it is told."""

from __future__ import annotations

import sys
from importlib import import_module
from multiprocessing.connection import Client

from bench.host import pin_to
from bench.meetings import again

__all__ = ["main"]


def main() -> None:
    """Answers (count, skew in µs) with a Timing, until the harness closes the socket."""
    address, *cores = sys.argv[1:]
    comm = import_module("mpi4py.MPI").COMM_WORLD
    rank, world = comm.Get_rank(), comm.Get_size()
    pin_to({int(cores[rank % len(cores)])})
    with Client(address, family="AF_UNIX") as harness:
        while True:
            try:
                count, skew_us = harness.recv()
            except EOFError:
                return
            harness.send(again(comm.Barrier, count, skew_us, rank, world))


if __name__ == "__main__":
    main()
