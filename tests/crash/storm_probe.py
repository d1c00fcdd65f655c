"""The probe of a storm: how long after a death the verbs that needed what the dead had in hand were answered.

Each worker has the writing end of a pipe of its own, and the probe, a process that nobody kills, all the reading ends.
A pipe reads as ended when the kernel has closed the dead's files: that is the moment when its locks are free to be
taken over. The probe is asleep until then. It then

  - reads the lock words of the segment: which of them are still the dead's? (A survivor may have been faster.)
  - reads in the dead's journal which verb it was in the middle of, and on which keys
  - does a verb on each of these keys, which needs the lock of its stripe, and one that takes a block and gives it back,
    which needs the lock of the heap

The time from the end of the pipe to the last of these answers is the recovery. It is an upper bound: other survivors
were often through before, and the repair of one lock is waited for with the verbs on all. It begins when the probe is
awake; of a pipe that ended while the probe was at work it begins at the last look that saw the pipe open. A death
between two verbs, or in one that only looks around, is measured when a lock was found held: else there was nothing to
recover, as far as anybody can tell.
"""

from __future__ import annotations

import mmap
import os
import re
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from storm_worker import GOODBYE, NEVER, PATIENCE_S, SLOT, Plan

from shmstore import ShmStore

LAYOUT: Final = Path(__file__).parents[2] / "shmstore/_core/layout.h"
HEAP: Final = "probe"
"""A key that is there only while a probe is under way."""


class Recovery(NamedTuple):
    held: bool  # the dead's lock had not been taken over when its files were seen closed
    took_ns: int


class Locks:
    """The lock words of a segment, as they lie in the file. layout.h says where; `test_storm.py` that it is so."""

    def __init__(self, name: str) -> None:
        head = LAYOUT.read_text().partition("*/")[0]
        row = re.compile(r" \* +(?:offset 0 +)?(header|heap|peers|ranks|waiters|stripes) .*?(\d\d+)(?: x (\d+))?")
        found = [match for match in map(row.match, head.splitlines()) if match is not None]
        sizes = {match[1]: int(match[2]) * int(match[3] or 1) for match in found}
        stripe = re.search(r"stripes +(\d+) x (\d+)", head)
        assert stripe is not None
        self.heap_at = sizes["header"] // 4
        self.stripes_at = sum(sizes[part] for part in ("header", "heap", "peers", "ranks", "waiters")) // 4
        self.step = int(stripe[2]) // 4
        with open(f"/dev/shm/shmstore.{name}", "rb") as file:
            length = self.stripes_at * 4 + sizes["stripes"]
            self.map = mmap.mmap(file.fileno(), length, prot=mmap.PROT_READ)
        self.words = memoryview(self.map).cast("I")

    def of(self, slot: int, gen: int) -> list[str]:
        """Those that are held by that generation of that slot."""
        owner = gen << 11 | slot + 1
        words = {f"stripe {i}": word for i, word in enumerate(self.words[self.stripes_at :: self.step].tolist())}
        words["heap"] = self.words[self.heap_at]
        return [lock for lock, word in words.items() if word & 0x07FFFFFF == owner]

    def close(self) -> None:
        self.words.release()
        self.map.close()


class Life:
    """What the probe knows of a worker."""

    def __init__(self, ident: int, fd: int) -> None:
        self.ident = ident
        self.fd = fd
        self.seen = False  # open, at a look
        self.said = b""

    def ended(self) -> bool:
        """Reads what it says; True: its files are closed."""
        while True:
            try:
                more = os.read(self.fd, 4096)
            except BlockingIOError:
                self.seen = True
                return False
            if not more:
                return True
            self.said = (self.said + more)[-SLOT.size :]

    @property
    def left(self) -> bool:
        return self.said == GOODBYE


class Probe:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.store = ShmStore(plan.name, timeout=PATIENCE_S)
        self.locks = Locks(plan.name)
        self.selector = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(plan.probe)
        self.listener.listen()
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.workers = 0
        self.recoveries: list[Recovery] = []
        self.untaken = 0
        self.unseen = 0
        self.looked = time.monotonic_ns()

    def turn(self, conn: Any) -> bool:
        """Waits for anything at all, and handles it; True: the storm has something to say."""
        events = self.selector.select(0)
        since = self.looked  # what is there already ended after that
        if not events:
            events = self.selector.select(None)
            since = time.monotonic_ns()
        self.looked = time.monotonic_ns()
        told = False
        for key, _ in events:
            if isinstance(key.data, Life):
                self.hear(key.data, since)
            elif key.fileobj is self.listener:
                self.selector.register(self.listener.accept()[0], selectors.EVENT_READ, None)
            elif key.fileobj is conn:
                told = True
            else:
                self.adopt(key.fileobj)
        return told

    def adopt(self, nursery: Any) -> None:
        data, fds, _, _ = socket.recv_fds(nursery, 8, 1)
        if not data:
            self.selector.unregister(nursery)
            nursery.close()
            return
        os.set_blocking(fds[0], False)
        worker = Life(int.from_bytes(data, "little"), fds[0])
        self.selector.register(fds[0], selectors.EVENT_READ, worker)
        self.workers += 1
        self.hear(worker, self.looked)

    def hear(self, worker: Life, closed_ns: int) -> None:
        if not worker.ended():
            return
        self.selector.unregister(worker.fd)
        os.close(worker.fd)
        self.workers -= 1
        if not worker.seen:  # never seen open: nobody knows since when it is closed
            self.unseen += 1
        elif not worker.left:
            self.recover(worker, closed_ns)

    def recover(self, worker: Life, closed_ns: int) -> None:
        slot = SLOT.unpack(worker.said) if worker.said else None
        held = self.locks.of(*slot) if slot else []
        verb, keys = in_hand(Path(self.plan.journal) / str(worker.ident))
        if verb == "look":  # at all stripes, one after the other
            keys = []
        if not keys and not held:
            return
        for key in keys:
            self.store.compare_set(key, NEVER, b"")
        if not keys:
            self.store.list_keys()
        self.store.set(HEAP, b"x" * 100)
        self.store.delete_key(HEAP)
        took = time.monotonic_ns() - closed_ns
        if slot and set(held) & set(self.locks.of(*slot)):
            self.untaken += 1  # a lock on keys that its journal does not name: whoever needs it next recovers it
        else:
            self.recoveries.append(Recovery(bool(held), took))

    def settle(self, conn: Any) -> dict[str, Any]:
        """Goes on until the last worker is gone, all of whom are dead; what was measured since the last time."""
        while self.workers or self.selector.select(0):
            if self.turn(conn):
                break
        said = {"recoveries": self.recoveries, "untaken": self.untaken, "unseen": self.unseen}
        self.recoveries, self.untaken, self.unseen = [], 0, 0
        return said

    def close(self) -> None:
        for key in list(self.selector.get_map().values()):
            if isinstance(key.data, Life):
                os.close(key.data.fd)
            elif isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self.selector.close()
        self.locks.close()
        self.store.close()


def in_hand(journal: Path) -> tuple[str, list[str]]:
    """The verb that a dead worker was in the middle of, and its keys; "" when it was between two."""
    try:
        with open(journal, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:  # killed before its first
        return "", []
    fields = lines[-1].split(b" ") if lines else [b""]
    if fields[0] != b"B":
        return "", []
    return fields[3].decode(), fields[4].decode().split(",")


def probe(me: Any, plan: Plan) -> None:
    """Until told None; answers anything else with what it has measured."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    one = Probe(plan)
    conn = me._conn
    one.selector.register(conn, selectors.EVENT_READ, None)
    me.say("up")
    while True:
        while not one.turn(conn):
            pass
        if me.hear() is None:
            break
        one.selector.unregister(conn)
        me.say(one.settle(conn))
        one.selector.register(conn, selectors.EVENT_READ, None)
    one.selector.unregister(conn)
    one.close()
