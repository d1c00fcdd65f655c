"""The handle of a segment, and the doors from it to the core: how a verb waits, ends, and fails.

The door that releases the GIL is used in slices of 50 ms: after each the interpreter runs its signal handlers, a closed
handle is noticed, and the call goes on with the same deadline.

A handle has two ways into the core: `_door`, for the calls that keep the GIL (`_core/doors.c`), and `_seg`, for all
others. Closing sets the first to None, which every door declines, and the second to NULL, which each slice of a wait in
another thread meets at its next look, `_open`, which raises.

Result buffers come from a pool, popped and pushed back: a buffer that belonged to a handle or a thread would be written
by a signal handler that runs in the middle of a call and calls again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from time import monotonic_ns
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias

from shmstore import errors, segment
from shmstore._deadline import FOREVER, Timeout, as_timedelta, deadline_after, seconds, span_ns
from shmstore._keys import key_text, shown
from shmstore._native import door, door_get, ffi, lib
from shmstore.store import Store

if TYPE_CHECKING:
    from typing_extensions import Self

    from shmstore._native import Buffer, CData

    Out: TypeAlias = tuple[CData, Buffer, CData]

SLICE_NS: Final = 50_000_000
ROOM: Final = lib.SST_TRY_COPY
"""Bytes of a pooled result buffer: what most answers fit."""

USER: Final = lib.SST_USER
CLOSED: Final = ffi.NULL
OK: Final = lib.SST_OK
TIMED_OUT: Final = lib.SST_ETIMEDOUT
AGAIN: Final = (lib.SST_EAGAIN, lib.SST_EINTR)
PARKED: Final = (OK, TIMED_OUT, lib.SST_EBUSY, *AGAIN)

outs: Final[list[Out]] = []
"""Free result buffers of ROOM bytes: the memory, a view of it, and where the core writes a length."""


def new_out(room: int) -> Out:
    memory = ffi.new("char[]", room)
    return memory, ffi.buffer(memory, room), ffi.new("size_t *")


class Wait:
    """One call that may wait: since when, until when, and its place among the segment's waiters."""

    __slots__ = ("cookie", "deadline", "doing", "seg", "span", "start", "store")

    def __init__(self, store: Handle, doing: str, timeout: Timeout | None, start: int | None = None) -> None:
        self.store = store
        self.doing = doing
        self.span = store._span_ns if timeout is None else span_ns(timeout)  # noqa: SLF001 -- a part of the handle
        self.start = monotonic_ns() if start is None else start
        self.deadline = min(self.start + self.span, FOREVER)
        self.cookie = ffi.new("uint32_t *")
        self.seg: CData | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Gives the waiter slot back; a waiter that goes on to another key takes a new one."""
        if self.seg is not None and self.cookie[0]:
            lib.sst_waiter_release(self.seg, self.cookie)
            self.cookie[0] = 0

    def late(self) -> bool:
        return self.deadline != FOREVER and monotonic_ns() >= self.deadline

    def elapsed(self) -> float:
        """Seconds since the call began."""
        return (monotonic_ns() - self.start) / 1e9

    def text(self, what: str, elapsed: float) -> str:
        return (
            f"Wait timeout: {self.doing} on {self.store!r}: {what} (waited {elapsed:.3f} s, "
            f"the limit is {seconds(self.span):g} s)"
        )

    def timed_out(self, missing: list[bytes]) -> errors.StoreTimeoutError:
        keys = [key_text(raw) for raw in missing]
        named = ", ".join(map(shown, missing[:8])) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
        elapsed = self.elapsed()
        what = f"{'key' if len(keys) == 1 else 'keys'} {named} did not come"
        return errors.StoreTimeoutError(
            self.text(what, elapsed), keys=keys, elapsed=elapsed, timeout=seconds(self.span)
        )

    def busy(self, keys: list[bytes]) -> errors.StoreTimeoutError:
        """To be made in the thread that got SST_EBUSY."""
        slot, pid = ffi.new("uint32_t *"), ffi.new("int32_t *")
        known = self.seg is not None and lib.sst_holder(self.seg, slot, pid) == lib.SST_OK
        who = f"process {pid[0]} (alive, maybe stopped; peer slot {slot[0]})" if known else "a live process"
        elapsed = self.elapsed()
        return errors.StoreTimeoutError(
            self.text(f"{who} held the lock all the time", elapsed),
            keys=map(key_text, keys),
            elapsed=elapsed,
            timeout=seconds(self.span),
        )


def take(room: int = 0) -> Out:
    if room <= ROOM:
        try:
            return outs.pop()
        except IndexError:
            return new_out(ROOM)
    return new_out(room)


def give(out: Out) -> None:
    if len(out[1]) == ROOM:
        outs.append(out)


class Handle(Store):
    """A handle on an attachment. Its subclass `SegmentStore` has the verbs."""

    def __init__(self, hold: segment.Hold, timeout: Timeout) -> None:
        self._timeout = as_timedelta(timeout)
        self._span_ns = span_ns(timeout)
        self._watch = False
        assert hold.attachment is not None
        self._hold = hold
        self._attachment = hold.attachment
        self._seg = hold.attachment.seg
        self._door = door(int(ffi.cast("uintptr_t", self._seg)))

    # -- the handle ---------------------------------------------------------------------------------------------------

    @property
    def timeout(self) -> timedelta:
        return self._timeout

    def set_timeout(self, timeout: Timeout) -> None:
        as_given = as_timedelta(timeout)
        self._span_ns = span_ns(timeout)
        self._timeout = as_given

    def __enter__(self) -> Self:
        self._open()
        return self

    def close(self) -> None:
        self._close(0)

    def _close(self, deadline: int) -> None:
        """The deadline is for the lock file; 0 is 10 s from now. A handle that is collected lets go of its hold."""
        self._door, self._seg = None, CLOSED
        segment.release(self._hold, deadline)

    def _open(self) -> CData:
        """The segment; StoreClosedError where the handle is closed."""
        seg = self._seg
        if seg == CLOSED:
            raise errors.StoreClosedError(f"{self!r} is closed")
        return seg

    def _waiter_rank(self) -> int:
        """Rank + 1 for those who look who waits; 0 for none. A forked child has no rank."""
        rank = self._hold.rank
        return rank + 1 if rank is not None and self._hold.pid == os.getpid() else 0

    def verify(self) -> list[str]:
        """Walks every invariant of the segment, for tests and tools; one line a broken one, none when it is sound.

        Blocks for the locks of what it reads as long as their holders do, StoreTimeoutError after the own timeout.
        """
        report = ffi.new("char[]", 1 << 16)
        code = self._run("verify", b"", lambda seg, _until: lib.sst_verify(seg, report, 1 << 16))
        if code < 0:
            raise errors.from_code(code, "verify", repr(self))
        return ffi.string(report).decode("utf-8", "replace").splitlines()

    # -- the doors that release the GIL -------------------------------------------------------------------------------

    def _run(self, verb: str, raw: bytes, call: Callable[[CData, int], int], wait: Wait | None = None) -> int:
        """Carries a verb that waits for no key through, however often a lock makes it wait; its code.

        Args:
            verb: for an error.
            raw: the key, for an error.
            call: takes the segment and a deadline.
            wait: the longer call that this one is a part of, for its deadline; None: the handle's own timeout.
        """
        start = monotonic_ns()
        while True:
            seg = self._open()
            # Each look may take a slice for the lock, also when the timeout is over or 0: it is for what is waited for,
            # and a lock that others pass on in microseconds is not.
            code = call(seg, deadline_after(SLICE_NS))
            if code not in AGAIN and code != lib.SST_EBUSY:
                return code
            if wait is None:
                wait = Wait(self, f"{verb}({shown(raw)})", None, start)
            wait.seg = seg
            if wait.late():
                raise wait.busy([raw])

    def _must(self, verb: str, raw: bytes, call: Callable[[CData, int], int], wait: Wait | None = None) -> int:
        """The same; a code that is an error is raised."""
        code = self._run(verb, raw, call, wait)
        if code < 0:
            raise errors.from_code(code, f"{verb}({shown(raw)})", repr(self))
        return code

    def _fetch(
        self,
        verb: str,
        raw: bytes,
        call: Callable[[CData, CData, int, CData, int], int],
        wait: Wait | None = None,
        room: int = 0,
    ) -> bytes | None:
        """A verb that answers with a value: call(segment, memory, room, length, deadline). None: no such key."""
        out = take(room)
        while True:

            def once(seg: CData, until: int, out: Out = out) -> int:
                return call(seg, out[0], len(out[1]), out[2], until)

            code = self._run(verb, raw, once, wait)
            _, view, length = out
            value = view[: length[0]] if code == lib.SST_OK else None
            give(out)
            if code in (lib.SST_OK, lib.SST_ENOENT):
                return value
            if code != lib.SST_ENOBUFS:
                raise errors.from_code(code, f"{verb}({shown(raw)})", repr(self))
            out = new_out(length[0])

    def _read(self, verb: str, raw: bytes, wait: Wait) -> bytes | None:
        """The key's value if it is there."""
        return self._fetch(
            verb,
            raw,
            lambda seg, memory, room, length, until: lib.sst_get(
                seg, USER, raw, len(raw), memory, room, length, until, 0
            ),
            wait,
        )

    def _get(self, wait: Wait, raw: bytes, wanted: list[bytes]) -> bytes:
        """The key's value when it comes; `wanted` are the keys an error is to look for."""
        while True:
            value = door_get(self._door, raw)
            if value is None:
                value = self._read("get", raw, wait)
            if value is not None:
                return value
            if self._park(wait, raw, lib.SST_KEY_ONLY) == TIMED_OUT:
                missing = self._missing(wanted, wait, lib.SST_KEY_ONLY)
                raise wait.timed_out(missing if raw in missing else [raw, *missing])

    def _park(self, wait: Wait, raw: bytes, flags: int = 0) -> int:
        """Waits for the key for one slice: OK, it is there; TIMED_OUT; or any other code, look again."""
        if self._watch:
            self._watch_peers(raw)
        seg = wait.seg = self._open()
        code = lib.sst_wait(seg, USER, raw, len(raw), wait.cookie, self._waiter_rank(), wait.deadline, SLICE_NS, flags)
        return code if code == OK else self._parked(wait, raw, code)

    def _parked(self, wait: Wait, raw: bytes, code: int) -> int:
        """The code of a slice, if it is one to go on with or TIMED_OUT; an error is raised."""
        if code not in PARKED:
            raise errors.from_code(code, wait.doing, repr(self))
        if code == lib.SST_EBUSY and wait.late():
            raise wait.busy([raw])
        return code

    def _there(self, raw: bytes, wait: Wait | None = None, flags: int = 0) -> bool:
        """True when the key is there, or, without SST_KEY_ONLY, a queue of that name with items."""
        code = self._must("check", raw, lambda seg, until: lib.sst_check(seg, USER, raw, len(raw), until, flags), wait)
        return code == 1

    def _missing(self, raws: list[bytes], wait: Wait, flags: int = 0) -> list[bytes]:
        """Those of the keys that are not there, each once."""
        return [raw for raw in dict.fromkeys(raws) if not self._there(raw, wait, flags)]

    def _watch_peers(self, raw: bytes) -> None:
        """PeerDiedError if this handle watches and a registered rank is dead; before and after each slice."""
