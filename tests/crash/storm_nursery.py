"""The nurseries of a storm: they fork its workers, and kill them.

A nursery is a small fresh interpreter. It forks its workers, kills one of them every few milliseconds and forks another
in its place at once. Of two nurseries one has the store open, so that its workers inherit the handle; the other's
workers open it by name. The pace of the killer is a workload and synchronises nothing.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import random
import signal
import socket
import sys
import time
import traceback
from typing import Any, Final

from storm_worker import PATIENCE_S, Plan, Worker

from shmstore import ShmStore

PR_SET_PDEATHSIG: Final = 1


def work(plan: Plan, ident: int, store: ShmStore | None, pipe: int, nursery_pid: int) -> int:
    """A worker's life, in the forked process; its exit code."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody else ends it when the nursery is gone
    if os.getppid() != nursery_pid:  # gone before that
        return 3
    os.nice(5)  # the killer is not to wait for its victims: 16 of them share the cores with it
    worker: Worker | None = None
    stop = [False]

    def on_stop(_signal: int, _frame: object) -> None:
        stop[0] = True
        if worker is not None:
            worker.stopping = True

    signal.signal(signal.SIGTERM, on_stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked in the nursery: none is lost on the way here
    try:
        worker = Worker(plan, ident, store, pipe)
        worker.stopping = stop[0]
        worker.run()
    except BaseException:
        if worker is None:
            traceback.print_exc()
        else:
            worker.failed()
        return 3
    return 0


class Nursery:
    """Keeps its workers' number up, and their lives short."""

    def __init__(self, plan: Plan, store: ShmStore | None) -> None:
        self.plan = plan
        self.store = store
        self.rng = random.Random(f"{plan.seed}/nursery {plan.index}")
        self.born = 0
        self.living: dict[int, int] = {}  # pid -> worker
        self.deaths: dict[int, int] = {}  # worker -> when it was gone, of those that were killed
        self.wrong: list[str] = []
        self.probe = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.probe.connect(plan.probe)

    def fork(self) -> int:
        self.born += 1
        ident = self.plan.index * 10_000_000 + self.born
        nursery_pid = os.getpid()
        reading, writing = os.pipe()  # reads as ended when the worker's files are closed; nobody else has the other end
        socket.send_fds(self.probe, [ident.to_bytes(8, "little")], [reading])
        os.close(reading)
        pid = os.fork()
        if pid == 0:
            code = 3
            try:
                code = work(self.plan, ident, self.store, writing, nursery_pid)
            finally:
                os._exit(code)
        os.close(writing)
        self.living[pid] = ident
        return pid

    def end(self, pid: int, sig: int) -> None:
        os.kill(pid, sig)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        ident = self.living.pop(pid)
        if sig == signal.SIGKILL and code == -sig:
            self.deaths[ident] = time.monotonic_ns()
        if code != (-sig if sig == signal.SIGKILL else 0):
            self.wrong.append(f"worker {ident} ended with {code}")

    def round(self, kills: int, gently: bool) -> dict[str, Any]:
        """Some kills; then everybody else is killed too, or told to end by itself."""
        self.deaths, self.wrong = {}, []
        while len(self.living) < self.plan.workers:
            self.fork()
        survivor = next(iter(self.living))  # sees the round through: what hangs cannot hide behind a kill
        while len(self.deaths) < kills and not self.wrong:
            time.sleep(self.plan.pace_s * self.rng.uniform(0.2, 1.8))  # the pace: a workload
            self.end(self.rng.choice([pid for pid in self.living if pid != survivor]), signal.SIGKILL)
            self.fork()
        if gently:
            for pid in self.living:
                os.kill(pid, signal.SIGTERM)
        for pid in list(self.living):
            self.end(pid, 0 if gently else signal.SIGKILL)
        return {"deaths": self.deaths, "wrong": self.wrong}


def nursery(me: Any, plan: Plan) -> None:
    """Rounds on demand until told None."""
    faulthandler.register(signal.SIGUSR1, file=open(plan.stacks, "a"), all_threads=True)  # noqa: SIM115 - for life
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    store = ShmStore(plan.name, timeout=PATIENCE_S) if plan.index % 2 else None
    sys.stdout.flush()
    gc.freeze()
    one = Nursery(plan, store)
    me.say("up")
    while (order := me.hear()) is not None:
        me.say(one.round(*order))
    one.probe.close()
    if store is not None:
        store.close()
