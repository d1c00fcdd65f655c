"""shm:// for init_process_group: a group that starts without a server and without a port.

    shm://NAME?rank=R&world_size=N     the segment of that name; rank and world_size may be given to
                                       init_process_group, or be RANK and WORLD_SIZE of the environment
    shm://                             all of it from torchrun's or Slurm's environment (shmstore/_job.py)

Further options are ShmStore's: shm://NAME?sync=semaphore. They count when the process first comes to the segment. The
timeout is none of them: it is init_process_group's.

All ranks meet before the handler gives any of them its store, as tcp:// has it. A name serves for one group after the
other, so each meeting is a round with keys of its own. In a world of W ranks:

    shm/W/meeting    who has come, and the last round that was formed; changed by compare_set only
    shm/W/go/TOKEN   set by who formed the round, for each call in it, which deletes it
    shm/W/N/…        the group's own keys, in round N

A call of the handler is a token. It puts itself down under its rank, in the place of an earlier call of that rank. The
one with which all have come looks whether each rank is alive, strikes out the dead, and if none was, forms the round:
by one compare_set, so that a call is in it or not. Who gives up strikes itself out. So a round has only calls that were
waiting when it was formed; a rank that was killed before that, or gave up and comes again, or is started again, costs
the others nothing but time.

    killed before its compare_set     nothing has happened
    killed while it waits             struck out by the last one to come, or replaced by its successor
    killed as it had formed the round those in it see that at their next look, after a second, though nobody rang
    killed after that                 the group's start fails for all, who learn who died from the store
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from itertools import count
from time import monotonic_ns
from typing import Any, Final
from weakref import WeakValueDictionary, ref

import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from shmstore._deadline import deadline_after, seconds, span_ns
from shmstore._job import number_of
from shmstore.connect import parse, segment_of
from shmstore.errors import StoreClosedError, StoreError, StoreTimeoutError
from shmstore.prefix import PrefixStore
from shmstore.shm import ShmStore
from shmstore.torch._errors import as_torchs
from shmstore.torch.store import C10dStore

__all__ = ["group_store", "register", "shm"]

_opened: Final[WeakValueDictionary[str, ShmStore]] = WeakValueDictionary()
"""The segments that this process has come to by shm://, with its rank in each; until their C10dStores are closed."""
_last: ref[ShmStore] | None = None
_calls: Final = count()
SLICE_NS: Final = 1_000_000_000
"""Who waits looks after so long whether the round was formed by one that was killed before it could ring."""


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
    number = _meet(store, rank, world_size, span_ns(timeout))
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


@as_torchs
def _meet(store: ShmStore, rank: int, world_size: int, wait_ns: int) -> int:
    """Waits until all ranks have come; the number of the round."""
    base = f"shm/{world_size}"
    deadline = deadline_after(wait_ns)
    token = f"{os.getpid()}.{next(_calls)}.{monotonic_ns()}"
    go = f"{base}/go/{token}"
    try:
        formed = _change(store, base, lambda old: old.with_call(rank, token, world_size, store))
        if token in formed.formed:
            store.multi_set([f"{base}/go/{one}" for one in formed.formed], [b""] * world_size)
        while token not in formed.formed:
            left_ns = max(deadline - monotonic_ns(), 0)
            with suppress(StoreTimeoutError):
                store.wait([go], min(left_ns, SLICE_NS) / 1e9)
            formed = _read(store, base)
            if left_ns == 0 and token not in formed.formed:
                missing = [one for one in range(world_size) if str(one) not in formed.come]
                raise StoreTimeoutError(
                    f"Wait timeout: {store!r}: {len(formed.come)} of {world_size} ranks came to init_process_group "
                    f"within {seconds(wait_ns):.3f} s; missing: {', '.join(map(str, missing)) or 'none alive'}",
                    elapsed=seconds(wait_ns),
                    timeout=seconds(wait_ns),
                )
        store.delete_key(go)
        return formed.formed[token]
    except BaseException:
        with suppress(StoreError):
            _change(store, base, lambda old: old.without(rank, token))
        raise


@dataclass(frozen=True, slots=True)
class _Meeting:
    """What stands in the key.

    Attributes:
        next: the number of the next round.
        come: who waits for it, the token of the last call by rank.
        formed: the tokens of the last round, each with its number.
    """

    next: int = 0
    come: dict[str, str] = field(default_factory=dict)
    formed: dict[str, int] = field(default_factory=dict)

    def text(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    def with_call(self, rank: int, token: str, world_size: int, store: ShmStore) -> _Meeting:
        """One more call; the round, where all have come with it and live."""
        come = {**self.come, str(rank): token}
        if len(come) == world_size:
            live = {(str(peer.rank), str(peer.pid)) for peer in store.peers() if peer.state == "live"}
            come = {one: call for one, call in come.items() if (one, call.partition(".")[0]) in live}
        if len(come) < world_size:
            return replace(self, come=come)
        return _Meeting(self.next + 1, {}, dict.fromkeys(come.values(), self.next))

    def without(self, rank: int, token: str) -> _Meeting:
        come = {one: call for one, call in self.come.items() if (one, call) != (str(rank), token)}
        return replace(self, come=come)


def _read(store: ShmStore, base: str) -> _Meeting:
    raw = store.compare_set(f"{base}/meeting", b"", _Meeting().text())
    try:
        return _Meeting(**json.loads(raw))
    except (ValueError, TypeError) as error:
        raise StoreError(f"{store!r}: the key {base}/meeting is in use for something else: {raw[:80]!r}") from error


def _change(store: ShmStore, base: str, edit: Callable[[_Meeting], _Meeting]) -> _Meeting:
    """Changes what stands in the key, whoever else does meanwhile; what stands there then."""
    while True:
        old = _read(store, base)
        new = edit(old)
        if store.compare_set(f"{base}/meeting", old.text(), new.text()) == new.text():
            return new
