"""Who is timed. `everyone` is the list, in the order of the tables; the first is what the others are set against."""

from __future__ import annotations

from bench.rivals.base import Place, ProgramRival, Rival, StoreRival
from bench.rivals.given import Given
from bench.rivals.groups import Group
from bench.rivals.limits import EmptyCall, FutexBarrier, PingPong
from bench.rivals.lmdb_file import Lmdb
from bench.rivals.mpi import Mpi
from bench.rivals.ours import Anonymous, Named
from bench.rivals.pytorch import File, Hash, Tcp
from bench.rivals.redis_unix import Redis
from bench.rivals.standard import Manager, MpBarrier
from bench.rivals.wire import Wire

__all__ = ["Given", "Place", "ProgramRival", "Rival", "StoreRival", "everyone"]


def everyone() -> list[Rival]:
    """A new list of all rivals, whether or not they are there."""
    return [
        Named("futex"),
        Named("semaphore"),
        Anonymous(),
        Tcp(use_libuv=True),
        Tcp(use_libuv=False),
        File(),
        Hash(),
        Manager(),
        MpBarrier(),
        Redis(),
        Lmdb(),
        Mpi(),
        FutexBarrier(),
        PingPong(),
        EmptyCall(),
        Wire("torch", "libuv"),
        Wire("torch", "legacy"),
        Wire("torch", "shmstore"),
        Wire("shmstore", "shmstore"),
        Group("env"),
        Group("picked"),
        Group("agent"),
        Group("shm"),
        Group("file"),
    ]
