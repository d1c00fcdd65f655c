"""What the victims of `kills` do: each way to open, share and leave a segment by its name, with what is there before.

No pytest here: the processes that run this are forked thousands of times, and small.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shmstore import SegmentExistsError, ShmStore, StoreError, _lifelock, shm

SHM = Path("/dev/shm")
OPEN: dict[str, Any] = {"timeout": 30, "capacity": 1 << 20}
"""How all open: with a timeout far beyond what anybody here may wait, and small, since thousands are made."""


@dataclass(frozen=True)
class Scenario:
    """What a victim does, and what must be found when it died in it.

    Attributes:
        work: what is stopped at each step; told the name, and what `prepare` returned.
        passes: functions that the steps must be found in.
        prepare: what the victim does before that.
        before: what happens before there is a victim.
        holder: how a process that lives through it all opens the segment, before all; None without one.
        old: whether those who open afterwards find the key "old": True, False, or None where it depends on the step.
        closes: the victim is attached, and "old" is everybody's who opens before it has left.
        raced: the short form has other processes open the name in the middle of it.
        next: how those who open afterwards do so: as the victim's rank too.
        persist: the segment outlives them all.
    """

    work: Callable[[str, Any], object]
    passes: frozenset[str]
    prepare: Callable[[str], Any] = lambda _name: None
    before: Callable[[str], object] = lambda _name: None
    holder: dict[str, Any] | None = None
    old: bool | None = False
    closes: bool = False
    raced: bool = False
    next: list[dict[str, Any]] = field(default_factory=lambda: [{"rank": 1}])
    persist: bool = False


# -- what is there before ---------------------------------------------------------------------------------------------


def with_old(**kwargs: Any) -> Callable[[str], ShmStore]:
    def prepare(name: str) -> ShmStore:
        store = ShmStore(name, **OPEN, **kwargs)
        store.set("old", b"content")
        return store

    return prepare


def left(**kwargs: Any) -> Callable[[str], object]:
    return lambda name: with_old(**kwargs)(name).close()


def died(**kwargs: Any) -> Callable[[str], object]:
    def before(name: str) -> None:
        pid = os.fork()
        if pid == 0:
            store = with_old(**kwargs)(name)
            os.kill(os.getpid(), signal.SIGKILL)
            store.close()
        os.waitpid(pid, 0)

    return before


def half_made(name: str) -> None:
    (SHM / f"shmstore.{name}").touch(0o600)


def no_lock_file(_name: str) -> None:
    for path in _lifelock.SHM.iterdir():
        path.unlink()


def small_files(_name: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))


# -- work -------------------------------------------------------------------------------------------------------------


def opened(**kwargs: Any) -> Callable[..., ShmStore]:
    return lambda name, *_: ShmStore(name, **OPEN, **kwargs)


def maybe(error: type[Exception], **kwargs: Any) -> Callable[..., ShmStore | None]:
    """What another process that opens meanwhile may decide."""

    def work(name: str, _: object) -> ShmStore | None:
        try:
            return ShmStore(name, **OPEN, **kwargs)
        except error:
            return None

    return work


def refused(error: type[Exception], **kwargs: Any) -> Callable[..., None]:
    def work(name: str, _: object) -> None:
        assert maybe(error, **kwargs)(name, None) is None

    return work


def close(_name: str, store: ShmStore) -> None:
    store.close()


def close_clones(_name: str, store: ShmStore) -> None:
    other = store.clone()
    store.close()
    other.close()


def collect(_name: str, kept: list[ShmStore]) -> None:
    del kept[0]
    gc.collect()


def exit_handler(_name: str, _store: ShmStore) -> None:
    shm._close_all()


# -- scenarios --------------------------------------------------------------------------------------------------------

OPENING = frozenset({"attach", "locks_to_open", "locked_step", "_holding", "_open"})
MAKING = OPENING | {"make_file", "_format", "enter"}
JOINING = OPENING | {"_reap_reason", "_join", "enter"}
REAPING = MAKING | {"_reap_reason", "unlink"}
LEAVING = frozenset({"_work_off", "_let_go", "_leave", "_remove", "_holding", "_unlink_if_last"})
WORLD = [{"rank": 1, "world_size": 2}, {"rank": 0, "world_size": 2}]

SCENARIOS = {
    "create": Scenario(opened(rank=1), MAKING | {"_register"}, raced=True),
    "create, the lock file too": Scenario(opened(), MAKING | {"_check"}, before=no_lock_file),
    "create, shared with the group": Scenario(
        opened(mode=0o660), MAKING | {"_check"}, before=no_lock_file, next=[{"rank": 1, "mode": 0o660}]
    ),
    "create, no room": Scenario(maybe(StoreError), MAKING - {"enter"} | {"unmake", "release"}, prepare=small_files),
    "create over the dead": Scenario(
        maybe(SegmentExistsError, create=True, rank=1), REAPING, before=died(rank=1), raced=True
    ),
    "open over the dead of half a world": Scenario(
        opened(rank=1, world_size=2), REAPING, before=died(rank=0, world_size=2), next=WORLD
    ),
    "open over what is half made": Scenario(opened(), REAPING, before=half_made, raced=True),
    "attach": Scenario(opened(rank=1), JOINING | {"_register"}, holder={"rank": 0}, old=True),
    "attach in the place of a dead rank": Scenario(
        opened(rank=1, create=False), JOINING | {"_register"}, before=died(rank=1), holder={"rank": 0}, old=True
    ),
    "attach with a rank that is taken": Scenario(
        refused(ValueError, rank=0), JOINING | {"_register", "release", "_let_go"}, holder={"rank": 0}, old=True
    ),
    "create where somebody lives": Scenario(
        refused(SegmentExistsError, create=True), OPENING | {"_check_plan", "release"}, holder={}, old=True
    ),
    "attach, the last of its world": Scenario(
        opened(rank=1, world_size=2), JOINING, before=left(rank=0, world_size=2), old=None, next=WORLD, raced=True
    ),
    "attach to what persists": Scenario(opened(), JOINING, before=left(persist=True), old=True, persist=True),
    "close, the last": Scenario(close, LEAVING | {"unlink"}, prepare=with_old(rank=1), closes=True, raced=True),
    "close, another lives": Scenario(close, LEAVING, prepare=opened(rank=1), holder={"rank": 0}, old=True),
    "close, the first of its world": Scenario(
        close, LEAVING, prepare=with_old(rank=0, world_size=2), old=None, closes=True, next=WORLD, raced=True
    ),
    "close what persists": Scenario(
        close, LEAVING, before=left(persist=True), prepare=opened(), old=True, persist=True
    ),
    "clone, close both": Scenario(close_clones, LEAVING | {"share", "unlink"}, prepare=with_old(), closes=True),
    "collected": Scenario(collect, LEAVING | {"__del__"}, prepare=lambda name: [with_old()(name)], closes=True),
    "exit": Scenario(exit_handler, LEAVING | {"_close_all"}, prepare=with_old(rank=1), closes=True),
}
