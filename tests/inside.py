"""What tests may look at behind a handle: the core's own waiter table, its invariants, and its test doors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shmstore import PrefixStore
from shmstore._native import ffi, lib

WHAT = {"stripe": 0, "heap": 1, "waiter": 2, "peer": 3}


def seg(store: Any) -> Any:
    """The sst_seg behind a handle, through any prefixes."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return store._seg


def waits(store: Any) -> list[str]:
    """What every wait of the living in the segment waits on."""
    room = 256
    out = ffi.new("sst_waiter[]", room)
    n = lib.sst_waiters(seg(store), out, room)
    assert n >= 0, n
    notes = [ffi.buffer(one.note)[: min(one.note_len, lib.SST_NOTE_MAX)] for one in out[0:n] if not one.dead]
    return [note.decode(errors="replace") for note in notes]


def parked(store: Any, key: str, n: int = 1, limit_s: float = 20.0) -> None:
    """Returns once n waits in the segment wait on `key`."""
    end = time.monotonic() + limit_s
    while True:
        now = waits(store)
        if sum(key in note for note in now) >= n:
            return
        assert time.monotonic() < end, f"nobody came to wait on {key!r} ({n} wanted); waits are {now}"
        time.sleep(0.001)  # a park wakes nobody: it can only be looked for


def until(true: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Returns once it is so: for what nobody is woken for, and can only be looked for."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it did not come to be so"
        time.sleep(0.001)


def verify(store: Any) -> list[str]:
    """One line a broken invariant; [] is clean."""
    room = 1 << 16
    report = ffi.new("char[]", room)
    broken = lib.sst_verify(seg(store), report, room)
    text = ffi.string(report).decode()
    assert broken >= 0, f"sst_verify failed: {broken}"
    assert broken == len(text.splitlines()), (broken, text)
    return text.splitlines()


def hold(store: Any, what: str, key: bytes = b"held") -> None:
    """Takes a lock for good; the process is expected to be killed."""
    code = lib.sst_test_hold(seg(store), WHAT[what], key, len(key))
    assert code == 0, f"sst_test_hold({what}): {code}"
