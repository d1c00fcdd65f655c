"""The verbs over the wire: what each says, and how it waits.

What is said is torch's protocol (`codec`), and torch's own clients may use the same server and keys: a key `k` is `/k`
there. What differs from torch's client is when a call returns, and how it ends:

- A `set`, `append`, `multi_set` and `queue_push`, which the protocol does not answer, return when the server has done
  it: each is followed by a PING on the same connection. Torch's return when the bytes are on their way.
- What is wanted is looked for before anything waits for it, so that a timeout of 0 sees what is there. Only a call that
  has to wait sends WAIT, and keeps a connection to itself meanwhile (`connection`).
- A server that does not answer ends any call, after the store's timeout and at the least 5 s.

Two servers. "Full" is torch's libuv server, and ours; the other is torch's legacy one, which has no queues. What they
say of a missing key differs: the full one answers GET with no bytes, as for an empty value, the other one ends the
connection. CHECK and WAIT of the full one count a queue of that name as a key. So where it is not plain that a value is
there, it is read with a COMPARE_SET that changes nothing: it expects what nobody has set, and desires the same. The
answer is what was expected where the key is missing, and the value otherwise. On the full server COMPARE_SET wakes
those who wait for the key, also when nothing changed: it is asked only after a CHECK, so that no two waiters wake each
other for ever.
"""

# ruff: noqa: D102 -- the verbs' docstrings are Store's, and help() shows them here too
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from time import monotonic_ns
from typing import Any, Final, TypeVar

from shmstore import errors
from shmstore._deadline import FOREVER, Timeout, as_timedelta, seconds, span_ns
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
from shmstore.store import Capabilities, Store
from shmstore.tcp.codec import FrameError, Limits, Op, Signal, split
from shmstore.tcp.connection import PATIENCE_NS, Asked, Line, ping
from shmstore.tcp.pool import Pool

__all__ = ["WORKERS", "WireStore"]

T = TypeVar("T")

WORKERS: Final = b"init/"
"""The key on the wire under which torch's clients count themselves: no user's, since no slash stands before it."""

AT_ONCE: Final = 1000
"""Keys of one request: torch's libuv server reads a request anew with each piece of it that comes."""

BATCH: Final = 16384
"""Bytes of requests in one write, of which each may have a long answer."""

PAIRS_MAX: Final = Limits().keys
PAUSES_S: Final = (0.001, 0.05)

_FULL: Final = Capabilities(cross_process=True, cross_host=True, picklable=True, fork=True, bad_add_disconnects=True)
_LEGACY: Final = Capabilities(
    cross_process=True, cross_host=True, picklable=True, fork=True, queues=False, bad_add_disconnects=True
)


class Wait:
    """One call that may wait: since when, until when."""

    __slots__ = ("_pause", "deadline", "doing", "silent", "span", "start", "store")

    def __init__(self, store: WireStore, doing: str, timeout: Timeout | None) -> None:
        self.store = store
        self.doing = doing
        self.span = store._span_ns if timeout is None else span_ns(timeout)  # noqa: SLF001 -- a part of the store
        self.start = monotonic_ns()
        self.deadline = min(self.start + self.span, FOREVER)
        self.silent = False  # the server did not even answer that the wait is over: it is asked nothing more
        self._pause = 0.0

    def late(self) -> bool:
        return self.deadline != FOREVER and monotonic_ns() >= self.deadline

    def pause(self) -> None:
        """For what the server wakes nobody for: at first none, then longer ones, to the deadline."""
        left = max(0.0, (self.deadline - monotonic_ns()) / 1e9)
        time.sleep(min(self._pause, left))
        self._pause = min(max(self._pause * 2, PAUSES_S[0]), PAUSES_S[1])

    def text(self, what: str, elapsed: float) -> str:
        return (
            f"Wait timeout: {self.doing} on {self.store!r}: {what} (waited {elapsed:.3f} s, "
            f"the limit is {seconds(self.span):g} s)"
        )

    def elapsed(self) -> float:
        """Seconds since the call began."""
        return (monotonic_ns() - self.start) / 1e9

    def timed_out(self, missing: Sequence[bytes]) -> errors.StoreTimeoutError:
        named = ", ".join(map(shown, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        elapsed = self.elapsed()
        what = f"{'key' if len(missing) == 1 else 'keys'} {named} did not come"
        return errors.StoreTimeoutError(
            self.text(what, elapsed), keys=map(key_text, missing), elapsed=elapsed, timeout=seconds(self.span)
        )


class WireStore(Store):
    """A store at the server of a pool's connections. `TCPStore` says how it is found."""

    def __init__(self, pool: Pool, timeout: Timeout, *, full: bool = True) -> None:
        self._timeout, self._span_ns = as_timedelta(timeout), span_ns(timeout)
        self._pool = pool
        self._full = full
        self._never = b"\0nobody sets this\0" + os.urandom(16)

    # -- the handle ---------------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return _FULL if self._full else _LEGACY

    @property
    def timeout(self) -> timedelta:
        return self._timeout

    def set_timeout(self, timeout: Timeout) -> None:
        as_given = as_timedelta(timeout)
        self._span_ns = span_ns(timeout)
        self._timeout = as_given

    # -- asking -------------------------------------------------------------------------------------------------------

    def _ask(self, doing: str, asked: Sequence[Asked], span: int | None = None) -> list[Any]:
        """The answers to requests of which none waits, in one write and on one connection.

        Args:
            doing: the verb and its key, for an error.
            asked: opcodes and fields.
            span: of the call's timeout, in ns; None: the store's own. The server gets 5 s at the least.
        """
        deadline = min(monotonic_ns() + max(self._span_ns if span is None else span, PATIENCE_NS), FOREVER)
        return self._lent(doing, deadline, lambda line: line.exchange(asked, deadline))

    def _post(self, doing: str, asked: Sequence[Asked]) -> None:
        """Requests of which none waits, without a look at what comes of them. For those who learn it in another way.

        Raises StoreConnectionError where they could not be sent, or what was posted before had no answer in 5 s.
        """
        deadline = monotonic_ns() + PATIENCE_NS
        self._lent(doing, deadline, lambda line: line.post(asked, deadline))

    def _tell(self, doing: str, op: Op, *fields: Any) -> None:
        """A request without an answer, and returns when the server has done it: it answers the PING behind it then."""
        self._ask(doing, [(op, fields), ping()])

    def _await(self, wait: Wait, asked: Asked) -> bool:
        """Sends a WAIT or BARRIER on a connection of its own; False when it was not released by the deadline."""
        line: Line | None = None
        try:
            line = self._pool.take(min(wait.start + max(wait.span, PATIENCE_NS), FOREVER))
            released = line.await_signal(asked, wait.deadline)
        except TimeoutError as error:
            if line is None or error.errno is not None:  # not the deadline: the system gave the connection up
                raise self._ended(error, line, wait.doing, wait.start) from None
            self._pool.drop(line)
            wait.silent = True
            return False
        except BaseException as error:
            raise self._ended(error, line, wait.doing, wait.start) from None
        self._pool.give(line)
        return released

    def _ask_and_await(
        self,
        doing: str,
        first: Sequence[Asked],
        raws: Sequence[bytes],
        then: Sequence[Asked],
        deadline: int,
        seen: Callable[[list[Any]], bool],
        look: Callable[[], bool],
        hoped: Sequence[Any] = (),
        size: int = 0,
    ) -> tuple[bool, list[Any] | None]:
        """Requests and a WAIT for keys in one write: see `Line.ask_and_await`. A silent server is a lost one."""
        asked: Asked = (Op.WAIT, (_wired(raws),))
        return self._lent(
            doing,
            monotonic_ns() + PATIENCE_NS,
            lambda line: line.ask_and_await(first, asked, then, deadline, seen, look, hoped, size),
        )

    def _lent(self, doing: str, deadline: int, use: Callable[[Line], T]) -> T:
        """What is done with a connection, which is to be had by the deadline, and goes back where all went well."""
        start = monotonic_ns()
        line: Line | None = None
        try:
            line = self._pool.take(deadline)
            result = use(line)
        except BaseException as error:
            raise self._ended(error, line, doing, start) from None
        self._pool.give(line)
        return result

    def _ended(self, error: BaseException, line: Line | None, doing: str, start: int) -> BaseException:
        """What to raise for what ended a call. Its connection is dropped: its answers have not all been read."""
        if line is not None:
            self._pool.drop(line)
        if isinstance(error, errors.StoreError) or not isinstance(error, OSError | FrameError):
            return error  # said already, or Ctrl-C
        if self._pool.closed:
            return errors.StoreClosedError(f"{self!r} is closed")
        where = f"{doing} on {self!r}"
        took = f"after {(monotonic_ns() - start) / 1e9:.3f} s"
        if isinstance(error, TimeoutError) and error.errno is None:
            return errors.StoreConnectionError(f"{where}: no answer; given up {took}, and it may have happened")
        if isinstance(error, FrameError):
            return errors.StoreConnectionError(f"{where}: what came is no answer: {error}; given up {took}")
        reason = error.strerror or str(error)
        return errors.StoreConnectionError(
            f"{where}: the connection was lost {took}, and it may have happened: {reason}"
        )

    def _open(self) -> None:
        self._pool.check()

    # -- one key ------------------------------------------------------------------------------------------------------

    def set(self, key: Key, value: Value) -> None:
        raw, data = key_bytes(key), value_bytes(value)
        self._tell(f"set({shown(raw)})", Op.SET, b"/" + raw, data)

    def get(self, key: Key, timeout: Timeout | None = None) -> bytes:
        raw = key_bytes(key)
        return self._get(Wait(self, f"get({shown(raw)})", timeout), raw, [raw])

    def _get(self, wait: Wait, raw: bytes, wanted: list[bytes]) -> bytes:
        """The key's value when it comes; `wanted` are the keys that an error is to look for."""
        while True:
            value = self._read(wait, raw)
            if value is not None:
                return value
            if wait.late() or not self._await(wait, (Op.WAIT, ([b"/" + raw],))):
                value = None if wait.silent else self._read(wait, raw)
                if value is not None:
                    return value
                missing = self._missing(wait, wanted)
                raise wait.timed_out(missing if raw in missing else [raw, *missing])

    def _read(self, wait: Wait, raw: bytes) -> bytes | None:
        """The key's value if it is there."""
        if self._full:
            (value,) = self._ask(wait.doing, [(Op.GET, (b"/" + raw,))], wait.span)
            if value:
                return bytes(value)
        if not self._there(wait.doing, [raw], wait.span):
            return None
        (found,) = self._exactly(wait, [raw])
        if found is None:
            wait.pause()  # a queue of that name: no WAIT waits; or it was deleted just now
        return found

    def _exactly(self, wait: Wait, raws: Sequence[bytes]) -> list[bytes | None]:
        """The keys' values or None each: a queue, and an empty value, are told from a missing key."""
        never = self._never
        found: list[bytes] = []
        for some in _batches(raws):
            found += self._ask(wait.doing, [(Op.COMPARE_SET, (b"/" + raw, never, never)) for raw in some], wait.span)
        return [None if value == never else value for value in found]

    def add(self, key: Key, n: int) -> int:
        raw = key_bytes(key)
        check_addend(raw, n)
        try:
            return int(self._ask(f"add({shown(raw)})", [(Op.ADD, (b"/" + raw, n))])[0])
        except errors.StoreConnectionError as error:
            raise errors.StoreConnectionError(
                f"{error} (a server ends the connection also when the present value has no leading number)"
            ) from None

    def compare_set(self, key: Key, expected: Value, desired: Value) -> bytes:
        raw, old, new = key_bytes(key), value_bytes(expected), value_bytes(desired)
        asked: list[Asked] = [(Op.COMPARE_SET, (b"/" + raw, old, new))]
        if not old and not self._full:  # it may create the key, and torch's legacy server would wake nobody
            asked += [(Op.APPEND, (b"/" + raw, b"")), ping()]
        return bytes(self._ask(f"compare_set({shown(raw)})", asked)[0])

    def append(self, key: Key, value: Value) -> None:
        raw, data = key_bytes(key), value_bytes(value)
        self._tell(f"append({shown(raw)})", Op.APPEND, b"/" + raw, data)

    def delete_key(self, key: Key) -> bool:
        raw = key_bytes(key)
        return bool(self._ask(f"delete_key({shown(raw)})", [(Op.DELETE_KEY, (b"/" + raw,))])[0])

    # -- several keys -------------------------------------------------------------------------------------------------

    def check(self, keys: Keys) -> bool:
        raws = keys_bytes(keys)
        self._open()  # a closed handle says so also for no keys
        return all(self._there("check", some, None) for some in split(raws, AT_ONCE) if some)

    def _there(self, doing: str, raws: Sequence[bytes], span: int | None) -> bool:
        """True when all are there, or queues of their names with items; at most AT_ONCE keys."""
        (answer,) = self._ask(doing, [(Op.CHECK, (_wired(raws),))], span)
        return bool(answer == Signal.READY)

    def _missing(self, wait: Wait, raws: Sequence[bytes]) -> list[bytes]:
        """Those of the keys that are not there, each once; all of them where the server is silent."""
        missing: list[bytes] = []
        raws = list(dict.fromkeys(raws))
        for some in split(raws, AT_ONCE) if not wait.silent else ():
            asked: list[Asked] = [(Op.CHECK, ([b"/" + raw],)) for raw in some]
            answers = self._ask(wait.doing, asked, wait.span) if asked else []
            missing += [raw for raw, answer in zip(some, answers, strict=True) if answer == Signal.NOT_READY]
        return raws if wait.silent else missing

    def wait(self, keys: Keys, timeout: Timeout | None = None) -> None:
        raws = keys_bytes(keys)
        wait = Wait(self, "wait", timeout)
        self._open()  # the same
        for some in split(raws, AT_ONCE):
            if some and not self._wait(wait, some):
                missing = self._missing(wait, raws)
                if missing:
                    raise wait.timed_out(missing)

    def _wait(self, wait: Wait, raws: Sequence[bytes]) -> bool:
        """Waits until all have been seen; False when the deadline came first. At most AT_ONCE keys."""
        if self._there(wait.doing, raws, wait.span):
            return True
        return not wait.late() and self._await(wait, (Op.WAIT, (_wired(raws),)))

    def multi_get(self, keys: Keys, timeout: Timeout | None = None) -> list[bytes]:
        raws = keys_bytes(keys)
        wait = Wait(self, "multi_get", timeout)
        self._open()  # the same
        values: list[bytes] = []
        for some in split(raws, AT_ONCE):
            if not self._wait(wait, some):
                missing = self._missing(wait, raws)
                if missing:
                    raise wait.timed_out(missing)
            values += [
                self._get(wait, raw, raws) if value is None else value
                for raw, value in zip(some, self._values(wait, some), strict=True)
            ]
        return values

    def _values(self, wait: Wait, raws: Sequence[bytes]) -> list[bytes | None]:
        """The values of keys that were there, None for one that is not any more. At most AT_ONCE keys."""
        found: list[bytes] = [b""] * len(raws)
        if self._full:
            (found,) = self._ask(wait.doing, [(Op.MULTI_GET, (_wired(raws),))], wait.span)
        empty = iter(self._exactly(wait, [raw for raw, value in zip(raws, found, strict=True) if not value]))
        return [value or next(empty) for value in found]

    def multi_set(self, keys: Keys, values: Values) -> None:
        """See `Store`. At most 131072 keys, which is torch's limit: ValueError."""
        pairs = pairs_bytes(keys, values)
        self._open()  # the same
        if len(pairs) > PAIRS_MAX:
            raise ValueError(f"multi_set on {self!r}: at most {PAIRS_MAX} keys at once on the wire, got {len(pairs)}")
        if pairs:
            self._tell("multi_set", Op.MULTI_SET, [(b"/" + raw, data) for raw, data in pairs.items()])

    def num_keys(self) -> int:
        count, workers = self._ask("num_keys", [(Op.GETNUMKEYS, ()), (Op.CHECK, ([WORKERS],))])
        return int(count) - int(workers == Signal.READY)

    def list_keys(self) -> list[str]:
        return self._list(b"")

    def _count(self, prefix: bytes) -> int:
        return len(self._list(prefix)) if prefix else self.num_keys()

    def _list(self, prefix: bytes) -> list[str]:
        begin = b"/" + prefix
        (names,) = self._ask("list_keys", [(Op.LIST_KEYS, ())])
        return [key_text(name[1:]) for name in names if name.startswith(begin)]

    # -- queues -------------------------------------------------------------------------------------------------------

    def _has_queues(self) -> None:
        self._open()
        if not self._full:
            raise errors.StoreError(f"{self!r}: torch's legacy server has no queues; start it with use_libuv=True")

    def queue_push(self, key: Key, value: Value) -> None:
        raw, data = key_bytes(key), value_bytes(value)
        self._has_queues()
        self._tell(f"queue_push({shown(raw)})", Op.QUEUE_PUSH, b"/" + raw, data)

    def queue_pop(self, key: Key, block: bool = True) -> bytes:  # noqa: FBT001, FBT002 -- c10d's signature
        raw = key_bytes(key)
        self._has_queues()
        wait = Wait(self, f"queue_pop({shown(raw)})", None)
        released = False
        while True:
            (_, item), *_rest = self._ask(wait.doing, [(Op.QUEUE_POP, (b"/" + raw,))])
            if item is not None:
                return bytes(item)
            if not block:
                raise errors.QueueEmptyError(f"{wait.doing} on {self!r}: no item")
            if released:
                wait.pause()  # a key of that name: no WAIT waits; or another popper was faster
            if wait.late() or not self._await(wait, (Op.WAIT, ([b"/" + raw],))):
                raise wait.timed_out([raw])
            released = True

    def queue_len(self, key: Key) -> int:
        raw = key_bytes(key)
        self._has_queues()
        return int(self._ask(f"queue_len({shown(raw)})", [(Op.QUEUE_LEN, (b"/" + raw,))])[0])

    # -- barrier ------------------------------------------------------------------------------------------------------

    def barrier(self, key: Key, world_size: int, timeout: Timeout | None = None) -> None:
        raw = key_bytes(key)
        check_world_size(world_size)
        wait = Wait(self, f"barrier({shown(raw)}, {world_size})", timeout)
        if self._await(wait, (Op.BARRIER, (b"/" + raw, world_size))):
            return
        elapsed = wait.elapsed()
        arrived = None if wait.silent else self._arrived(wait, raw)
        raise errors.BarrierTimeoutError(
            wait.text(f"{'?' if arrived is None else arrived} of {world_size} arrived", elapsed),
            key=key_text(raw),
            arrived=arrived,
            world_size=world_size,
            elapsed=elapsed,
            timeout=seconds(wait.span),
        )

    def _arrived(self, wait: Wait, raw: bytes) -> int | None:
        """How many have arrived, for an error; None where that cannot be learned any more."""
        try:
            text = self._read(wait, raw)
        except errors.DistStoreError:
            return None
        return int(text) if text is not None and text.isdigit() else None


def _batches(raws: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The keys in order, in groups of few bytes: the server's socket takes them while it is still answering."""
    some: list[bytes] = []
    room = BATCH
    for raw in raws:
        room -= len(raw) + 100
        if room < 0 and some:
            yield some
            some, room = [], BATCH
        some.append(raw)
    if some:
        yield some


def _wired(raws: Sequence[bytes]) -> list[bytes]:
    return [b"/" + raw for raw in raws]
