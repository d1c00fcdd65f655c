"""Types of the extension module ``shmstore._native``: what cffi builds from the marked region of ``_core/sst.h``, and
the doors of ``_core/doors.c``.

What each function does is said in those files, once. ``tests/structure/test_stub.py`` fails when a name, a parameter or
a constant here is not the header's.
"""

from collections.abc import Iterator
from typing import Any, Final, TypeAlias, final

@final
class CData:
    """A C value cffi owns or points to: an array, a struct, a pointer. Fields of structs are attributes."""

    def __getattr__(self, name: str, /) -> Any: ...
    def __setattr__(self, name: str, value: Any, /) -> None: ...
    def __getitem__(self, index: int | slice, /) -> Any: ...
    def __setitem__(self, index: int | slice, value: Any, /) -> None: ...
    def __add__(self, offset: int, /) -> CData: ...
    def __sub__(self, offset: int, /) -> CData: ...
    def __bool__(self) -> bool: ...
    def __int__(self) -> int: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...

@final
class Buffer:
    """Memory of a CData as a writable buffer; a slice is a copy, in bytes."""

    def __getitem__(self, index: int | slice, /) -> bytes: ...
    def __setitem__(self, index: int | slice, value: bytes, /) -> None: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

# What a parameter `const char *` takes: bytes pass without a copy, and may hold NUL.
Bytes: TypeAlias = bytes | CData

@final
class _FFI:
    NULL: Final[CData]
    errno: int
    def new(self, cdecl: str, init: Any = ..., /) -> CData: ...
    def cast(self, cdecl: str, source: CData | int, /) -> CData: ...
    def buffer(self, cdata: CData, size: int = ..., /) -> Buffer: ...
    def from_buffer(self, cdecl: str, source: Any, /, require_writable: bool = ...) -> CData: ...
    def memmove(self, dest: Any, src: Any, n: int) -> None: ...
    def sizeof(self, cdecl: str | CData, /) -> int: ...
    def string(self, cdata: CData, maxlen: int = ...) -> bytes: ...
    def unpack(self, cdata: CData, length: int) -> Any: ...
    def gc(self, cdata: CData, destructor: Any, size: int = ...) -> CData: ...
    def release(self, cdata: CData, /) -> None: ...
    def addressof(self, cdata: CData, /, *fields_or_indexes: str | int) -> CData: ...

@final
class _Lib:
    SST_OK: Final[int]
    SST_EAGAIN: Final[int]
    SST_ENOENT: Final[int]
    SST_EEXIST: Final[int]
    SST_ETIMEDOUT: Final[int]
    SST_EINTR: Final[int]
    SST_EFULL: Final[int]
    SST_ENOSPC: Final[int]
    SST_ECORRUPT: Final[int]
    SST_EINVAL: Final[int]
    SST_ENOTINT: Final[int]
    SST_ERANGE: Final[int]
    SST_ENOBUFS: Final[int]
    SST_ECLOSED: Final[int]
    SST_EBUSY: Final[int]
    SST_EPEERS: Final[int]
    SST_ESYS: Final[int]
    SST_EMAGIC: Final[int]
    SST_ELAYOUT: Final[int]
    SST_ETRUNC: Final[int]
    SST_ENGINE: Final[int]
    SST_EDEAD: Final[int]
    SST_ETOOBIG: Final[int]
    SST_EBROKEN: Final[int]
    SST_EPARTIES: Final[int]
    SST_ELOST: Final[int]
    SST_KEY_MAX: Final[int]
    SST_VALUE_MAX: Final[int]
    SST_TRY_COPY: Final[int]
    SST_PEERS_MAX: Final[int]
    SST_RANKS_MAX: Final[int]
    SST_WAITERS_MAX: Final[int]
    SST_NOTE_MAX: Final[int]
    SST_TRY: Final[int]
    SST_KEY_ONLY: Final[int]
    SST_NOWAIT: Final[int]
    SST_FUTEX: Final[int]
    SST_SEMAPHORE: Final[int]
    SST_USER: Final[int]
    SST_RAW: Final[int]
    SST_READY: Final[int]
    SST_DEAD: Final[int]
    SST_PEER_FREE: Final[int]
    SST_PEER_CLAIMING: Final[int]
    SST_PEER_LIVE: Final[int]
    SST_PEER_FORKED: Final[int]
    SST_PEER_LEFT: Final[int]
    SST_PEER_DEAD: Final[int]
    SST_RANK_FREE: Final[int]
    SST_RANK_LIVE: Final[int]
    SST_RANK_LEFT: Final[int]
    SST_RANK_DEAD: Final[int]
    SST_NO_RANK: Final[int]
    SST_BAR_TIMEOUT: Final[int]
    SST_BAR_ABORT: Final[int]
    SST_BAR_DEAD: Final[int]
    SST_BAR_LEFT: Final[int]
    SST_BAR_RESET: Final[int]
    SST_BAR_INTERRUPT: Final[int]
    SST_SEAT_ARRIVED: Final[int]
    SST_SEAT_UNKNOWN: Final[int]
    SST_SEAT_LIVE: Final[int]
    SST_SEAT_LEFT: Final[int]
    SST_SEAT_DEAD: Final[int]
    SST_SEAT_GONE: Final[int]

    def sst_now_ns(self) -> int: ...
    def sst_errno(self) -> int: ...
    def sst_strerror(self, code: int, /) -> CData: ...
    def sst_error_name(self, code: int, /) -> CData: ...
    def sst_layout_id(self) -> int: ...
    def sst_has_engine(self, engine: int, /) -> int: ...
    def sst_min_capacity(self) -> int: ...
    def sst_create(
        self,
        map_fd: int,
        lock_fd: int,
        capacity: int,
        engine: int,
        persist: int,
        world_size: int,
        incarnation: int,
        out: CData,
        /,
    ) -> int: ...
    def sst_attach(self, map_fd: int, lock_fd: int, out: CData, /) -> int: ...
    def sst_peek(self, fd: int, out: CData, /) -> int: ...
    def sst_inspect(self, fd: int, out: CData, /) -> int: ...
    def sst_stat(self, s: CData, out: CData, /) -> int: ...
    def sst_mark_dead(self, s: CData, /) -> int: ...
    def sst_leave(self, s: CData, /) -> int: ...
    def sst_close(self, s: CData, /) -> int: ...
    def sst_free(self, s: CData, /) -> None: ...
    def sst_wake_self(self, s: CData, /) -> int: ...
    def sst_self(self, s: CData, slot: CData, gen: CData, /) -> int: ...
    def sst_holder(self, s: CData, slot: CData, pid: CData, /) -> int: ...
    def sst_rank_register(self, s: CData, rank: int, /) -> int: ...
    def sst_rank_leave(self, s: CData, rank: int, /) -> int: ...
    def sst_peers(self, s: CData, out: CData, room: int, /) -> int: ...
    def sst_ranks(self, s: CData, out: CData, room: int, /) -> int: ...
    def sst_waiters(self, s: CData, out: CData, room: int, /) -> int: ...
    def sst_set(
        self, s: CData, space: int, key: Bytes, klen: int, val: Bytes, vlen: int, deadline_ns: int, flags: int, /
    ) -> int: ...
    def sst_get(
        self,
        s: CData,
        space: int,
        key: Bytes,
        klen: int,
        buf: CData,
        room: int,
        len: CData,
        deadline_ns: int,
        flags: int,
        /,
    ) -> int: ...
    def sst_add(
        self, s: CData, space: int, key: Bytes, klen: int, n: int, value: CData, deadline_ns: int, flags: int, /
    ) -> int: ...
    def sst_compare_set(
        self,
        s: CData,
        space: int,
        key: Bytes,
        klen: int,
        expected: Bytes,
        elen: int,
        desired: Bytes,
        dlen: int,
        buf: CData,
        room: int,
        len: CData,
        deadline_ns: int,
        flags: int,
        /,
    ) -> int: ...
    def sst_append(
        self, s: CData, space: int, key: Bytes, klen: int, val: Bytes, vlen: int, deadline_ns: int, flags: int, /
    ) -> int: ...
    def sst_check(self, s: CData, space: int, key: Bytes, klen: int, deadline_ns: int, flags: int, /) -> int: ...
    def sst_delete(self, s: CData, space: int, key: Bytes, klen: int, deadline_ns: int, flags: int, /) -> int: ...
    def sst_num_keys(
        self, s: CData, space: int, prefix: Bytes, plen: int, n: CData, deadline_ns: int, flags: int, /
    ) -> int: ...
    def sst_list_keys(
        self,
        s: CData,
        space: int,
        prefix: Bytes,
        plen: int,
        cursor: CData,
        buf: CData,
        room: int,
        used: CData,
        deadline_ns: int,
        flags: int,
        /,
    ) -> int: ...
    def sst_multi_set(
        self,
        s: CData,
        space: int,
        keys: Bytes,
        klens: CData,
        vals: Bytes,
        vlens: CData,
        n: int,
        deadline_ns: int,
        flags: int,
        /,
    ) -> int: ...
    def sst_linger(self, s: CData, space: int, key: Bytes, klen: int, deadline_ns: int, flags: int, /) -> int: ...
    def sst_wait(
        self,
        s: CData,
        space: int,
        key: Bytes,
        klen: int,
        waiter: CData,
        rank: int,
        deadline_ns: int,
        slice_ns: int,
        flags: int,
        /,
    ) -> int: ...
    def sst_waiter_release(self, s: CData, waiter: CData, /) -> None: ...
    def sst_barrier(
        self,
        s: CData,
        space: int,
        key: Bytes,
        klen: int,
        parties: int,
        arrived: CData,
        count: CData,
        waiter: CData,
        rank: int,
        deadline_ns: int,
        slice_ns: int,
        /,
    ) -> int: ...
    def sst_bar_open(
        self,
        s: CData,
        space: int,
        key: Bytes,
        klen: int,
        parties: int,
        rank: int,
        who: int,
        deadline_ns: int,
        out: CData,
        /,
    ) -> int: ...
    def sst_bar_arrive(self, s: CData, bar: CData, a: CData, flags: int, /) -> int: ...
    def sst_bar_linger(self, s: CData, bar: CData, a: CData, deadline_ns: int, /) -> int: ...
    def sst_bar_wait(self, s: CData, bar: CData, a: CData, deadline_ns: int, slice_ns: int, /) -> int: ...
    def sst_bar_break(self, s: CData, bar: CData, any: int, epoch: int, cause: int, rank: int, /) -> int: ...
    def sst_bar_reset(self, s: CData, bar: CData, any: int, epoch: int, /) -> int: ...
    def sst_bar_look(self, s: CData, bar: CData, out: CData, /) -> int: ...
    def sst_bar_seats(self, s: CData, bar: CData, epoch: int, out: CData, /) -> int: ...
    def sst_queue_push(
        self, s: CData, space: int, key: Bytes, klen: int, val: Bytes, vlen: int, deadline_ns: int, flags: int, /
    ) -> int: ...
    def sst_queue_pop(
        self,
        s: CData,
        space: int,
        key: Bytes,
        klen: int,
        block: int,
        buf: CData,
        room: int,
        len: CData,
        waiter: CData,
        rank: int,
        deadline_ns: int,
        slice_ns: int,
        flags: int,
        /,
    ) -> int: ...
    def sst_queue_len(
        self, s: CData, space: int, key: Bytes, klen: int, n: CData, deadline_ns: int, flags: int, /
    ) -> int: ...
    def sst_server_start(self, s: CData, listen_fd: int, out: CData, /) -> int: ...
    def sst_server_stop(self, v: CData, drain_ns: int, /) -> int: ...
    def sst_server_stat(self, v: CData, out: CData, /) -> int: ...
    def sst_server_free(self, v: CData, /) -> None: ...
    def sst_verify(self, s: CData, report: CData, room: int, /) -> int: ...
    def sst_invariants(self) -> int: ...
    def sst_invariant_name(self, index: int, /) -> CData: ...
    def sst_test_break(self, s: CData, index: int, /) -> int: ...
    def sst_test_hold(self, s: CData, what: int, key: Bytes, klen: int, /) -> int: ...

ffi: Final[_FFI]
lib: Final[_Lib]

# A door is None when its store is closed. Each call answers, or declines with None and has done nothing.
def door(address: int, /) -> object: ...
def door_set(door: object, key: object, value: object, /) -> bool | None: ...
def door_get(door: object, key: object, /) -> bytes | None: ...
def door_add(door: object, key: object, n: object, /) -> int | None: ...
def door_compare_set(door: object, key: object, expected: object, desired: object, /) -> bytes | None: ...
def door_check(door: object, keys: object, /) -> bool | None: ...
def door_delete(door: object, key: object, /) -> bool | None: ...
def door_wait(door: object, keys: object, span_ns: int, /) -> bool | None: ...
def door_barrier(door: object, bar: bytes, arrival: bytearray, span: int, /) -> int | None: ...
