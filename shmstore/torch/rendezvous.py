"""shm:// for init_process_group: a group that starts without a server and without a port.

    shm://NAME?rank=R&world_size=N     the segment of that name; rank and world_size may be given to
                                       init_process_group, or be RANK and WORLD_SIZE of the environment
    shm://                             all of it from torchrun's or Slurm's environment (shmstore/_job.py)

Further options are ShmStore's: shm://NAME?capacity=…&sync=semaphore.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from shmstore._job import number_of
from shmstore.connect import parse, segment_of
from shmstore.shm import ShmStore
from shmstore.torch.store import C10dStore

__all__ = ["register", "shm"]


def register() -> None:
    """Makes shm:// known to torch. Once a process: torch refuses a second handler of a scheme."""
    dist.register_rendezvous_handler("shm", shm)


def shm(url: str, timeout: timedelta = default_pg_timeout, **_: Any) -> Iterator[tuple[C10dStore, int, int]]:
    """Torch's rendezvous handler for shm://.

    Yields:
        Once: the store, this process's rank (registered in the segment, so that the others learn of its death), and the
        world size. Does not wait for the others.

    Raises:
        ValueError: no such URL, or rank, world size or name are missing. What ShmStore raises.
        RuntimeError: asked for another round, which no init_method of torch's has either.
    """
    # Torch takes the URL apart to add rank and world_size, and puts it together without the slashes where no name was.
    address = parse(url.replace("shm:?", "shm://?", 1) if url.startswith("shm:?") else url)
    name, options = segment_of(address)
    for option, variable in (("rank", "RANK"), ("world_size", "WORLD_SIZE")):
        if option not in options:
            options[option] = number_of(variable)
    yield C10dStore(ShmStore(name, **{"timeout": timeout, **options})), options["rank"], options["world_size"]
    raise RuntimeError("shm:// has one round: begin another with a name of its own")
