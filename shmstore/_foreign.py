"""ForeignStore: an object with c10d's verbs, torch's stores among them, as one of our stores.

Torch is never imported. What it does differently is made good here as far as it can be:

- Its TCPStore holds its handle for as long as a wait lasts, and every other call of the handle with it. So what may
  wait takes a clone of its own, from a few that are kept, where the store has `clone`. Where not, a wait does hold it.
- `get` has no timeout of its own: it is a wait, which has, and a get.
- A timeout is a DistStoreError, known by its name, and becomes StoreTimeoutError. Any other error of a verb becomes
  StoreConnectionError, with it as the cause: torch's stores say everything else by that.
- A wait goes in slices, of a second at first, so that Ctrl-C and a `close` in another thread come through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shmstore._deadline import DEFAULT, FOREVER, Timeout, as_timedelta, seconds, span_ns
from shmstore._keys import (
    Key,
    Keys,
    Value,
    Values,
    check_addend,
    check_world_size,
    key_bytes,
    key_text,
    keys_bytes,
    pairs_bytes,
    shown,
    value_bytes,
)
from shmstore.errors import (
    BarrierTimeoutError,
    QueueEmptyError,
    StoreClosedError,
    StoreConnectionError,
    StoreError,
    StoreTimeoutError,
)
from shmstore.store import Capabilities, Store

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["VERBS", "ForeignStore", "gave_up"]

T = TypeVar("T")

VERBS: Final = ("set", "get", "add", "wait", "check", "compare_set", "delete_key")
KEPT: Final = 4
SLICE_NS: Final = 1_000_000_000
LAST_SLICE_NS: Final = 10_000_000_000


class ForeignStore(Store):
    """A store that is none of ours, as one of ours.

    Args:
        below: an object with c10d's set, get, add, wait, check, compare_set and delete_key.

    Raises:
        TypeError: it lacks one of the verbs.
    """

    def __init__(self, below: Any) -> None:
        lacks = [verb for verb in VERBS if not callable(getattr(below, verb, None))]
        if lacks:
            raise TypeError(f"a store needs {', '.join(VERBS)}; {type(below).__name__} has no {', '.join(lacks)}")
        self._below = below
        self._kind: Final = type(below)
        self._timeout = getattr(below, "timeout", DEFAULT)
        self._clones: list[Any] = []
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        name = self._kind.__name__
        wire = name == "TCPStore"
        return Capabilities(
            cross_process=wire or name == "FileStore",
            cross_host=wire,
            queues=hasattr(self._kind, "queue_push"),
            list_keys=hasattr(self._kind, "list_keys"),
            barrier=False,
            bad_add_disconnects=True,
            extra_internal_keys=0 if not wire or hasattr(self._kind, "list_keys") else 1,
        )

    @property
    def timeout(self) -> timedelta:
        return self._timeout

    def set_timeout(self, timeout: Timeout) -> None:
        self._timeout = as_timedelta(timeout)

    # -- calls --------------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        if self._closed:
            raise StoreClosedError(f"{self!r} is closed")
        return self._below

    def _do(self, doing: str, call: Callable[[Any], T]) -> T:
        """A call that does not wait."""
        below = self._open()
        try:
            return call(below)
        except Exception as error:
            raise self._ended(doing, error) from error

    def _ended(self, doing: str, error: Exception) -> Exception:
        if isinstance(error, StoreError | TypeError | ValueError):
            return error
        return StoreConnectionError(f"{doing} on {self!r}: {type(error).__name__}: {error}")

    def _wait(self, doing: str, raws: Sequence[bytes], timeout: Timeout | None) -> None:
        span = span_ns(self._timeout if timeout is None else timeout)
        start, slice_ns = monotonic_ns(), SLICE_NS
        deadline = min(start + span, FOREVER)
        below = self._open()
        if not raws or self._do(doing, lambda store: store.check(list(raws))):
            return
        waiter = self._waiter(below)
        while True:
            left = FOREVER if deadline == FOREVER else deadline - monotonic_ns()
            if left > 0 and self._slept(waiter, doing, raws, min(left, slice_ns)):
                self._give(waiter)
                return
            self._open()
            if left <= slice_ns:
                break
            slice_ns = min(2 * slice_ns, LAST_SLICE_NS)
        self._give(waiter)
        missing = [raw for raw in dict.fromkeys(raws) if not self.check([raw])]
        if missing:
            elapsed = (monotonic_ns() - start) / 1e9
            raise StoreTimeoutError(
                f"Wait timeout: {doing} on {self!r}: still missing {', '.join(map(shown, missing[:16]))} "
                f"(waited {elapsed:.3f} s, limit {seconds(span):g} s)",
                keys=[key_text(raw) for raw in missing],
                elapsed=elapsed,
                timeout=seconds(span),
            )

    def _rest(self, doing: str, raws: Sequence[bytes], ns: int) -> bool:
        """Waits for the keys once, for so long; False when they did not come. Asks nothing else."""
        waiter = self._waiter(self._open())
        came = self._slept(waiter, doing, raws, ns)
        self._give(waiter)
        return came

    def _slept(self, waiter: Any, doing: str, raws: Sequence[bytes], ns: int) -> bool:
        """One slice; False when the keys did not come."""
        try:  # c10d counts whole milliseconds, and 0 is for ever to some
            waiter.wait(list(raws), timedelta(milliseconds=max(-(-ns // 1_000_000), 1)))
        except Exception as error:
            if gave_up(error):
                return False
            raise self._ended(doing, error) from error
        return True

    def _waiter(self, below: Any) -> Any:
        try:
            return self._clones.pop()
        except IndexError:
            return below.clone() if hasattr(below, "clone") else below

    def _give(self, waiter: Any) -> None:
        if waiter is not self._below and len(self._clones) < KEPT:
            self._clones.append(waiter)

    # -- one key ------------------------------------------------------------------------------------------------------

    def set(self, key: Key, value: Value) -> None:
        raw, data = key_bytes(key), value_bytes(value)
        self._do(f"set({shown(raw)})", lambda store: store.set(raw, data))

    def get(self, key: Key, timeout: Timeout | None = None) -> bytes:
        raw = key_bytes(key)
        doing = f"get({shown(raw)})"
        self._wait_until_there(doing, [raw], timeout)
        return bytes(self._do(doing, lambda store: store.get(raw)))

    def _wait_until_there(self, doing: str, raws: Sequence[bytes], timeout: Timeout | None) -> None:
        """Waits for keys whose values are to be read: torch's `get` waits too, and would hold the handle.

        Torch's libuv server wakes who waits for a key with any compare_set of it, also one that made nothing.
        """
        deadline = min(monotonic_ns() + span_ns(self._timeout if timeout is None else timeout), FOREVER)
        self._wait(doing, raws, timeout)
        while raws and not self.check(list(raws)):
            self._wait(doing, raws, seconds(FOREVER if deadline == FOREVER else max(deadline - monotonic_ns(), 0)))

    def add(self, key: Key, n: int) -> int:
        raw = key_bytes(key)
        check_addend(raw, n)
        return int(self._do(f"add({shown(raw)})", lambda store: store.add(raw, n)))

    def compare_set(self, key: Key, expected: Value, desired: Value) -> bytes:
        raw, old, new = key_bytes(key), value_bytes(expected), value_bytes(desired)
        return bytes(self._do(f"compare_set({shown(raw)})", lambda store: store.compare_set(raw, old, new)))

    def append(self, key: Key, value: Value) -> None:
        raw, data = key_bytes(key), value_bytes(value)
        self._do(f"append({shown(raw)})", lambda store: store.append(raw, data))

    def delete_key(self, key: Key) -> bool:
        raw = key_bytes(key)
        return bool(self._do(f"delete_key({shown(raw)})", lambda store: store.delete_key(raw)))

    # -- several keys -------------------------------------------------------------------------------------------------

    def check(self, keys: Keys) -> bool:
        raws = keys_bytes(keys)
        self._open()
        return not raws or bool(self._do("check", lambda store: store.check(raws)))

    def wait(self, keys: Keys, timeout: Timeout | None = None) -> None:
        self._wait("wait", keys_bytes(keys), timeout)

    def multi_get(self, keys: Keys, timeout: Timeout | None = None) -> list[bytes]:
        raws = keys_bytes(keys)
        self._wait_until_there("multi_get", raws, timeout)
        if not hasattr(self._kind, "multi_get"):
            return [self.get(raw, 0) for raw in raws]
        return [bytes(value) for value in self._do("multi_get", lambda store: store.multi_get(raws))] if raws else []

    def multi_set(self, keys: Keys, values: Values) -> None:
        pairs = pairs_bytes(keys, values)
        self._open()
        if not hasattr(self._kind, "multi_set"):
            for raw, data in pairs.items():
                self.set(raw, data)
        elif pairs:
            self._do("multi_set", lambda store: store.multi_set(list(pairs), list(pairs.values())))

    def num_keys(self) -> int:
        if hasattr(self._kind, "list_keys"):  # torch's num_keys counts the worker counter, where there is one
            return len(self.list_keys())
        return int(self._do("num_keys", lambda store: store.num_keys()))

    def list_keys(self) -> list[str]:
        return list(self._do("list_keys", lambda store: store.list_keys()))

    # -- queues, barrier ----------------------------------------------------------------------------------------------

    def queue_push(self, key: Key, value: Value) -> None:
        raw, data = key_bytes(key), value_bytes(value)
        self._do(f"queue_push({shown(raw)})", lambda store: store.queue_push(raw, data))

    def queue_pop(self, key: Key, block: bool = True) -> bytes:  # noqa: FBT001, FBT002 -- c10d's signature
        raw = key_bytes(key)
        doing = f"queue_pop({shown(raw)})"
        deadline = min(monotonic_ns() + span_ns(self._timeout), FOREVER)
        while True:
            try:
                below = self._open()
                return bytes(below.queue_pop(raw, False))
            except Exception as error:
                if not any(kind.__name__ == "QueueEmptyError" for kind in type(error).__mro__):
                    raise self._ended(doing, error) from error
            if not block:
                raise QueueEmptyError(f"{doing} on {self!r}: no item")
            self._wait(doing, [raw], seconds(max(deadline - monotonic_ns(), 0)))

    def queue_len(self, key: Key) -> int:
        raw = key_bytes(key)
        return int(self._do(f"queue_len({shown(raw)})", lambda store: store.queue_len(raw)))

    def barrier(self, key: Key, world_size: int, timeout: Timeout | None = None) -> None:
        """See `Store`. By a count under the key and a key `…/last_member`, as not every such store has the verb."""
        raw = key_bytes(key)
        check_world_size(world_size)
        span_ns(self._timeout if timeout is None else timeout)  # refused before it counts
        last = raw + b"/last_member"
        if self.add(raw, 1) >= world_size:
            self.set(last, b"1")
        try:
            self._wait(f"barrier({shown(raw)}, {world_size})", [last], timeout)
        except StoreTimeoutError as error:
            arrived = self.add(raw, 0)
            raise BarrierTimeoutError(
                f"{error}: {arrived} of {world_size} arrived",
                key=key_text(raw),
                arrived=arrived,
                world_size=world_size,
                elapsed=error.elapsed,
                timeout=error.timeout,
            ) from None

    # -- the handle ---------------------------------------------------------------------------------------------------

    def clone(self) -> Self:
        below = self._open()
        made = type(self)(below.clone() if hasattr(below, "clone") else below)
        made.set_timeout(self._timeout)
        return made

    def close(self) -> None:
        """Lets go of its clones; the store below has no close, and ends with its last reference."""
        self._closed, self._below = True, None
        self._clones.clear()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __repr__(self) -> str:
        place = f"{self._below.host!r}, {self._below.port}" if hasattr(self._below, "port") else ""
        return f"{self._kind.__module__}.{self._kind.__qualname__}({place})"

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} cannot be pickled")


def gave_up(error: BaseException) -> bool:
    """Whether a wait ended by its timeout: torch's DistStoreError, known by name; of its FileStore a RuntimeError."""
    if isinstance(error, StoreError):
        return isinstance(error, StoreTimeoutError)
    names = [kind.__name__ for kind in type(error).__mro__]
    if isinstance(error, TimeoutError) or ("DistStoreError" in names and "DistNetworkError" not in names):
        return True
    return type(error) is RuntimeError and "timeout" in str(error).lower()
