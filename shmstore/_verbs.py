"""The verbs over an attachment: what ShmStore and HashStore have in common.

`set`, `get`, `add`, `compare_set`, `check` and `delete_key` try a door first (`_core/doors.c`): it keeps the GIL, never
parks, and answers or declines with None. What it declined, for whatever reason, and all other verbs go the long way
(`_doors`), which releases the GIL, waits, and says what is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmstore import errors
from shmstore._deadline import Timeout, seconds, span_ns
from shmstore._doors import AGAIN, OK, ROOM, SLICE_NS, TIMED_OUT, USER, Handle, Wait, give, new_out, take
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
from shmstore._native import (
    door_add,
    door_check,
    door_compare_set,
    door_delete,
    door_get,
    door_set,
    door_wait,
    ffi,
    lib,
)

if TYPE_CHECKING:
    from shmstore._native import CData


class SegmentStore(Handle):
    """A store in a segment of shared memory. `ShmStore` and `HashStore` say how long the segment lives."""

    def set(self, key: Key, value: Value) -> None:
        if door_set(self._door, key, value) is None:
            raw, data = key_bytes(key), value_bytes(value)
            self._must("set", raw, lambda seg, until: lib.sst_set(seg, USER, raw, len(raw), data, len(data), until, 0))

    def get(self, key: Key, timeout: Timeout | None = None) -> bytes:
        span = self._span_ns if timeout is None else span_ns(timeout)
        value = door_get(self._door, key)
        if value is None and door_wait(self._door, (key,), span):
            value = door_get(self._door, key)
        if value is not None:
            return value
        raw = key_bytes(key)
        with Wait(self, f"get({shown(raw)})", timeout) as wait:
            return self._get(wait, raw, [raw])

    def add(self, key: Key, n: int) -> int:
        total = door_add(self._door, key, n)
        if total is not None:
            return total
        raw = key_bytes(key)
        check_addend(raw, n)
        number = ffi.new("int64_t *")
        self._must("add", raw, lambda seg, until: lib.sst_add(seg, USER, raw, len(raw), n, number, until, 0))
        return int(number[0])

    def compare_set(self, key: Key, expected: Value, desired: Value) -> bytes:
        value = door_compare_set(self._door, key, expected, desired)
        if value is not None:
            return value
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
        gone = door_delete(self._door, key)
        if gone is not None:
            return gone
        raw = key_bytes(key)
        code = self._must("delete_key", raw, lambda seg, until: lib.sst_delete(seg, USER, raw, len(raw), until, 0))
        return code == 1

    # -- several keys -------------------------------------------------------------------------------------------------

    def check(self, keys: Keys) -> bool:
        there = door_check(self._door, keys)
        if there is not None:
            return there
        raws = keys_bytes(keys)
        self._open()  # a closed handle says so also for no keys
        return all(self._there(raw) for raw in raws)

    def wait(self, keys: Keys, timeout: Timeout | None = None) -> None:
        span = self._span_ns if timeout is None else span_ns(timeout)
        if door_wait(self._door, keys, span):
            return
        raws = keys_bytes(keys)
        self._open()  # a closed handle says so also for no keys
        with Wait(self, "wait", timeout) as wait:
            missing = raws if len(raws) == 1 else self._missing(raws, wait)
            while missing:
                code = self._park(wait, missing[0])
                if code == OK:
                    missing = missing[1:]
                    wait.leave()
                if len(missing) > 1 or code == OK:
                    missing = self._missing(missing, wait)
                if missing and code == TIMED_OUT:
                    raise wait.timed_out(missing)

    def multi_get(self, keys: Keys, timeout: Timeout | None = None) -> list[bytes]:
        raws = keys_bytes(keys)
        self._open()  # a closed handle says so also for no keys
        with Wait(self, "multi_get", timeout) as wait:
            values = []
            for raw in raws:
                values.append(self._get(wait, raw, raws))
                wait.leave()
            return values

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
            lambda seg, until: lib.sst_multi_set(seg, USER, names, name_sizes, data, data_sizes, len(pairs), until, 0),
        )

    def num_keys(self) -> int:
        return self._count(b"")

    def list_keys(self) -> list[str]:
        return self._list(b"")

    def _peek(self, key: Key) -> bytes | None:
        value = door_get(self._door, key)
        if value is not None or door_check(self._door, (key,)) is False:
            return value
        raw = key_bytes(key)
        with Wait(self, f"get({shown(raw)})", None) as wait:
            return self._read("get", raw, wait)

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
            return lib.sst_list_keys(seg, USER, prefix, len(prefix), cursor, memory, room, used, until, 0)

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
                    0,
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

    def _barrier_home(self, raw: bytes) -> tuple[SegmentStore, bytes]:
        return self, raw

    # -- barrier ------------------------------------------------------------------------------------------------------

    def barrier(self, key: Key, world_size: int, timeout: Timeout | None = None) -> None:
        raw = key_bytes(key)
        check_world_size(world_size)
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
                if code == OK:
                    return
                if self._parked(wait, raw, code) == TIMED_OUT:
                    elapsed = wait.elapsed()
                    raise errors.BarrierTimeoutError(
                        wait.text(f"{count[0]} of {world_size} arrived", elapsed),
                        key=key_text(raw),
                        arrived=count[0],
                        world_size=world_size,
                        elapsed=elapsed,
                        timeout=seconds(wait.span),
                    )
