"""shm:// for init_process_group: a group that starts without a server and without a port.

    shm://NAME?rank=R&world_size=N     the segment of that name; rank and world_size may be given to
                                       init_process_group, or be RANK and WORLD_SIZE of the environment
    shm://                             all of it from torchrun's or Slurm's environment (shmstore/_job.py)

Further options are ShmStore's: shm://NAME?capacity=…&sync=semaphore.

A name serves for one group after the other, as a port does: init_process_group, destroy_process_group, and again. What
the group before left in the segment is not the next one's, so each has a round, which the segment counts:

    shm/N        the world size of round N                set once, by the first rank that comes
    shm/N/R      rank R has come                          set by each
    the rest     round 0 without a prefix, N under shm/N

A rank joins the first round of its world size that not all ranks have come to. So one whose init_process_group failed
for want of the others, or that was started again before they came, is expected in the same round; and once all have
come the next call of each is for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import Any, Final
from weakref import WeakValueDictionary, ref

import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from shmstore._job import number_of
from shmstore.connect import parse, segment_of
from shmstore.prefix import PrefixStore
from shmstore.shm import ShmStore
from shmstore.torch.store import C10dStore

__all__ = ["group_store", "register", "shm"]

ROUND: Final = "shm"
_opened: Final[WeakValueDictionary[str, ShmStore]] = WeakValueDictionary()
"""The segments that this process has come to by shm://, with its rank in each; until their C10dStores are closed."""
_last: ref[ShmStore] | None = None


def register() -> None:
    """Makes shm:// known to torch. Once a process: torch refuses a second handler of a scheme."""
    dist.register_rendezvous_handler("shm", shm)


def _join(store: ShmStore, rank: int, world_size: int) -> int:
    """The round that this rank is in from now on."""
    for number in count():
        size = int(store.compare_set(f"{ROUND}/{number}", b"", b"%d" % world_size))
        come = [f"{ROUND}/{number}/{i}" for i in range(size)]
        if size == world_size and not store.check(come):
            store.set(come[rank], b"")
            return number
    raise AssertionError


def group_store() -> ShmStore:
    """The segment that this process came to last by init_method="shm://…", with its rank: for peers(), a Barrier.

    Its keys are the group's only in round 0 of the name: a part of your own, such as PrefixStore("mine", …), is best.
    Whoever closes it leaves the job.

    Raises:
        RuntimeError: no group was begun with shm:// in this process, or its store was closed.
    """
    store = None if _last is None else _last()
    if store is None:
        raise RuntimeError('no group was begun with shm:// in this process: init_process_group(init_method="shm://…")')
    return store


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
    store = _opened.get(name)
    if store is None or store.rank != options["rank"]:
        store = _opened[name] = ShmStore(name, **{"timeout": timeout, **options})
    global _last  # of the process, as torch's default group is
    _last = ref(store)
    number = _join(store, options["rank"], options["world_size"])
    made = C10dStore(PrefixStore(f"{ROUND}/{number}", store) if number else store)
    made.set_timeout(options.get("timeout", timeout))
    yield made, options["rank"], options["world_size"]
    raise RuntimeError("shm:// has one round: begin another with a name of its own")
