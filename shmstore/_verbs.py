"""The verbs over an attachment: what ShmStore and HashStore have in common.

Two doors lead to the core. `set`, `get`, `add`, `check` and `delete_key` try the fast one first: it keeps the GIL,
never parks, and answers SST_EAGAIN whenever it would. Everything else, and what the fast door turned away, goes through
the door that releases the GIL (`_doors`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from shmstore import errors
from shmstore._deadline import Timeout, seconds, span_ns
from shmstore._doors import AGAIN, ROOM, SLICE_NS, USER, Handle, Wait, give, new_out, outs, take
from shmstore._keys import (
    Key,
    Keys,
    Value,
    Values,
    check_sequence,
    key_bytes,
    key_text,
    keys_bytes,
    pairs_bytes,
    shown,
    value_bytes,
)
from shmstore._native import ffi, lib

if TYPE_CHECKING:
    from shmstore._native import CData

_fast_set = lib.sst_fast_set
_fast_get = lib.sst_fast_get
_fast_add = lib.sst_fast_add
_fast_check = lib.sst_fast_check
_fast_delete = lib.sst_fast_delete

WORLD_MAX: Final = 2**32 - 1

_numbers: Final[deque[CData]] = deque()
"""Free int64_t for sums."""


class SegmentStore(Handle):
    """A store in a segment of shared memory. `ShmStore` and `HashStore` say how long the segment lives."""

    def set(self, key: Key, value: Value) -> None:
        try:
            raw = key.encode() if type(key) is str else key_bytes(key)
        except UnicodeEncodeError:
            raw = key_bytes(key)
        data = value if type(value) is bytes else value.encode() if type(value) is str else value_bytes(value)
        code = _fast_set(self._seg, raw, len(raw), data, len(data))
        if code:
            raw, data = key_bytes(key), value_bytes(data)
            self._must("set", raw, lambda seg, until: lib.sst_set(seg, USER, raw, len(raw), data, len(data), until, 0))

    def get(self, key: Key, timeout: Timeout | None = None) -> bytes:
        try:
            raw = key.encode() if type(key) is str else key_bytes(key)
        except UnicodeEncodeError:
            raw = key_bytes(key)
        if timeout is not None:
            span_ns(timeout)
        try:
            out = outs.pop()
        except IndexError:
            out = new_out(ROOM)
        memory, view, _ = out
        length = _fast_get(self._seg, raw, len(raw), memory)
        if length >= 0:
            value = view[:length]
            outs.append(out)
            return value
        outs.append(out)
        raw = key_bytes(key)
        with Wait(self, f"get({shown(raw)})", timeout) as wait:
            return self._get(wait, raw, [raw])

    def add(self, key: Key, n: int) -> int:
        try:
            raw = key.encode() if type(key) is str else key_bytes(key)
        except UnicodeEncodeError:
            raw = key_bytes(key)
        try:
            number = _numbers.pop()
        except IndexError:
            number = ffi.new("int64_t *")
        try:
            code = _fast_add(self._seg, raw, len(raw), n, number)
        except OverflowError:
            raise ValueError(f"add({shown(raw)}): n must be an int64, got {n}") from None
        except TypeError:
            raise TypeError(f"add({shown(raw)}): n must be an int, not {type(n).__name__}") from None
        if code:
            raw = key_bytes(key)
            self._must("add", raw, lambda seg, until: lib.sst_add(seg, USER, raw, len(raw), n, number, until, 0))
        total: int = number[0]
        _numbers.append(number)
        return total

    def compare_set(self, key: Key, expected: Value, desired: Value) -> bytes:
        raw, old, new = key_bytes(key), value_bytes(expected), value_bytes(desired)
        value = self._fetch(
            "compare_set",
            raw,
            lambda seg, memory, room, length, until: lib.sst_compare_set(
                seg, USER, raw, len(raw), old, len(old), new, len(new), memory, room, length, until, 0
            ),
            room=max(len(old), len(new)),
        )
        assert value is not None  # the core answers with `expected` for a missing key
        return value

    def append(self, key: Key, value: Value) -> None:
        raw, data = key_bytes(key), value_bytes(value)
        self._must(
            "append", raw, lambda seg, until: lib.sst_append(seg, USER, raw, len(raw), data, len(data), until, 0)
        )

    def delete_key(self, key: Key) -> bool:
        raw = key_bytes(key)
        code = _fast_delete(self._seg, raw, len(raw))
        if code < 0:
            code = self._must("delete_key", raw, lambda seg, until: lib.sst_delete(seg, USER, raw, len(raw), until, 0))
        return code == 1

    # -- several keys -------------------------------------------------------------------------------------------------

    def check(self, keys: Keys) -> bool:
        if not isinstance(keys, list | tuple):
            check_sequence(keys, "keys")
        seg = self._seg if keys else self._open()
        there = True
        for key in keys:
            raw = key.encode() if type(key) is str and key.isascii() else key_bytes(key)
            code = _fast_check(seg, raw, len(raw)) if there else -1
            if code != 1:
                raw = key_bytes(key)
                there = there and self._there(raw)
        return there

    def wait(self, keys: Keys, timeout: Timeout | None = None) -> None:
        raws = keys_bytes(keys)
        self._open()  # a closed handle says so also for no keys
        with Wait(self, "wait", timeout) as wait:
            missing = self._missing(raws, wait)
            while missing:
                head = missing[0]
                going = self._park(wait, head)
                missing = self._missing(missing, wait)
                if missing and not going:
                    raise wait.timed_out(missing)
                if missing and missing[0] != head:
                    wait.leave()

    def multi_get(self, keys: Keys, timeout: Timeout | None = None) -> list[bytes]:
        raws = keys_bytes(keys)
        self._open()  # a closed handle says so also for no keys
        with Wait(self, "multi_get", timeout) as wait:
            return [self._get(wait, raw, raws) for raw in raws]

    def multi_set(self, keys: Keys, values: Values) -> None:
        pairs = pairs_bytes(keys, values)
        self._open()  # the same
        if not pairs:
            return
        names, data = b"".join(pairs), b"".join(pairs.values())
        name_sizes = ffi.new("uint32_t[]", [len(raw) for raw in pairs])
        data_sizes = ffi.new("uint32_t[]", [len(value) for value in pairs.values()])
        self._must(
            "multi_set",
            next(iter(pairs)),
            lambda seg, until: lib.sst_multi_set(seg, USER, names, name_sizes, data, data_sizes, len(pairs), until),
        )

    def num_keys(self) -> int:
        return self._count(b"")

    def list_keys(self) -> list[str]:
        return self._list(b"")

    def _count(self, prefix: bytes) -> int:
        number = ffi.new("int64_t *")
        self._must(
            "num_keys", prefix, lambda seg, until: lib.sst_num_keys(seg, USER, prefix, len(prefix), number, until, 0)
        )
        return int(number[0])

    def _list(self, prefix: bytes) -> list[str]:
        names: list[str] = []
        cursor, used = ffi.new("uint32_t *"), ffi.new("size_t *")
        room = ROOM
        memory = ffi.new("char[]", room)

        def some(seg: CData, until: int) -> int:
            return lib.sst_list_keys(seg, USER, prefix, len(prefix), cursor, memory, room, used, until)

        more = 1
        while more:
            more = self._run("list_keys", prefix, some)
            if more == lib.SST_ENOBUFS:
                room = used[0]
                memory = ffi.new("char[]", room)
                continue
            if more < 0:
                raise errors.from_code(more, "list_keys", repr(self))
            records = ffi.buffer(memory, room)[: used[0]]
            at = 0
            while at < len(records):
                end = at + 4 + int.from_bytes(records[at : at + 4], "little")
                names.append(key_text(records[at + 4 : end]))
                at = end
        return names

    # -- queues -------------------------------------------------------------------------------------------------------

    def queue_push(self, key: Key, value: Value) -> None:
        raw, data = key_bytes(key), value_bytes(value)
        self._must(
            "queue_push",
            raw,
            lambda seg, until: lib.sst_queue_push(seg, USER, raw, len(raw), data, len(data), until, 0),
        )

    def queue_pop(self, key: Key, block: bool = True) -> bytes:  # noqa: FBT001, FBT002 -- c10d's signature
        raw = key_bytes(key)
        out = take()
        with Wait(self, f"queue_pop({shown(raw)})", None) as wait:
            while True:
                memory, view, length = out
                seg = wait.seg = self._open()
                code = lib.sst_queue_pop(
                    seg,
                    USER,
                    raw,
                    len(raw),
                    bool(block),
                    memory,
                    len(view),
                    length,
                    wait.cookie,
                    self._waiter_rank(),
                    wait.deadline,
                    SLICE_NS,
                )
                if code == lib.SST_OK:
                    value = view[: length[0]]
                    give(out)
                    return value
                if code == lib.SST_ENOBUFS:
                    give(out)
                    out = new_out(length[0])
                elif code == lib.SST_ENOENT and not block:
                    give(out)
                    raise errors.QueueEmptyError(f"queue_pop({shown(raw)}) on {self!r}: no item")
                elif code == lib.SST_ETIMEDOUT:
                    self._watch_peers(raw)
                    raise wait.timed_out([raw])
                elif code == lib.SST_EBUSY and wait.late():
                    raise wait.busy([raw])
                elif code not in AGAIN and code != lib.SST_EBUSY:
                    raise errors.from_code(code, f"queue_pop({shown(raw)})", repr(self))
                elif block:
                    self._watch_peers(raw)

    def queue_len(self, key: Key) -> int:
        raw = key_bytes(key)
        number = ffi.new("int64_t *")
        self._must("queue_len", raw, lambda seg, until: lib.sst_queue_len(seg, USER, raw, len(raw), number, until, 0))
        return int(number[0])

    # -- barrier ------------------------------------------------------------------------------------------------------

    def barrier(self, key: Key, world_size: int, timeout: Timeout | None = None) -> None:
        raw = key_bytes(key)
        if isinstance(world_size, bool) or not isinstance(world_size, int):
            raise TypeError(f"world_size must be an int, not {type(world_size).__name__}")
        if not 1 <= world_size <= WORLD_MAX:
            raise ValueError(f"world_size must be 1 to {WORLD_MAX}, got {world_size}")
        arrived, count = ffi.new("uint32_t *"), ffi.new("int64_t *")
        with Wait(self, f"barrier({shown(raw)}, {world_size})", timeout) as wait:
            while True:
                self._watch_peers(raw)
                seg = wait.seg = self._open()
                code = lib.sst_barrier(
                    seg,
                    USER,
                    raw,
                    len(raw),
                    world_size,
                    arrived,
                    count,
                    wait.cookie,
                    self._waiter_rank(),
                    wait.deadline,
                    SLICE_NS,
                )
                if code == lib.SST_OK:
                    return
                if not self._parked(wait, raw, code):
                    elapsed = wait.elapsed()
                    raise errors.BarrierTimeoutError(
                        wait.text(f"{count[0]} of {world_size} arrived", elapsed),
                        key=key_text(raw),
                        arrived=count[0],
                        world_size=world_size,
                        elapsed=elapsed,
                        timeout=seconds(wait.span),
                    )
