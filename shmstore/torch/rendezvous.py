"""shm:// for init_process_group: a group that starts without a server and without a port.

    shm://NAME?rank=R&world_size=N     the segment of that name; rank and world_size may be given to
                                       init_process_group, or be RANK and WORLD_SIZE of the environment
    shm://                             all of it from torchrun's or Slurm's environment (shmstore/_job.py)

Further options are ShmStore's: shm://NAME?sync=semaphore. They count when the process first comes to the segment. The
timeout is none of them: it is init_process_group's.

All ranks meet before the handler gives any of them its store, as tcp:// has it (`_meeting`); a name serves for one
group after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final
from weakref import WeakValueDictionary, ref

import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from shmstore._deadline import span_ns
from shmstore._job import number_of
from shmstore.connect import parse, segment_of
from shmstore.errors import StoreClosedError
from shmstore.prefix import PrefixStore
from shmstore.shm import ShmStore
from shmstore.torch._errors import as_torchs
from shmstore.torch._meeting import meet
from shmstore.torch.store import C10dStore

__all__ = ["group_store", "register", "shm"]

_opened: Final[WeakValueDictionary[str, ShmStore]] = WeakValueDictionary()
"""The segments that this process has come to by shm://, with its rank in each; until their C10dStores are closed."""
_last: ref[ShmStore] | None = None


def register() -> None:
    """Makes shm:// known to torch. Once a process: torch refuses a second handler of a scheme."""
    dist.register_rendezvous_handler("shm", shm)


def group_store() -> ShmStore:
    """The segment that this process came to last by init_method="shm://…", with its rank: for peers(), a Barrier.

    The group's own keys in it begin with `shm/`. Whoever closes it leaves the job.

    Raises:
        RuntimeError: no group was begun with shm:// in this process, or its store was closed.
    """
    store = None if _last is None else _last()
    if store is None:
        raise RuntimeError('no group was begun with shm:// in this process: init_process_group(init_method="shm://…")')
    return store


def shm(url: str, timeout: timedelta = default_pg_timeout, **_: Any) -> Iterator[tuple[C10dStore, int, int]]:
    """Torch's rendezvous handler for shm://. Blocks until all ranks have come, at most `timeout`.

    Yields:
        Once: the store, this process's rank (registered in the segment, so that the others learn of its death), and the
        world size.

    Raises:
        ValueError: no such URL, or rank, world size or name are missing. What ShmStore raises.
        DistStoreError: not all came in time; says who is missing.
        RuntimeError: asked for another round, which no init_method of torch's has either.
    """
    # Torch takes the URL apart to add rank and world_size, and puts it together without the slashes where no name was.
    address = parse(url.replace("shm:?", "shm://?", 1) if url.startswith("shm:?") else url)
    name, options = segment_of(address)
    if "timeout" in options:
        raise ValueError(f"{url!r}: the timeout of a group is init_process_group's: give it there")
    for option, variable in (("rank", "RANK"), ("world_size", "WORLD_SIZE")):
        if option not in options:
            options[option] = number_of(variable)
    watch = options.pop("watch_peers", True)
    rank, world_size = options["rank"], options["world_size"]
    store = _come_to(name, {"timeout": timeout, **options})
    number = as_torchs(meet)(store, rank, world_size, span_ns(timeout))
    made = C10dStore(PrefixStore(f"shm/{world_size}/{number}", store), watch_peers=watch)
    made.set_timeout(timeout)
    yield made, rank, world_size
    raise RuntimeError("shm:// has one round: begin another with init_process_group")


def _come_to(name: str, options: dict[str, Any]) -> ShmStore:
    """The segment, with this rank registered: that of the process's group before, where it had this rank."""
    global _last  # of the process, as torch's default group is
    store = _opened.get(name)
    if store is not None and not _usable(store, options["rank"], options["world_size"]):
        store.close()  # with its rank
        store = None
    if store is None:
        store = _opened[name] = ShmStore(name, **options)
    _last = ref(store)
    return store


def _usable(store: ShmStore, rank: int, world_size: int) -> bool:
    try:
        return store.check([]) and (store.rank, store._world) == (rank, world_size)  # noqa: SLF001 -- whom it watches
    except StoreClosedError:
        return False
