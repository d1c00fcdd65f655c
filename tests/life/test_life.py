"""The life of a segment: made, found, left, reaped; and everything that may stand under its name instead."""

from __future__ import annotations

import os
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inside
import pytest
import workers
from harness import Team

from shmstore import (
    SegmentExistsError,
    SegmentInvalidError,
    SegmentNotFoundError,
    ShmStore,
    StoreError,
)
from shmstore._native import ffi, lib

SHM = Path("/dev/shm")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: changes owners or mounts")


def path_of(name: str) -> Path:
    return SHM / f"shmstore.{name}"


@pytest.fixture
def path(name: str) -> Iterator[Path]:
    path = path_of(name)
    yield path
    path.unlink(missing_ok=True)


# -- create and attach ------------------------------------------------------------------------------------------------


def test_create_none_makes_or_attaches(name: str, path: Path) -> None:
    assert not path.exists()
    with ShmStore(name) as one:
        assert path.exists()
        one.set("k", b"1")
        with ShmStore(name) as two:
            assert two.get("k", 0) == b"1"
    assert not path.exists()


def test_create_true_must_be_new(name: str, path: Path) -> None:
    with ShmStore(name, create=True) as store:
        store.set("k", b"1")
        with pytest.raises(SegmentExistsError) as caught:
            ShmStore(name, create=True)
        assert isinstance(caught.value, FileExistsError)
        assert name in str(caught.value)
        assert store.get("k") == b"1"
    assert not path.exists()


def test_create_true_in_another_process(name: str, team: Team) -> None:
    child = team.start(workers.stay, name, {"create": True})
    assert child.hear() == "attached"
    with pytest.raises(SegmentExistsError):
        ShmStore(name, create=True)
    child.say("close")
    child.result()
    ShmStore(name, create=True).close()


def test_create_false_must_exist(name: str, path: Path) -> None:
    with pytest.raises(SegmentNotFoundError) as caught:
        ShmStore(name, create=False)
    assert isinstance(caught.value, FileNotFoundError)
    assert name in str(caught.value)
    assert not path.exists()
    with ShmStore(name), ShmStore(name, create=False) as store:
        store.set("k", b"")


def test_threads_that_race_to_create_share_one_segment(name: str) -> None:
    gate = threading.Barrier(8)
    stores: list[ShmStore] = []

    def work() -> None:
        gate.wait(20)
        store = ShmStore(name, timeout=20)
        store.add("n", 1)
        stores.append(store)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(stores) == 8
    assert [store.get("n", 0) for store in stores] == [b"8"] * 8
    for store in stores:
        store.close()


def test_processes_that_race_to_create_share_one_segment(name: str, path: Path, team: Team) -> None:
    def child(me: Any) -> bytes:
        me.ready()
        with ShmStore(name, timeout=20, world_size=5, rank=me.index) as store:
            store.barrier("all here", 5)
            store.add("n", 1)
            store.barrier("all added", 5)
            return store.get("n", 0)

    for _ in range(5):
        team.start(child, how="fork")
    team.go()
    assert team.results() == [b"5"] * 5
    assert not path.exists()


def test_the_segments_own_properties_win(name: str) -> None:
    with ShmStore(name, capacity=64 << 20, sync="semaphore", mode=0o600) as one:
        size = path_of(name).stat().st_size
        with ShmStore(name, capacity=1 << 30) as two, ShmStore(name, sync="semaphore") as three:
            two.set("k", b"1")
            assert three.get("k", 0) == b"1"
        assert one.get("k", 0) == b"1"
        assert path_of(name).stat().st_size >= size
        with pytest.raises(SegmentInvalidError):
            ShmStore(name, sync="futex")
        assert one.get("k", 0) == b"1"


@pytest.mark.parametrize("engine", ["futex", "semaphore"])
def test_engine_mismatch(name: str, engine: str) -> None:
    other = "semaphore" if engine == "futex" else "futex"
    with ShmStore(name, sync=engine) as store:
        with pytest.raises(SegmentInvalidError) as caught:
            ShmStore(name, sync=other)
        assert engine in str(caught.value)
        store.set("k", b"")


@pytest.mark.parametrize("bad", ["", "a/b", "/a", "nul\0l", "x" * 300, ".", ".."], ids=lambda v: repr(v)[:12])
def test_bad_names(bad: str) -> None:
    if bad in (".", ".."):  # /dev/shm/shmstore.. is an ordinary file name: allowed, or refused, but never a crash
        try:
            ShmStore(bad).close()
        except ValueError:
            pass
        return
    with pytest.raises(ValueError):
        ShmStore(bad)


@pytest.mark.parametrize("bad", [None, 3, ["x"]], ids=repr)
def test_names_of_wrong_type(bad: Any) -> None:
    with pytest.raises(TypeError):
        ShmStore(bad)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"sync": "spin"}, ValueError),
        ({"capacity": 0}, ValueError),
        ({"capacity": -1}, ValueError),
        ({"capacity": 1000}, ValueError),
        ({"rank": -1}, ValueError),
        ({"rank": 4096}, ValueError),
        ({"rank": "0"}, TypeError),
        ({"world_size": 0}, ValueError),
        ({"world_size": -1}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"create": 1}, TypeError),
        ({"create": "no"}, TypeError),
        ({"persist": 1}, TypeError),
        ({"watch_peers": "yes"}, TypeError),
    ],
    ids=repr,
)
def test_bad_arguments_leave_nothing(name: str, path: Path, kwargs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        ShmStore(name, **kwargs)
    assert not path.exists()


def test_odd_names_work(path: Path) -> None:
    for odd in (f"with space {os.getpid()}", f"grün-{os.getpid()}", f"-dash-{os.getpid()}"):
        with ShmStore(odd) as store:
            store.set("k", b"")
        assert not list(SHM.glob(f"*{odd}*"))


# -- leaving ----------------------------------------------------------------------------------------------------------


def test_the_last_one_out_unlinks(name: str, path: Path, team: Team) -> None:
    store = ShmStore(name)
    child = team.start(workers.stay, name, {})
    child.hear()
    store.set("k", b"1")
    store.close()
    assert path.exists()
    child.say("close")
    child.result()
    assert not path.exists()


def test_two_handles_of_one_process_leave_apart(name: str, path: Path) -> None:
    one, two = ShmStore(name), ShmStore(name)
    three = two.clone()
    one.close()
    two.close()
    assert path.exists()
    three.set("k", b"1")
    three.close()
    assert not path.exists()


@pytest.mark.parametrize("how", ["close", "exit"])
def test_a_process_that_ends_well_has_left(name: str, path: Path, team: Team, how: str) -> None:
    store = ShmStore(name)
    child = team.start(workers.stay, name, {"rank": 1})
    child.hear()
    assert [(p.rank, p.state) for p in store.peers() if p.pid == child.pid] == [(1, "live")]
    child.say(how)
    child.result()
    assert [(p.rank, p.state) for p in store.peers() if p.rank == 1] == [(1, "left")]
    store.close()
    assert not path.exists()


@pytest.mark.parametrize("how", ["_exit", "kill"])
def test_a_process_that_just_ends_is_dead(name: str, team: Team, how: str) -> None:
    with ShmStore(name) as store:
        child = team.start(workers.stay, name, {"rank": 1})
        child.hear()
        if how == "kill":
            child.kill()
        else:
            child.say(how)
            child.wait()
        assert [(p.rank, p.state) for p in store.peers() if p.rank == 1] == [(1, "dead")]
        assert inside.verify(store) == []


def test_persist_outlives_everybody(name: str, path: Path) -> None:
    with ShmStore(name, persist=True) as store:
        store.set("k", b"kept")
    assert path.exists()
    with ShmStore(name, create=False) as store:  # the segment's own persist wins
        assert store.get("k", 0) == b"kept"
        assert inside.verify(store) == []
    assert path.exists()
    path.unlink()


def test_persist_outlives_the_dead(name: str, path: Path, team: Team) -> None:
    child = team.start(workers.stay, name, {"persist": True})
    child.hear()
    child.kill()
    with ShmStore(name, create=False) as store:
        assert store.get("attached", 0) == b"1"
        assert inside.verify(store) == []
    path.unlink()


def test_world_size_holds_the_segment_for_who_comes_later(name: str, path: Path) -> None:
    zero = ShmStore(name, rank=0, world_size=3)
    zero.set("from zero", b"hello")
    zero.close()
    assert path.exists(), "rank 0 left before rank 1 came, and took the segment with it"
    one = ShmStore(name, rank=1, world_size=3)
    assert one.get("from zero", 0) == b"hello"
    again = ShmStore(name, rank=0, world_size=3)  # the same rank counts once
    again.close()
    one.close()
    assert path.exists()
    two = ShmStore(name, rank=2, world_size=3)
    assert two.get("from zero", 0) == b"hello"
    two.close()
    assert not path.exists()


def test_reopened_after_unlink_is_empty(name: str) -> None:
    for _ in range(3):
        with ShmStore(name, create=True) as store:
            assert store.num_keys() == 0
            store.set("k", b"1")


def test_attach_races_with_the_last_close(name: str, path: Path, team: Team) -> None:
    """Open and close as fast as can be: nobody may land in a segment that is already unlinked."""

    def child(me: Any) -> int:
        me.ready()
        for i in range(60):
            with ShmStore(name, timeout=20) as store:
                key = f"{me.index}-{i}"
                store.set(key, b"1")
                assert store.get(key, 0) == b"1"
                with ShmStore(name, create=False, timeout=20) as again:
                    assert again.get(key, 0) == b"1"
        return 60

    for _ in range(3):
        team.start(child, how="fork")
    team.go()
    assert team.results() == [60] * 3
    assert not path.exists()


# -- what the dead leave ----------------------------------------------------------------------------------------------


def test_a_segment_of_the_dead_is_reaped(name: str, path: Path, team: Team) -> None:
    children = [team.start(workers.stay, name, {}) for _ in range(2)]
    for child in children:
        child.hear()
    for child in children:
        child.kill()
    assert path.exists()
    with ShmStore(name) as store:
        assert store.num_keys() == 0, "attached to what the dead had left"
        store.set("k", b"1")
    assert not path.exists()


def test_create_true_reaps_the_dead(name: str, path: Path, team: Team) -> None:
    child = team.start(workers.stay, name, {})
    child.hear()
    child.kill()
    with ShmStore(name, create=True) as store:
        assert store.num_keys() == 0
    assert not path.exists()


def test_one_survivor_keeps_the_segment(name: str, path: Path, team: Team) -> None:
    children = [team.start(workers.stay, name, {}) for _ in range(2)]
    for child in children:
        child.hear()
    children[0].kill()
    with ShmStore(name) as store:
        assert store.get("attached", 0) == b"2"
        assert store.add("attached", 1) == 3
        assert inside.verify(store) == []
    children[1].say("close")
    children[1].result()
    assert not path.exists()


def test_half_made_segment_is_made_anew(name: str, path: Path) -> None:
    path.touch(mode=0o600)
    with ShmStore(name) as store:
        store.set("k", b"1")
        assert store.get("k") == b"1"
    assert not path.exists()


def test_half_made_segment_does_not_count_as_existing(name: str, path: Path) -> None:
    path.touch(mode=0o600)
    with ShmStore(name, create=True) as store:
        store.set("k", b"1")
    assert not path.exists()


# -- what is not ours -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("create", [None, True, False])
@pytest.mark.parametrize(
    "content",
    [b"#!/bin/sh\n" * 1000, os.urandom(1 << 16), b"short", b"\0\xff" * 4096],
    ids=["text", "noise", "short", "0ff"],
)
def test_a_foreign_file_stays_as_it_is(name: str, path: Path, content: bytes, create: bool | None) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises((SegmentInvalidError, SegmentExistsError)) as caught:
        ShmStore(name, create=create)
    if create is not True:
        assert isinstance(caught.value, SegmentInvalidError)
    assert name in str(caught.value)
    assert path.read_bytes() == content


def leave_behind(name: str) -> None:
    with ShmStore(name, persist=True) as store:
        store.set("k", b"kept")


@pytest.mark.parametrize("field", ["magic", "layout"])
def test_another_layout_is_refused(name: str, path: Path, field: str) -> None:
    leave_behind(name)
    offset = 0 if field == "magic" else 8
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(8)
        file.seek(offset)
        file.write(struct.pack("<Q", struct.unpack("<Q", old)[0] ^ 0x10))
    before = path.read_bytes()
    with pytest.raises(SegmentInvalidError):
        ShmStore(name)
    assert path.read_bytes() == before
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(old)
    with ShmStore(name) as store:
        assert store.get("k", 0) == b"kept"


@pytest.mark.parametrize("keep", [100, 4096, 65536, -4096])
def test_a_truncated_segment_is_refused(name: str, path: Path, keep: int) -> None:
    leave_behind(name)
    size = path.stat().st_size
    os.truncate(path, keep if keep > 0 else size + keep)
    with pytest.raises(SegmentInvalidError):
        ShmStore(name)


@pytest.mark.parametrize("offset", [16, 24, 32, 40, 44, 56, 60])
def test_a_header_of_nonsense_never_crashes(name: str, path: Path, team: Team, offset: int) -> None:
    leave_behind(name)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 4)

    def child(me: Any) -> str:
        try:
            with ShmStore(name, timeout=2) as store:
                store.set("k2", b"1")
                return store.get("k2", 0).decode()
        except StoreError as error:
            return type(error).__name__

    assert team.start(child, how="fork").result() in ("1", "SegmentInvalidError", "StoreFullError", "StoreTimeoutError")


def test_a_directory_under_the_name(name: str, path: Path) -> None:
    path.mkdir()
    try:
        with pytest.raises((StoreError, OSError)):
            ShmStore(name)
        assert path.is_dir()
    finally:
        path.rmdir()


def test_a_symbolic_link_under_the_name(name: str, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious" * 1000)
    path.symlink_to(target)
    with pytest.raises((StoreError, OSError)):
        ShmStore(name)
    assert target.read_bytes() == b"precious" * 1000


@root_only
def test_another_users_segment_is_refused(name: str, path: Path) -> None:
    leave_behind(name)
    os.chown(path, 65534, 65534)
    before = path.read_bytes()
    with pytest.raises(SegmentInvalidError) as caught:
        ShmStore(name)
    assert "65534" in str(caught.value)
    assert path.read_bytes() == before
    lock = SHM / ".shmstore.lock.65534"
    ours = lock.exists() and lock.stat().st_uid == os.geteuid()
    if ours:
        lock.unlink()
    assert not ours, "a lock file of that user's name was made by us: it shuts the user out"


@root_only
def test_another_users_empty_file_is_refused(name: str, path: Path) -> None:
    path.touch(mode=0o666)
    os.chown(path, 65534, 65534)
    with pytest.raises((SegmentInvalidError, PermissionError)):
        ShmStore(name)
    assert path.exists()


# -- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277])
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_mode_is_exact_whatever_the_umask(name: str, path: Path, umask: int, mode: int) -> None:
    old = os.umask(umask)
    try:
        with ShmStore(name, mode=mode) as store:
            assert stat.S_IMODE(path.stat().st_mode) == mode
            store.set("k", b"")
            with ShmStore(name) as again:
                assert again.check(["k"]) is True
    finally:
        os.umask(old)


# -- ranks ------------------------------------------------------------------------------------------------------------


def test_a_rank_has_one_live_owner(name: str, team: Team) -> None:
    with ShmStore(name) as store:
        child = team.start(workers.stay, name, {"rank": 3})
        child.hear()
        with pytest.raises(ValueError) as caught:
            ShmStore(name, rank=3)
        assert "3" in str(caught.value)
        assert [p.pid for p in store.peers() if p.rank == 3] == [child.pid]
        child.kill()
        with ShmStore(name, rank=3):
            assert [(p.pid, p.state) for p in store.peers() if p.rank == 3] == [(os.getpid(), "live")]
        assert [p.state for p in store.peers() if p.rank == 3] == ["left"]
        with ShmStore(name, rank=3):
            assert [p.state for p in store.peers() if p.rank == 3] == ["live"]


def test_a_rank_is_one_in_one_process_too(name: str) -> None:
    with ShmStore(name, rank=0) as zero, ShmStore(name, rank=1) as one:
        with pytest.raises(ValueError):
            ShmStore(name, rank=1)
        assert sorted(p.rank for p in zero.peers() if p.rank is not None) == [0, 1]
        one.close()
        with ShmStore(name, rank=1):
            pass


def test_forked_children_have_no_rank(name: str, team: Team) -> None:
    with ShmStore(name, rank=0) as store:

        def child(me: Any) -> None:
            store.set("k", b"1")
            os.kill(os.getpid(), 9)

        forked = team.start(child, how="fork")
        forked.wait()
        assert store.get("k", 0) == b"1"
        assert [(p.rank, p.state, p.pid) for p in store.peers() if p.rank == 0] == [(0, "live", os.getpid())]


# -- forks and exits --------------------------------------------------------------------------------------------------


def test_a_forked_child_that_lives_on_does_not_keep_its_parent_alive(name: str, path: Path, team: Team) -> None:
    with ShmStore(name) as store:
        parent = team.start(workers.stay_with_child, name)
        grandchild = parent.hear()
        try:
            parent.kill()
            assert [p.state for p in store.peers() if p.pid == parent.pid] == ["dead"]
            store.set("held", b"1")
            assert store.get("held") == b"1"
            assert inside.verify(store) == []
        finally:
            os.kill(grandchild, 9)


def test_a_forked_child_goes_on_after_its_parent(name: str, team: Team) -> None:
    with ShmStore(name) as store:
        parent = team.start(workers.grandchild_works, name)
        assert parent.hear() == "ready"
        parent.kill()
        parent.say("go on")
        assert parent.hear() == "done"
        assert store.get("grandchild", 0) == b"101"
        assert inside.verify(store) == []


# -- a full file system -----------------------------------------------------------------------------------------------

FULL = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None):
    sys.exit(77)
if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=%d" % int(sys.argv[1])):
    sys.exit(77)
from shmstore import ShmStore, StoreFullError
try:
    store = ShmStore("full", capacity=256 << 20, sync=sys.argv[2])
except StoreFullError as error:
    assert not [n for n in os.listdir("/dev/shm") if n.startswith("shmstore.")], os.listdir("/dev/shm")
    print("refused", error)
    sys.exit(0)
model = {}
try:
    while True:
        key = f"k{len(model)}"
        store.set(key, bytes([len(model) % 251]) * 50000)
        model[key] = bytes([len(model) % 251]) * 50000
        assert len(model) < 10000
except StoreFullError as error:
    print("full", len(model), error)
assert model
assert {key: store.get(key, 0) for key in model} == model
for key in list(model)[::2]:
    assert store.delete_key(key)
    del model[key]
store.set("again", b"x" * 50000)
store.add("n", 1)
store.queue_push("q", b"1")
assert {key: store.get(key, 0) for key in model} == model
assert store.get("again") == b"x" * 50000
store.close()
assert not [n for n in os.listdir("/dev/shm") if n.startswith("shmstore.")], os.listdir("/dev/shm")
"""


@root_only
@pytest.mark.parametrize("engine", ["futex", "semaphore"])
@pytest.mark.parametrize(("size", "expected"), [(64 << 10, "refused"), (8 << 20, "full")])
def test_a_full_tmpfs_is_an_error_not_a_bus_error(tmp_path: Path, engine: str, size: int, expected: str) -> None:
    import subprocess

    script = tmp_path / "full.py"
    script.write_text(FULL)
    done = subprocess.run([sys.executable, str(script), str(size), engine], capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("no private mounts here: a full tmpfs is not tested")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(expected)


# -- opening while it grows -------------------------------------------------------------------------------------------


def grow(me: Any, name: str, values: int) -> None:
    with ShmStore(name, timeout=60) as store:
        me.ready()
        for i in range(values):
            store.set(f"k{i}", b"v" * 60_000)
        me.say("grown")
        me.hear()


def test_what_is_opened_while_it_grows_is_not_truncated(name: str, path: Path, team: Team) -> None:
    """A grower publishes the new size when the file has it: who reads the file's size first sees less than that."""
    with ShmStore(name, timeout=60):
        child = team.start(grow, name, 4000)
        team.go()
        info = ffi.new("sst_info *")
        codes = set()
        with path.open("rb") as file:
            while not child._conn.poll(0):
                codes.add(lib.sst_peek(file.fileno(), info))
        assert child.hear() == "grown"
        child.say("end")
        child.result()
        assert codes == {0}
