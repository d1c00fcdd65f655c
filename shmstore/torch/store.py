"""C10dStore: any of our stores as a torch.distributed.Store.

Torch keeps a C++ half of every store that Python code writes. What C++ knows of it, and what follows:

    C++ calls set, get, add, check, wait, compare_set, append, multi_get, multi_set, has_extended_api and clone by these
    names, and deleteKey and getNumKeys by those; it never forwards queues, list_keys and barrier. So both spellings are
    here, and whoever needs the rest over C++ takes a TCPStore client of a server of the segment.
    C++ keeps its half alive, not the Python object: when that goes, every call of C++ fails. So each C10dStore is kept
    for the life of the process.
    set_timeout of C++ never reaches Python: the timeout is read at each call. Its unit there is the millisecond.
    The GIL is taken for each call of C++. Our waits give it up.
    Exceptions pass through C++ as the same object.
"""

from __future__ import annotations

import multiprocessing.util
from datetime import timedelta
from time import monotonic, sleep
from typing import Final

import torch.distributed as dist

from shmstore._keys import Key, Keys, Value, Values
from shmstore.store import Store
from shmstore.torch._errors import as_torchs, inside

__all__ = ["C10dStore"]

UNIT: Final = timedelta(milliseconds=1)
LONGEST: Final = timedelta(days=36500)
"""What is longer would overflow torch's clock; it is as good as for ever."""

EXIT_S: Final = 2.0
LOOK_S: Final = 0.002
LOOKS: Final = 10

_kept: Final[list[C10dStore]] = []


class C10dStore(dist.Store):
    """A torch.distributed.Store over any store of ours: for init_process_group(store=…), PrefixStore, and all of c10d.

    Args:
        store: a ShmStore, HashStore, PrefixStore or TCPStore. The C10dStore uses a clone of it, and keeps
            it: a rank that its handle registered stays registered, also when nobody else has it any more.
        watch_peers: waits end when a registered rank dies, on a store that knows of deaths; so the others learn within
            a second who died, in place of a timeout.

    Its timeout begins as the store's; set_timeout, also through a torch PrefixStore, changes this object's alone. It
    counts whole milliseconds; Python's set_timeout rounds up, C++'s down. 0 fails at once where a call would block, as
    with our stores; torch's HashStore and FileStore would wait for ever.

    It lives as long as the process, as C++ may use it without Python knowing; `close` lets go of the store. Forked
    children can use it; it cannot be pickled.

    Raises (all verbs):
        DistStoreError: torch's, and ours: of a timeout with "Wait timeout" in the text, of a dead rank with its rank
            and pid, and the PeerDiedError as its cause. DistNetworkError: a TCPStore below lost its server.
        RuntimeError: ours: StoreFullError, StoreClosedError, SegmentInvalidError. TypeError, ValueError.
    """

    def __init__(self, store: Store, *, watch_peers: bool = True) -> None:
        if not isinstance(store, Store):
            raise TypeError(f"a C10dStore needs a store of shmstore, not {type(store).__name__}")
        super().__init__()
        self._origin: Store | None = store
        self._keys: Final = store._watching() if watch_peers else store.clone()  # noqa: SLF001 -- a hook for just this
        self._told: timedelta | None = None
        self.set_timeout(store.timeout)
        _kept.append(self)

    @property
    def store(self) -> Store:
        """The handle of ours that it uses, for what c10d has not: peers(), a Barrier, elastic functions."""
        return self._keys

    def _now(self) -> Store:
        """The handle, with the timeout that torch has by now."""
        told = self.timeout
        if told != self._told:
            # below zero: C++ was given one that is beyond its clock
            self._keys.set_timeout(told if told >= timedelta(0) else timedelta.max)
            self._told = told
        return self._keys

    def set_timeout(self, timeout: timedelta) -> None:
        """Sets this object's timeout, in whole milliseconds, rounded up; at most a hundred years, which is for ever.

        Raises:
            TypeError: not a timedelta. ValueError: negative.
        """
        if not isinstance(timeout, timedelta):
            raise TypeError(f"timeout must be a timedelta, not {type(timeout).__name__}")
        if timeout < timedelta(0):
            raise ValueError(f"timeout must not be negative, got {timeout!r}")
        super().set_timeout(-(-min(timeout, LONGEST) // UNIT) * UNIT)

    # -- verbs, by the names that C++ calls ---------------------------------------------------------------------------

    @as_torchs
    def set(self, key: Key, value: Value) -> None:
        """As Store.set."""
        self._now().set(key, value)

    @as_torchs
    def get(self, key: Key) -> bytes:
        """As Store.get; waits at most the timeout."""
        return self._now().get(key)

    @as_torchs
    def add(self, key: Key, value: int) -> int:
        """As Store.add."""
        return self._now().add(key, value)

    @as_torchs
    def compare_set(self, key: Key, expected_value: Value, desired_value: Value) -> bytes:
        """As Store.compare_set."""
        return self._now().compare_set(key, expected_value, desired_value)

    @as_torchs
    def append(self, key: Key, value: Value) -> None:
        """As Store.append."""
        self._now().append(key, value)

    @as_torchs
    def check(self, keys: Keys) -> bool:
        """As Store.check."""
        return self._now().check(keys)

    @as_torchs
    def wait(self, keys: Keys, timeout: timedelta | None = None) -> None:
        """As Store.wait; None is the timeout of this object."""
        self._now().wait(keys, timeout)

    @as_torchs
    def multi_get(self, keys: Keys) -> list[bytes]:
        """As Store.multi_get; waits at most the timeout."""
        return self._now().multi_get(keys)

    @as_torchs
    def multi_set(self, keys: Keys, values: Values) -> None:
        """As Store.multi_set."""
        self._now().multi_set(keys, values)

    @as_torchs
    def delete_key(self, key: Key) -> bool:
        """As Store.delete_key."""
        return self._now().delete_key(key)

    @as_torchs
    def num_keys(self) -> int:
        """As Store.num_keys."""
        return self._now().num_keys()

    deleteKey = delete_key  # noqa: N815 -- as C++ calls it
    getNumKeys = num_keys  # noqa: N815 -- the same

    def has_extended_api(self) -> bool:
        """True: append, multi_get and multi_set are there."""
        return True

    def clone(self) -> C10dStore:
        """Another C10dStore on the same store; it has the same timeout at first, then its own."""
        made = C10dStore(self._keys, watch_peers=False)
        made.set_timeout(self.timeout)
        return made

    # -- verbs that C++ never forwards: for Python --------------------------------------------------------------------

    @as_torchs
    def queue_push(self, key: Key, value: Value) -> None:
        """As Store.queue_push."""
        self._now().queue_push(key, value)

    @as_torchs
    def queue_pop(self, key: Key, block: bool = True) -> bytes:  # noqa: FBT001, FBT002 -- c10d's signature
        """As Store.queue_pop; waits at most the timeout."""
        return self._now().queue_pop(key, block)

    @as_torchs
    def queue_len(self, key: Key) -> int:
        """As Store.queue_len."""
        return self._now().queue_len(key)

    @as_torchs
    def list_keys(self) -> list[str]:
        """As Store.list_keys."""
        return self._now().list_keys()

    @as_torchs
    def barrier(self, key: Key, world_size: int, timeout: timedelta | None = None) -> None:
        """As Store.barrier; None is the timeout of this object."""
        self._now().barrier(key, world_size, timeout)

    # -- the handle ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Lets go of the store: a call after it, also one of C++, is StoreClosedError. Idempotent.

        Waits of other threads end with it. The store that was given is not closed, unless nobody else has it.
        """
        self._origin = None
        self._keys.close()

    def __repr__(self) -> str:
        return f"C10dStore({self._keys!r})"


# -- the end of the process -------------------------------------------------------------------------------------------


def _let_out() -> None:
    """Closes all, and waits until no thread is in a call, EXIT_S at most; then lets those that were leave C++, too.

    A daemon thread that comes back to an interpreter which is ending is ended where it takes the GIL, and with frames
    of C++ on its stack that aborts the process. Nobody rings when a thread has left, so it is looked for.
    """
    if not inside:
        return
    for store in _kept:
        store.close()
    end = monotonic() + EXIT_S
    while inside and monotonic() < end:
        sleep(LOOK_S)
    for _ in range(LOOKS):
        sleep(LOOK_S)


# Before the segments are left, at priority -100, which closes what is not closed here.
multiprocessing.util.Finalize(None, _let_out, exitpriority=-90)
