"""Who may open, when a segment is made anew, how long an open waits, and what a process without descriptors can do."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import workers
from harness import Team

from shmstore import (
    HashStore,
    SegmentExistsError,
    SegmentInvalidError,
    ShmStore,
    StoreError,
    StoreFullError,
    StoreTimeoutError,
    _lifelock,
    segment,
    shm,
)
from shmstore._lifelock import LockFile

SHM = Path("/dev/shm")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: changes owners or mounts")
OWNER, GROUP, OTHER_GROUP = 64101, 64102, 64103


# -- when nobody is alive ---------------------------------------------------------------------------------------------


def leave_behind(name: str, **kwargs: Any) -> None:
    with ShmStore(name, **kwargs) as store:
        store.set("old", b"1")


def is_old(name: str, **kwargs: Any) -> bool:
    with ShmStore(name, **kwargs) as store:
        return store.check(["old"])


def test_a_rank_that_is_back_starts_a_new_run(name: str, path: Path) -> None:
    leave_behind(name, rank=0, world_size=2)
    assert path.exists()
    assert not is_old(name, rank=0, world_size=2), "rank 0 of a new run found the counts of the old one"


def test_the_late_rank_finds_what_was_left_for_it(name: str, path: Path) -> None:
    leave_behind(name, rank=0, world_size=2)
    assert is_old(name, rank=1, world_size=2)
    assert not path.exists()


def test_who_has_no_rank_finds_what_was_left(name: str, path: Path) -> None:
    leave_behind(name, rank=0, world_size=2)
    assert is_old(name)


def test_a_rank_that_is_back_while_another_lives_joins(name: str, path: Path, team: Team) -> None:
    child = team.start(workers.stay, name, {"rank": 1, "world_size": 3})
    child.hear()
    leave_behind(name, rank=0, world_size=3)
    assert is_old(name, rank=0, world_size=3)
    child.say("close")
    child.result()


def test_create_true_where_nobody_is_alive(name: str) -> None:
    leave_behind(name, rank=0, world_size=2)
    assert not is_old(name, create=True)


def test_create_true_and_persist(name: str, path: Path) -> None:
    leave_behind(name, persist=True)
    with pytest.raises(SegmentExistsError, match="persist"):
        ShmStore(name, create=True)


# -- what a killed creator leaves, and what it does not ---------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 100, 4096, 65536, 1 << 20])
@pytest.mark.parametrize("create", [None, True, False])
def test_a_foreign_file_of_zeros_stays(name: str, path: Path, size: int, create: bool | None) -> None:
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(SegmentInvalidError, match="not a segment"):
        ShmStore(name, create=create)
    assert path.read_bytes() == bytes(size)


HEADER = "<QQQQQIIIIIIQ"  # magic layout incarnation capacity size state engine persist world_size buckets blocks seed
# In the order of the stores, as they were when the creator was killed: how many of them had happened.
ORDER = (2, 3, 4, 6, 7, 8, 9, 10, 11, 1, 5)


@pytest.mark.parametrize("stored", range(len(ORDER) + 1))
def test_what_a_killed_creator_leaves_is_made_anew(name: str, path: Path, stored: int) -> None:
    leave_behind(name, persist=True, world_size=3)
    with path.open("r+b") as file:
        whole = struct.unpack(HEADER, file.read(struct.calcsize(HEADER)))
        file.seek(0)
        kept = ORDER[:stored]
        file.write(struct.pack(HEADER, *(value if i in kept else 0 for i, value in enumerate(whole))))
    os.truncate(path, whole[4])
    assert not is_old(name, create=True)


# -- what stands in place of the lock file ----------------------------------------------------------------------------


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def link_to_a_file(path: Path) -> None:
    (path.parent / "precious").touch(mode=0o644)
    path.symlink_to(path.parent / "precious")


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


SQUATTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to nothing": (link_to_nothing, "a symbolic link"),
    "a link to a file": (link_to_a_file, "a symbolic link"),
    "a directory": (lambda path: path.mkdir(), "a directory"),
    "a FIFO": (lambda path: os.mkfifo(path, 0o666), "a FIFO"),
    "a socket": (bind_socket, "a socket"),
}


@pytest.mark.parametrize("what", SQUATTERS)
def test_what_is_no_lock_file_is_refused_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """With who has to remove it; and it is left as it is."""
    monkeypatch.setattr(_lifelock, "SHM", tmp_path)
    make, said = SQUATTERS[what]
    path = LockFile(os.geteuid()).path
    make(path)
    before = path.lstat()
    with pytest.raises(SegmentInvalidError, match=f"{path}: .*{said} of uid {os.geteuid()}, .*: remove it"):
        ShmStore(name, timeout=0.5)
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    if what == "a link to a file":
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert not (tmp_path / "nothing").exists()


@root_only
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_a_lock_file_of_another_user_names_that_user(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setattr(_lifelock, "SHM", tmp_path)
    path = LockFile(os.geteuid()).path
    path.touch(mode)
    os.chown(path, OWNER, GROUP)
    with pytest.raises(SegmentInvalidError, match=f"a file of uid {OWNER}, .*: have uid {OWNER} or root remove it"):
        ShmStore(name, timeout=0.5)


# -- what an opener is told when the system refuses -------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT, errno.EIO, errno.ENOMEM])
def test_only_no_room_is_a_full_store(name: str, path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(_made: object, fd: int, _plan: object) -> None:
        os.close(fd)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(segment, "_format", refuse)
    with pytest.raises(StoreError, match=os.strerror(code)) as caught:
        ShmStore(name)
    assert isinstance(caught.value, StoreFullError) is (code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    assert not path.exists()


NO_PROC = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
from shmstore import ShmStore, StoreError, StoreFullError
assert libc.unshare(0x00020000) == 0  # CLONE_NEWNS
assert libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0  # MS_REC | MS_PRIVATE
assert libc.mount(b"tmpfs", b"/proc", b"tmpfs", 0, None) == 0
try:
    ShmStore(sys.argv[1])
except StoreFullError:
    raise
except StoreError as error:
    print(error)
"""


@root_only
def test_without_proc_an_open_says_so(name: str, path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NO_PROC, name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "needs /proc" in done.stdout
    assert not path.exists()


# -- how long an open waits -------------------------------------------------------------------------------------------


@pytest.fixture
def held() -> Iterator[Any]:
    """The lock file of this user, held as another process would hold it."""
    with LockFile(os.geteuid()).open() as file:
        end = time.monotonic() + 20
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < end
                time.sleep(0.001)
        yield file


@pytest.fixture
def waiting(held: Any, name: str) -> Iterator[None]:
    """A thread that is opening a store and waits for the lock file."""
    tried = threading.Event()

    def work() -> None:
        ShmStore(name, timeout=60).close()

    real = LockFile.open

    def noted(self: LockFile) -> Any:
        tried.set()
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LockFile, "open", noted)
        thread = threading.Thread(target=work)
        thread.start()
        assert tried.wait(20)
        yield
        assert thread.is_alive(), "this took as long as the other's wait"
        fcntl.flock(held, fcntl.LOCK_UN)
        thread.join()


def test_the_lock_file_of_another_holds_up_no_fork(waiting: None) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_lock_file_of_another_holds_up_no_hash_store(waiting: None) -> None:
    with HashStore() as store:
        store.set("k", b"1")


def test_an_open_without_time_does_not_wait_for_another_thread(waiting: None, name: str) -> None:
    with pytest.raises(StoreTimeoutError, match="lock file"):
        ShmStore(name, timeout=0.1)


def test_all_handles_close_in_the_time_of_one(name: str, held: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """At exit, with a lock file whose holder is stopped; and what one raises keeps none of the others."""
    monkeypatch.setattr(segment, "LEAVE_NS", 300_000_000)
    deadlines: list[int] = []

    class Handle:
        def _close(self, deadline: int) -> None:
            deadlines.append(deadline)
            raise StoreError("no")

    handles = [Handle() for _ in range(3)]
    monkeypatch.setattr(shm, "_handles", handles)
    with pytest.raises(StoreError):
        shm._close_all()
    assert len(deadlines) == 3
    assert len(set(deadlines)) == 1


# -- without descriptors ----------------------------------------------------------------------------------------------


@pytest.fixture
def exhausted() -> Iterator[list[int]]:
    """What it holds is every descriptor there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    taken: list[int] = []
    yield taken
    for fd in taken:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def take_all(taken: list[int]) -> None:
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.EMFILE


@pytest.mark.parametrize("spare", range(5))
def test_an_open_without_descriptors_says_so(name: str, path: Path, exhausted: list[int], spare: int) -> None:
    take_all(exhausted)
    for _ in range(spare):
        os.close(exhausted.pop())
    try:
        store = ShmStore(name)
    except StoreError as error:
        assert "ulimit" in str(error) or "Too many open files" in str(error)
        for _ in range(4):
            os.close(exhausted.pop())
        assert not path.exists()
    else:
        assert spare >= 3
        store.close()


def test_a_close_without_descriptors_removes_the_segment(name: str, path: Path, exhausted: list[int]) -> None:
    store = ShmStore(name)
    take_all(exhausted)
    store.close()
    assert not path.exists()


# -- shared with a group ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o400, 0o606, 0o777])
def test_a_mode_that_nobody_could_use(name: str, mode: int) -> None:
    with pytest.raises(ValueError, match="0o660"):
        ShmStore(name, mode=mode)


def as_user(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


@pytest.fixture
def no_locks() -> Iterator[None]:
    def clear() -> None:
        for file in SHM.glob(f".shmstore.lock.{OWNER}*"):
            file.unlink()

    clear()
    yield
    clear()


@root_only
def test_a_member_of_the_group_attaches_whatever_the_owner_opened_first(
    name: str, path: Path, no_locks: None, team: Team
) -> None:
    def owner(me: Any) -> None:
        as_user(OWNER, OTHER_GROUP)
        ShmStore(f"{name}-first").close()  # makes the owner's lock file with another group
        os.setresuid(OWNER, OWNER, OWNER)
        me.say("first")

    def owner_shares(me: Any) -> None:
        as_user(OWNER, GROUP)
        os.umask(0o077)
        with ShmStore(name, mode=0o660) as store:
            store.set("k", b"shared")
            me.say("there")
            me.hear()

    def member(me: Any) -> bytes:
        as_user(OWNER + 1, GROUP)
        with ShmStore(name) as store:
            return store.get("k", 0)

    def stranger(me: Any) -> str:
        as_user(OWNER + 1, OTHER_GROUP)
        with pytest.raises(SegmentInvalidError) as caught:
            ShmStore(name)
        return str(caught.value)

    first = team.start(owner, how="fork")
    first.hear()
    first.result()
    shares = team.start(owner_shares, how="fork")
    shares.hear()
    assert team.start(member, how="fork").result() == b"shared"
    assert str(OWNER) in team.start(stranger, how="fork").result()
    shares.say("end")
    shares.result()
    assert not path.exists()
    own, shared = LockFile(OWNER).path.stat(), LockFile(OWNER, GROUP).path.stat()
    assert stat.S_IMODE(own.st_mode) == 0o600
    assert (stat.S_IMODE(shared.st_mode), shared.st_gid) == (0o660, GROUP)


@root_only
def test_a_link_in_place_of_the_lock_file_is_refused(name: str, no_locks: None, tmp_path: Path, team: Team) -> None:
    target = tmp_path / "precious"
    target.touch(mode=0o600)
    os.chown(target, OWNER, GROUP)
    os.chmod(tmp_path, 0o755)
    LockFile(OWNER, GROUP).path.symlink_to(target)

    def child(me: Any) -> str:
        as_user(OWNER, GROUP)
        with pytest.raises(SegmentInvalidError) as caught:
            ShmStore(name, mode=0o660)
        return str(caught.value)

    assert "lock" in team.start(child, how="fork").result()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
