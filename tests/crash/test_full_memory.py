"""A full /dev/shm: StoreFullError and never SIGBUS, what was stored is still there, and what is deleted makes room.

Each test runs as a fresh process in a mount namespace of its own, with a tmpfs of 1 MiB as its /dev/shm.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.shows("crash: full memory")

PRIVATE_SHM = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if (
    libc.unshare(0x00020000)  # CLONE_NEWNS
    or libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)  # MS_REC | MS_PRIVATE
    or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1m")
):
    print(os.strerror(ctypes.get_errno()))
    sys.exit(77)
"""

COMMON = (
    PRIVATE_SHM
    + """
import itertools
from shmstore import QueueEmptyError, ShmStore, StoreError, StoreFullError
sys.path.insert(0, sys.argv[1])
import inside
engine = sys.argv[2]
# The tables of 256 MiB alone take some 5 MB; those of this fit, and the tmpfs is full long before the capacity is.
CAPACITY = 4 << 20

def left_behind():
    return [name for name in os.listdir("/dev/shm") if name.startswith("shmstore.")]
"""
)

REFUSED = """
for _ in range(3):  # not by luck: the failed one took nothing that the next would miss
    for create in (None, True):
        try:
            ShmStore("s", sync=engine, create=create)
        except StoreFullError as error:
            assert "'s'" in str(error), error
        else:
            raise AssertionError("opened")
        assert not left_behind(), left_behind()
assert os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize >= 1 << 20
with ShmStore("s", sync=engine, capacity=CAPACITY) as store:
    store.set("a smaller one", b"fits")
assert not left_behind(), left_behind()
"""

FILLED = """
SIZE = int(sys.argv[3])
model, items, log = {}, [], b""
numbers = itertools.count()
store = ShmStore("s", sync=engine, capacity=CAPACITY)

def whole(store):
    assert {key: store.get(key, 0) for key in model} == model
    assert sorted(store.list_keys()) == sorted([*model, *(["log"] if log else [])])
    assert store.queue_len("q") == len(items)
    assert not log or store.get("log", 0) == log
    assert inside.verify(store) == []

def fill():
    # Each kind of verb until it finds no room; how many were stored.
    global log
    stored = 0
    for verb in ("set", "push", "append", "add", "multi_set"):
        try:
            while True:
                n = next(numbers)
                value = (b"%d " % n) * (SIZE // 2)
                if verb == "set":
                    store.set(f"k{n}", value)
                    model[f"k{n}"] = value
                elif verb == "push":
                    store.queue_push("q", value)
                    items.append(value)
                elif verb == "append":
                    store.append("log", value)
                    log += value
                elif verb == "add":
                    store.add(f"n{n}", n)
                    model[f"n{n}"] = b"%d" % n
                else:
                    store.multi_set([f"a{n}", f"b{n}"], [value, value])
                    model[f"a{n}"] = model[f"b{n}"] = value
                stored += 1
                assert stored < 100_000
        except StoreFullError as error:
            assert "'s'" in str(error), error
        whole(store)
    return stored

assert fill() > 0
# Another process reads and writes the same full segment, and dies of nothing but its own exit.
sys.stdout.flush()
pid = os.fork()
if pid == 0:
    code = 1
    try:
        whole(store)
        for _ in range(20):
            try:
                store.set("too much", b"t" * (2 << 20))
            except StoreFullError:
                code = 0
        whole(store)
    finally:
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
# An overwrite has room or changes nothing, and what is deleted makes room for as much again.
for turn in range(5):
    key = next(key for key in model if key[0] in "kab")
    other = bytes(reversed(model[key]))
    try:
        store.set(key, other)
        model[key] = other
    except StoreFullError:
        pass
    whole(store)
    for key in list(model)[turn % 2 :: 2]:
        assert store.delete_key(key)
        del model[key]
    while items:
        assert store.queue_pop("q", block=False) == items.pop(0)
    if log:
        assert store.delete_key("log")
        log = b""
    whole(store)
    assert fill() > 0, f"what was deleted made no room in turn {turn}"
store.close()
assert not left_behind(), left_behind()
"""


@functools.cache
def why_not() -> str:
    done = subprocess.run([sys.executable, "-c", PRIVATE_SHM], capture_output=True, text=True, timeout=30)
    if done.returncode != 77:
        return ""
    who = "" if os.geteuid() == 0 else f"uid {os.geteuid()} is not root: "
    return who + (done.stdout.strip() or "no reason given")


def run(script: str, engine: str, *args: object) -> None:
    if why_not():
        pytest.skip(f"no private mounts here, so that a full /dev/shm is not tested: {why_not()}")
    command = [sys.executable, "-c", COMMON + script, str(Path(__file__).parent.parent), engine, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("engine", ["futex", "semaphore"])
def test_where_not_even_the_tables_fit_nothing_is_left(engine: str) -> None:
    run(REFUSED, engine)


@pytest.mark.parametrize("engine", ["futex", "semaphore"])
@pytest.mark.parametrize("size", [10, 500, 20_000])
def test_a_full_tmpfs_is_an_error_and_loses_nothing(engine: str, size: int) -> None:
    run(FILLED, engine, size)
