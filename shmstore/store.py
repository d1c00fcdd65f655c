"""The contract of every store: c10d's verbs, and a record of what one of them cannot do.

A store maps keys to values and lets its users wait for each other. The verbs and their corner cases are those of
torch.distributed's stores; where those disagree, what is said here holds for all of ours. `shmstore.testing.contract`
checks it all for any store.

Common to all verbs. Keys are str (UTF-8) or bytes, 1 to 8191 bytes of any content; values are str (UTF-8), bytes,
bytearray or memoryview, up to 8 MiB of any content. A `timeout` is a timedelta or seconds; None is the store's own; 0
fails at once where the call would block; `timedelta.max` or `inf` waits for ever. Wrong types are TypeError, wrong
values ValueError, a closed handle is StoreClosedError, and nothing has happened when one of these is raised. All verbs
may be called from any thread at any time, and a blocked call blocks no other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from shmstore._deadline import Timeout
from shmstore._keys import Key, Keys, Value, Values, key_text
from shmstore.errors import StoreTimeoutError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Capabilities", "Store"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do. A difference between stores stands here, never in a quiet difference of a verb.

    Attributes:
        cross_process: unrelated processes of one host can share it, by name or address.
        cross_host: processes of several hosts can.
        picklable: a pickled handle opens the same store elsewhere.
        fork: a handle works on in a forked child.
        queues: queue_push, queue_pop and queue_len work.
        list_keys: list_keys works.
        barrier: barrier is one call of the store, which c10d's clients on the wire share.
        names_dead: it knows who is attached and can end a wait with PeerDiedError.
        bad_add_disconnects: `add` to a value without a number loses the connection (StoreConnectionError) instead of
            being a ValueError.
        extra_internal_keys: how many keys of its own it counts in num_keys.
    """

    cross_process: bool = False
    cross_host: bool = False
    picklable: bool = False
    fork: bool = False
    queues: bool = True
    list_keys: bool = True
    barrier: bool = True
    names_dead: bool = False
    bad_add_disconnects: bool = False
    extra_internal_keys: int = 0


class Store(ABC):
    """A key-value store that processes share and wait on. The module's text says what holds for all verbs."""

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this store can do."""

    @property
    @abstractmethod
    def timeout(self) -> timedelta:
        """How long this handle's calls wait when they are given no timeout."""

    @abstractmethod
    def set_timeout(self, timeout: Timeout) -> None:
        """Sets this handle's own timeout, for the calls that begin from now on.

        Args:
            timeout: a timedelta or seconds, not negative; `timedelta.max` or `inf` is for ever.

        Raises:
            TypeError, ValueError: not a timeout; the old one stays.
        """

    # -- one key ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def set(self, key: Key, value: Value) -> None:
        """Stores the value under the key and wakes those who wait for the key.

        Atomic: a reader sees the old value or the new one, whole. Does not wait for other keys.

        Raises:
            StoreFullError: no room; the old value stays.
            StoreTimeoutError: another process held the key's lock for the store's timeout.
        """

    @abstractmethod
    def get(self, key: Key, timeout: Timeout | None = None) -> bytes:
        """Returns the key's value; waits for the key.

        Returns:
            The value, whole, as exactly `bytes`; a counter as decimal text.

        Raises:
            StoreTimeoutError: the key did not come in time; names the key, the store and the time.
            PeerDiedError: a rank died meanwhile, on a store that watches.
        """

    @abstractmethod
    def add(self, key: Key, n: int) -> int:
        """Adds n to the key's number, which is 0 where the key is missing, and returns the sum.

        Atomic: of several adders each sees the others' or not, and none is lost. The sum is kept as decimal text for
        `get`, and wraps at int64. A value that was set is read like strtoll: " 7" is 7 and "12x" is 12.

        Args:
            key: str or bytes.
            n: any int64; negative and 0 too (0 creates the key).

        Raises:
            ValueError: n is beyond int64; or the present value has no leading number, or one beyond int64. It is kept.
            StoreConnectionError: the same, where `capabilities.bad_add_disconnects`.
            StoreFullError: no room; nothing was added.
        """

    @abstractmethod
    def compare_set(self, key: Key, expected: Value, desired: Value) -> bytes:
        """Stores `desired` if the key's value is `expected`; an empty `expected` also means "or missing".

        Atomic. Wakes waiters when it creates the key.

        Returns:
            The value now there; or `expected`, where the key is missing and `expected` is not empty (c10d's answer).

        Raises:
            StoreFullError: no room; the old value stays.
        """

    @abstractmethod
    def append(self, key: Key, value: Value) -> None:
        """Puts the value behind the key's present one, or creates the key with it. Atomic.

        Raises:
            ValueError: the whole would pass 8 MiB; the old value stays. StoreFullError: the same for no room.
        """

    @abstractmethod
    def delete_key(self, key: Key) -> bool:
        """Removes the key; True if it was there. A queue of that name is untouched. Wakes nobody."""

    # -- several keys -------------------------------------------------------------------------------------------------

    @abstractmethod
    def check(self, keys: Keys) -> bool:
        """True when all keys are there; never waits. A queue with items counts; no keys are all there.

        Args:
            keys: a list or tuple. Each is looked at in turn: it is not one snapshot.
        """

    @abstractmethod
    def wait(self, keys: Keys, timeout: Timeout | None = None) -> None:
        """Returns once each of the keys has been seen; those seen may be gone again by then.

        Args:
            keys: a list or tuple; none returns at once. A queue with items counts as seen and keeps its items.
            timeout: for all of them together.

        Raises:
            StoreTimeoutError: lists the keys still missing.
            PeerDiedError: a rank died meanwhile, on a store that watches.
        """

    @abstractmethod
    def multi_get(self, keys: Keys, timeout: Timeout | None = None) -> list[bytes]:
        """The values of the keys, in their order; waits like `get` for each, with one deadline for all.

        Raises:
            StoreTimeoutError: lists the keys still missing.
        """

    @abstractmethod
    def multi_set(self, keys: Keys, values: Values) -> None:
        """Sets each key to the value beside it; of a key given twice the last value stays.

        All or nothing for the space it needs, atomic for each key, and all waiters wake.

        Raises:
            ValueError: not as many values as keys; nothing is set. StoreFullError: no room for all; nothing is set.
        """

    @abstractmethod
    def num_keys(self) -> int:
        """How many keys there are; a store's internal ones, and queues, do not count. Not one snapshot."""

    @abstractmethod
    def list_keys(self) -> list[str]:
        """The keys, in no order; bytes that are not UTF-8 are surrogate-escaped, and the verbs take them back so."""

    # -- queues -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def queue_push(self, key: Key, value: Value) -> None:
        """Puts an item at the end of the queue of that name. Never waits for room.

        Raises:
            StoreFullError: no room; nothing was pushed.
        """

    @abstractmethod
    def queue_pop(self, key: Key, block: bool = True) -> bytes:  # noqa: FBT001, FBT002 -- c10d's signature
        """Takes the first item of the queue. Each item goes to one popper; those who wait are served in their order.

        The first p who wait are served by the first p items; which of them gets which of these is not ordered, so that
        one that is stopped keeps one item back and not all. An item is delivered at most once: a popper that dies with
        it has consumed it.

        Args:
            key: the queue's name; a key of that name is another thing.
            block: wait for an item, at most the store's own timeout.

        Raises:
            QueueEmptyError: not `block`, and no item is free for the caller.
            StoreTimeoutError: none came in time.
        """

    @abstractmethod
    def queue_len(self, key: Key) -> int:
        """How many items the queue holds; 0 for one never used."""

    # -- barrier, handle ----------------------------------------------------------------------------------------------

    @abstractmethod
    def barrier(self, key: Key, world_size: int, timeout: Timeout | None = None) -> None:
        """Waits until `world_size` callers have arrived at the key: c10d's server-side barrier.

        Arrivals are counted as decimal text under the key. The key serves once: who comes later passes at once, and
        an arrival that timed out still counts. For reuse, and to learn who is missing, there is `Barrier`.

        Args:
            key: the barrier's name, and the key of its count.
            world_size: 1 or more.
            timeout: None is the store's own.

        Raises:
            BarrierTimeoutError: too few arrived in time; a StoreTimeoutError.
            PeerDiedError: a rank died meanwhile, on a store that watches.
        """

    @abstractmethod
    def clone(self) -> Self:
        """Another handle on the same store; it has the same timeout at first, then its own, and is closed by itself."""

    @abstractmethod
    def close(self) -> None:
        """Closes this handle; waits of other threads on it end with StoreClosedError. Idempotent."""

    def has_extended_api(self) -> bool:
        """True: append, multi_get and multi_set are there (c10d asks)."""
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- for PrefixStore, Barrier, HybridStore, elastic, C10dStore -----------------------------------------------------

    def _watching(self) -> Store:
        """A clone whose waits end when a registered rank dies, on a store that knows of deaths; a clone elsewhere."""
        return self.clone()

    def _peek(self, key: Key) -> bytes | None:
        """The key's value if it is there now."""
        if self.check([key]):
            with suppress(StoreTimeoutError):  # deleted just now
                return self.get(key, 0)
        return None

    def _count(self, prefix: bytes) -> int:
        """How many keys begin with `prefix`. A store that can count them where they lie does."""
        return len(self._list(prefix))

    def _barrier_home(self, raw: bytes) -> tuple[Store, bytes] | None:  # noqa: ARG002 -- a hook
        """The store in a segment that has barriers of its own, and the key there; None where there is none below."""
        return None

    def _nodes(self, raw: bytes) -> tuple[Store, bytes] | None:  # noqa: ARG002 -- a hook
        """The HybridStore in whose world the key lies, and the key there; None where there is none below."""
        return None

    def _together(
        self,
        raw: bytes,  # noqa: ARG002 -- a hook
        rank: int | None,  # noqa: ARG002
        world_size: int,  # noqa: ARG002
        value: bytes | None,  # noqa: ARG002
        timeout: Timeout,  # noqa: ARG002
    ) -> list[bytes] | None:
        """What all ranks give under a name that serves once; none of them a value: they only meet, and it is empty.

        None, and nothing has happened: the store does not do it better than the caller would, key by key; or these are
        not all its ranks.
        """
        return None

    def _list(self, prefix: bytes) -> list[str]:
        """The keys that begin with `prefix`, whole."""
        begin = key_text(prefix)
        return [key for key in self.list_keys() if key.startswith(begin)]
