"""The elastic contract: exchange a value a rank, or meet at a barrier, over any store that has c10d's verbs.

What happens on the store is torch.distributed.elastic.utils.store's, operation for operation, so that ranks that use
these functions and ranks that use torch's may share one store and one key prefix. Any object with the verbs will do:
ours, torch's, a mock. Torch is never imported; its DistStoreError is known by its name.

The keys, for a prefix P:

    P{rank}                what a rank holds                                    synchronize
    P/finished/...         a barrier of its own, on which only rank 0 waits     get_all, synchronize
    P/num_members          arrivals, counted                                    barrier
    P/last_member          there once all have arrived: what everybody waits on barrier
    P{rank}/TRACE          this rank's wait timed out                           barrier, tracing
    P/TRACING_GATE         rank 0 has looked for the missing                    barrier, tracing

No key is ever deleted: a prefix serves once.

A HybridStore whose ranks these are, all of them, does synchronize and barrier its own way, by messages per node and not
per rank, under other keys (`_hybrid_once`); the results and errors are the same.

What differs from torch's functions, beside the texts of errors:

- A store of ours gets its timeout back when a call fails. A foreign store keeps the call's timeout then, as upstream.
- A barrier opens at world_size arrivals *or more*, so that a restarted rank, counted twice, cannot make the count step
  over the mark between two arrivals of others.
- Missing ranks come in order; when nobody opens the gate, the missing one is rank 0, and the error says so.

The timeout belongs to the handle: threads that act as ranks with different timeouts want a `clone()` each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from datetime import timedelta
from functools import lru_cache
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, cast

from shmstore._deadline import Timeout, as_timedelta
from shmstore._keys import check_int, value_bytes
from shmstore.errors import BarrierTimeoutError, DistStoreError, PeerDiedError
from shmstore.store import Store

__all__ = ["barrier", "default_barrier_timeout", "get_all", "store_timeout", "synchronize"]

default_barrier_timeout: ContextVar[Timeout] = ContextVar("shmstore_default_barrier_timeout", default=300.0)
"""What `barrier` waits when it is given no timeout, in seconds or as a timedelta; 300 s unless set.

For a caller between the user's timeout and a `barrier` call whose arguments are fixed::

    token = default_barrier_timeout.set(30)
    try:
        barrier(store=store, world_size=8, key_prefix="epoch/3")
    finally:
        default_barrier_timeout.reset(token)
"""

_MARK = "<val_ignored>"
_FOREVER = timedelta(days=36500)  # torch's stores overflow on timedelta.max and time out at once
_NEXT_TRACE = timedelta(milliseconds=1)  # once one rank is missing, the others had the time to say that they are not
_MAX_MISSING = 16  # two nodes of eight: enough to tell one lost node from several


class _DuckStore(Protocol):
    """The verbs that these functions call: `shmstore.Store` and `torch.distributed.Store` both have them.

    Both have a `timeout` too, which torch's stub leaves out; and `wait` has two overloads there.
    """

    def set_timeout(self, timeout: timedelta, /) -> Any: ...
    def set(self, key: str, value: Any, /) -> Any: ...
    def add(self, key: str, n: int, /) -> int: ...
    def multi_get(self, keys: list[str], /) -> list[bytes]: ...
    @property
    def wait(self) -> Callable[..., Any]: ...


def store_timeout(store: _DuckStore, timeout: Timeout) -> AbstractContextManager[None]:
    """Gives the store another timeout for the length of a `with` block.

    Args:
        store: any store; the timeout is the handle's, for all its threads.
        timeout: seconds or a timedelta, not negative; infinite means for ever.

    When the block raises, a store of ours gets its old timeout back and a foreign one keeps the new one: that is what
    torch's function does, and code that retries may count on it.

    Raises:
        ValueError: the timeout is negative or NaN. TypeError: it is neither seconds nor a timedelta.
    """
    return _StoreTimeout(store, _limit(timeout))


class _StoreTimeout:
    """A class, since a barrier that everybody has reached takes no longer than a generator's context manager."""

    __slots__ = ("_before", "_limit", "_store")

    def __init__(self, store: _DuckStore, limit: timedelta) -> None:
        self._store = store
        self._limit = limit

    def __enter__(self) -> None:
        self._before: timedelta = cast("Any", self._store).timeout
        self._store.set_timeout(self._limit)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or isinstance(self._store, Store):
            self._store.set_timeout(self._before)


def get_all(store: _DuckStore, rank: int, prefix: str, world_size: int) -> list[bytes]:
    """Returns what every rank holds under `prefix`, in rank order; waits until all of it is there.

    Args:
        store: any store.
        rank: the caller's rank. Rank 0 returns last, when all ranks have read: it may be the store's host.
        prefix: rank i's value is at the key `{prefix}{i}`.
        world_size: the number of ranks, at least 1.

    Returns:
        world_size values, exactly as the store's `multi_get` gives them.

    Raises:
        The store's timeout error, after the store's own timeout. ValueError: no such rank or world.
    """
    _check_world(rank, world_size)
    values = store.multi_get([f"{prefix}{i}" for i in range(world_size)])
    everybody_read = _arrive(store, world_size, f"{prefix}/finished")
    if rank == 0:
        store.wait([everybody_read])
    return values


def synchronize(
    store: _DuckStore,
    data: str | bytes,
    rank: int,
    world_size: int,
    key_prefix: str,
    timeout: Timeout = 300,
) -> list[bytes]:
    """Exchanges one value a rank: each gives its own and gets everybody's, in rank order.

    Args:
        store: any store.
        data: what this rank holds; the store's limits for values apply.
        rank: 0 to world_size - 1, each exactly once.
        world_size: the number of ranks.
        key_prefix: serves once; used again, it gives the values of the time before.
        timeout: seconds or a timedelta, for each wait inside.

    Blocks until all ranks have called it. N values travel to each of N ranks.

    Raises:
        The store's timeout error when a rank does not come. ValueError: no such rank or world, or a bad timeout.
    """
    _check_world(rank, world_size)
    if isinstance(store, Store):
        name, value = key_prefix.encode("utf-8", "surrogateescape"), value_bytes(data)
        values = store._together(name, rank, world_size, value, _limit(timeout))  # noqa: SLF001 -- Store's hook for it
        if values is not None:
            return values
    with store_timeout(store, timeout):
        store.set(f"{key_prefix}{rank}", data)
        return get_all(store, rank, key_prefix, world_size)


def barrier(
    store: _DuckStore,
    world_size: int,
    key_prefix: str,
    barrier_timeout: Timeout | None = None,
    rank: int | None = None,
    rank_tracing_decoder: Callable[[int], str] | None = None,
    trace_timeout: Timeout = 10,
) -> None:
    """Returns once world_size callers have called it with this prefix.

    Args:
        store: any store.
        world_size: how many arrivals open it, at least 1.
        key_prefix: serves once: a later caller passes at once.
        barrier_timeout: seconds or a timedelta; None is `default_barrier_timeout`, 300 s unless set.
        rank: the caller's rank, given by all or by none. With it a barrier that times out says who was missing.
        rank_tracing_decoder: rank -> what to call it in that message (a host name); the number itself by default.
        trace_timeout: seconds or a timedelta that rank 0 waits for the first rank that does not answer.

    At the timeout, with ranks: each says "timed out"; rank 0 looks which ranks have not said so, at most 16 of them,
    raises with their names and lets the others go, who point at rank 0. An arrival that timed out stays counted.

    Raises:
        DistStoreError: of the kind that the store raised, torch's from torch's stores. From a store of ours it is a
            `BarrierTimeoutError` (`.key`, `.world_size`, `.missing_ranks`) with ranks, the store's own
            StoreTimeoutError without; or the PeerDiedError that ended the wait, as it came: it names the dead.
        AssertionError: a decoder without a rank. ValueError: no such rank or world, or a bad timeout.
    """
    if rank is None and rank_tracing_decoder is not None:
        raise AssertionError("a rank_tracing_decoder needs the caller's rank: pass rank too")
    _check_world(rank, world_size)
    limit = _limit(default_barrier_timeout.get() if barrier_timeout is None else barrier_timeout)
    patience = _limit(trace_timeout)
    name = rank_tracing_decoder or str
    if isinstance(store, Store) and _met(store, world_size, key_prefix, rank, name, limit):
        return
    if isinstance(store, Store):  # its waits take the limit: the handle's own timeout need not change, and back
        _meet(store, world_size, key_prefix, rank, name, limit, patience, limit)
    else:
        with store_timeout(store, limit):
            _meet(store, world_size, key_prefix, rank, name, limit, patience, None)


def _met(
    store: Store, world_size: int, key_prefix: str, rank: int | None, name: Callable[[int], str], limit: timedelta
) -> bool:
    """The barrier by a store that has a shorter way for all of its ranks; False: it has none."""
    try:
        raw = key_prefix.encode("utf-8", "surrogateescape")
        return store._together(raw, rank, world_size, None, limit) is not None  # noqa: SLF001 -- Store's hook for it
    except BarrierTimeoutError as error:
        if rank is None:
            raise
        missing = error.missing_ranks
        who = ", ".join(name(i) for i in missing[:_MAX_MISSING])
        text = (
            f"barrier {key_prefix!r} timed out on rank {rank} after {limit.total_seconds():g} s "
            f"(world_size={world_size}, missing_ranks=[{who}])"
        )
        elapsed = error.elapsed or 0.0
        raise _timed_out(DistStoreError, text, key_prefix, world_size, missing, limit, elapsed) from error


def _meet(
    store: _DuckStore,
    world_size: int,
    key_prefix: str,
    rank: int | None,
    name: Callable[[int], str],
    limit: timedelta,
    patience: timedelta,
    timeout: timedelta | None,
) -> None:
    """The barrier. `timeout` goes with each long wait; None: the store has it already."""
    start = monotonic()
    opened = _arrive(store, world_size, key_prefix)
    try:
        if timeout is None:
            store.wait([opened])
        else:
            store.wait([opened], timeout)
    except Exception as error:
        family = _family(error)
        if family is None or rank is None or _names_the_dead(error):
            raise
        missing, who = _trace(store, world_size, key_prefix, rank, name, patience, timeout)
        text = (
            f"barrier {key_prefix!r} timed out on rank {rank} after {limit.total_seconds():g} s "
            f"(world_size={world_size}, missing_ranks=[{who}])"
        )
        raise _timed_out(family, text, key_prefix, world_size, missing, limit, monotonic() - start) from error


def _arrive(store: _DuckStore, world_size: int, prefix: str) -> str:
    """Counts the caller in, opens the barrier if it is the last, and returns the key that says whether it is open."""
    opened = f"{prefix}/last_member"
    if store.add(f"{prefix}/num_members", 1) >= world_size:
        store.set(opened, _MARK)
    return opened


def _trace(
    store: _DuckStore,
    world_size: int,
    prefix: str,
    rank: int,
    name: Callable[[int], str],
    patience: timedelta,
    timeout: timedelta | None,
) -> tuple[tuple[int, ...] | None, str]:
    """Who is missing: the ranks (None: rank 0 knows) and a text for people."""
    store.set(f"{prefix}{rank}/TRACE", _MARK)
    gate = f"{prefix}/TRACING_GATE"
    if rank != 0:
        if _seen(store, gate, timeout):
            return None, f"<check rank 0 ({name(0)}) for missing rank info>"
        return (0,), name(0)
    missing: list[int] = []
    traced = 0
    while traced < world_size - 1 and len(missing) < _MAX_MISSING:
        traced += 1
        if not _seen(store, f"{prefix}{traced}/TRACE", _NEXT_TRACE if missing else patience):
            missing.append(traced)
    store.set(gate, _MARK)  # before name(): a decoder that raises must not keep the others waiting
    more = "" if traced == world_size - 1 else f", and perhaps more after rank {traced}"
    return tuple(missing), ", ".join(name(i) for i in missing) + more


def _seen(store: _DuckStore, key: str, timeout: timedelta | None) -> bool:
    """Waits for one key, at most `timeout` or the store's own; False when the store gave up."""
    try:
        if timeout is None:
            store.wait([key])
        else:
            store.wait([key], timeout)
    except Exception as error:
        if _family(error) is None:
            raise
        return False
    return True


def _family(error: BaseException) -> type[BaseException] | None:
    """The class called DistStoreError that the error is of: ours, torch's, or None."""
    return next((kind for kind in type(error).__mro__ if kind.__name__ == "DistStoreError"), None)


def _names_the_dead(error: BaseException) -> bool:
    """True when a death ended the wait: said better than a trace could, and every wait of a trace would end so too."""
    return isinstance(error, PeerDiedError) or isinstance(error.__cause__, PeerDiedError)


def _timed_out(
    family: type[BaseException],
    text: str,
    key: str,
    world_size: int,
    missing: Sequence[int] | None,
    limit: timedelta,
    elapsed: float,
) -> BaseException:
    if family is not DistStoreError:
        return family(text)
    return BarrierTimeoutError(
        text,
        key=key,
        world_size=world_size,
        missing_ranks=missing,
        elapsed=elapsed,
        timeout=limit.total_seconds(),
    )


def _check_world(rank: int | None, world_size: int) -> None:
    if type(world_size) is not int or (rank is not None and type(rank) is not int):
        check_int(world_size, "world_size")
        check_int(0 if rank is None else rank, "rank")
    if world_size < 1:
        raise ValueError(f"world_size must be at least 1, not {world_size}")
    if rank is not None and not 0 <= rank < world_size:
        raise ValueError(f"rank must be 0 to {world_size - 1} in a world of {world_size}, not {rank}")


def _limit(timeout: Timeout) -> timedelta:
    try:
        return _known_limit(timeout)
    except TypeError:  # also of what cannot be a key of the cache
        return min(as_timedelta(timeout), _FOREVER)


@lru_cache(maxsize=64, typed=True)  # as of `span_ns`
def _known_limit(timeout: Timeout) -> timedelta:
    return min(as_timedelta(timeout), _FOREVER)
