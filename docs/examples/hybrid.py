"""One program for one host or many: ranks agree on a plan, exchange results, and meet after each step.

    python docs/examples/hybrid.py                                  # 2 nodes of 2 ranks, all on this host
    python docs/examples/hybrid.py --kill 3                         # rank 3 is killed in the middle
    python docs/examples/hybrid.py --url shm://my-job --nproc 4     # the same program in one segment
    python docs/examples/hybrid.py --url tcp://127.0.0.1:29511 --nproc 4

On real hosts, a process a rank, each with its own number, here of 2 hosts with 8 ranks each:

    python docs/examples/hybrid.py --url 'hybrid://host-a:29500?local_world_size=8' --rank R --nproc 16

Where the ranks meet is said by the URL alone. Without --rank this starts all of them itself; "nodes" on one host are
segments of different names, which is all that a node is to the program.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import socket
import sys

import shmstore
from shmstore import Barrier, BrokenBarrierError, PeerDiedError, StoreConnectionError, elastic

STEPS = 3


def say(line: str) -> None:
    """A line on stdout, which all ranks share, in one write."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def rank_main(url: str, rank: int, ranks: int, kill: int | None) -> int:
    """One rank; 0, or 3 where a death ended it."""
    with shmstore.connect(url, rank=rank, world_size=ranks) as store:
        if rank == 0:
            store.set("plan", "squares")
        plan = store.get("plan").decode()
        steps = Barrier(store, "steps", ranks, rank)
        try:
            for step in range(1, STEPS + 1):
                if rank == kill and step == STEPS:
                    os.kill(os.getpid(), signal.SIGKILL)
                mine = (rank + step) ** 2
                values = elastic.synchronize(store, str(mine), rank, ranks, f"step/{step}")
                if rank == 0:
                    say(f"step {step}, {plan}: {' '.join(value.decode() for value in values)}")
                steps.wait()
        except (PeerDiedError, BrokenBarrierError, StoreConnectionError) as error:  # the last: rank 0 hosted the world
            say(f"rank {rank}: gave up: {error}")
            return 3
        last_out(store, rank, ranks)
    return 0


def last_out(store: shmstore.Store, rank: int, ranks: int) -> None:
    """Rank 0 may host what the others still read from: it leaves when they have said that they are done."""
    if rank:
        store.set(f"done/{rank}", b"")
    else:
        store.wait([f"done/{other}" for other in range(1, ranks)], 30)


def one_rank(url: str, rank: int, ranks: int, kill: int | None) -> None:
    sys.exit(rank_main(url, rank, ranks, kill))


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as made:
        return int(made.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="where the ranks meet; by default two nodes on this host")
    parser.add_argument("--rank", type=int, help="run this rank alone")
    parser.add_argument("--nproc", type=int, default=4, help="ranks on all nodes together")
    parser.add_argument("--kill", type=int, help="a rank that is killed in the last step")
    given = parser.parse_args()
    url = given.url or f"hybrid://127.0.0.1:{free_port()}?local_world_size={max(given.nproc // 2, 1)}"
    if given.rank is not None:
        return rank_main(url, given.rank, given.nproc, given.kill)
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=one_rank, args=(url, rank, given.nproc, given.kill)) for rank in range(given.nproc)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    codes = [process.exitcode for process in ranks]
    say(f"exit codes: {' '.join(str(code) for code in codes)}")
    return 0 if codes == [0] * given.nproc else 1


if __name__ == "__main__":
    sys.exit(main())
