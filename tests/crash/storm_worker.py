"""The workers of a storm: random verbs on one segment, each told to a journal before and after."""

from __future__ import annotations

import os
import random
import struct
import time
import traceback
from collections.abc import Callable
from typing import Final, NamedTuple

from storm_journal import BUSY, MISSING, payload, tag_of

from shmstore import BarrierTimeoutError, QueueEmptyError, ShmStore, StoreTimeoutError
from shmstore._native import ffi, lib

PATIENCE_S: Final = 20.0
"""The timeout of the workers' handles. No verb of a storm should ever come near it: one that does has failed."""
SHORT_S: Final = 0.004
"""Of the verbs that wait for what may never come, so that some are killed parked, and most go on."""
NEVER: Final = b"\0what no key holds"
"""What is expected by a compare_set that is only to take the lock."""
SLOT: Final = struct.Struct("=II")
"""A worker's slot and its generation, as the probe is told."""
GOODBYE: Final = SLOT.pack(0xFFFFFFFF, 0)
"""It ends by itself."""
SIZES: Final = (0, 10, 60, 300, 2000, 9000, 70_000)


class Plan(NamedTuple):
    """What a nursery is told once."""

    name: str
    engine: str
    journal: str  # a directory: one file a worker
    stacks: str  # a file: where SIGUSR1 has the stacks of any of them written
    probe: str  # a socket: where the probe gets the reading end of each worker's pipe
    index: int
    workers: int
    pace_s: float
    seed: int


class Worker:
    """Random verbs on one segment, each told to the journal before and after."""

    def __init__(self, plan: Plan, ident: int, store: ShmStore | None, pipe: int) -> None:
        self.plan = plan
        self.pipe = pipe
        self.ident = ident
        self.rng = random.Random(f"{plan.seed}/{ident}")
        self.seq = 0
        self.stopping = False
        self.fd = os.open(f"{plan.journal}/{ident}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.inherited = store is not None
        self.open(store)
        verbs: list[tuple[int, Callable[[], None]]] = [
            (12, self.count),
            (8, self.add),
            (12, self.set),
            (8, self.get),
            (5, self.delete),
            (4, self.multi_set),
            (8, self.own),
            (8, self.append),
            (12, self.push),
            (8, self.pop),
            (4, self.pop_waiting),
            (6, self.claim),
            (8, self.swap),
            (2, self.barrier),
            (3, self.signal),
            (2, self.wait),
            (4, self.look),
            (1, self.reopen),
        ]
        self.verbs = [verb for _, verb in verbs]
        self.weights = [weight for weight, _ in verbs]

    def open(self, store: ShmStore | None) -> None:
        self.store = store or ShmStore(self.plan.name, timeout=PATIENCE_S)
        self.impatient = self.store.clone()
        self.impatient.set_timeout(SHORT_S)
        slot, gen = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        code = lib.sst_self(self.store._seg, slot, gen)
        assert code == lib.SST_OK, code
        os.write(self.pipe, SLOT.pack(slot[0], gen[0]))

    def run(self) -> None:
        while not self.stopping:
            for verb in self.rng.choices(self.verbs, self.weights, k=64):
                verb()
                if self.stopping:
                    break
        self.impatient.close()
        self.store.close()
        os.write(self.pipe, GOODBYE)

    def told(self, verb: str, key: str, arg: object, call: Callable[[bytes], bytes]) -> bytes:
        """call(tag), between its two lines in the journal."""
        self.seq += 1
        os.write(self.fd, f"B {self.seq} {time.monotonic_ns()} {verb} {key} {arg}\n".encode())
        result = call(f"{self.ident}:{self.seq}".encode())
        os.write(self.fd, b"D %d %d %s\n" % (self.seq, time.monotonic_ns(), result))
        return result

    def failed(self) -> None:
        os.write(self.fd, f"E {traceback.format_exc().encode().hex()}\n".encode())

    # -- verbs --------------------------------------------------------------------------------------------------------

    def count(self) -> None:
        key = f"n/{self.rng.randrange(4)}"
        self.told("add", key, 1, lambda tag: b"%d" % self.store.add(key, 1))

    def add(self) -> None:
        key, n = f"a/{self.rng.randrange(4)}", self.rng.randrange(1, 1000)
        self.told("add", key, n, lambda tag: b"%d" % self.store.add(key, n))

    def set(self) -> None:
        self._set(f"s/{self.rng.randrange(6)}")

    def _set(self, key: str) -> None:
        size = self.rng.choice(SIZES)

        def call(tag: bytes) -> bytes:
            self.store.set(key, payload(tag, size))
            return b"1"

        self.told("set", key, size, call)

    def get(self) -> None:
        self._get(f"s/{self.rng.randrange(6)}")

    def _get(self, key: str) -> None:
        def call(tag: bytes) -> bytes:
            try:
                return tag_of(self.store.get(key, 0))
            except StoreTimeoutError as error:
                return BUSY if "the lock" in str(error) else MISSING

        self.told("get", key, "-", call)

    def delete(self) -> None:
        key = f"s/{self.rng.randrange(6)}"
        self.told("del", key, "-", lambda tag: b"%d" % self.store.delete_key(key))

    def multi_set(self) -> None:
        keys = [f"s/{i}" for i in self.rng.sample(range(6), 3)]
        sizes = self.rng.choices(SIZES, k=3)

        def call(tag: bytes) -> bytes:
            self.store.multi_set(keys, [payload(tag, size) for size in sizes])
            return b"1"

        self.told("mset", ",".join(keys), "-", call)

    def own(self) -> None:
        """A key that nobody else writes: the next read sees the last write."""
        key = f"own/{self.ident}"
        self._set(key)
        self._get(key)

    def append(self) -> None:
        key, more = f"log/{self.rng.randrange(3)}", b"." * self.rng.choice((0, 0, 7, 80))

        def call(tag: bytes) -> bytes:
            self.store.append(key, b"<" + tag + more + b">")
            return b"1"

        self.told("app", key, "-", call)

    def push(self) -> None:
        key, size = f"q/{self.rng.randrange(3)}", self.rng.choice(SIZES[:-2])

        def call(tag: bytes) -> bytes:
            self.store.queue_push(key, payload(tag, size))
            return b"1"

        self.told("push", key, "-", call)

    def pop(self) -> None:
        self._pop(self.store, block=False)

    def pop_waiting(self) -> None:
        self._pop(self.impatient, block=True)

    def _pop(self, store: ShmStore, block: bool) -> None:
        key = f"q/{self.rng.randrange(3)}"

        def call(tag: bytes) -> bytes:
            try:
                return tag_of(store.queue_pop(key, block))
            except (QueueEmptyError, StoreTimeoutError):
                return MISSING

        self.told("pop", key, "-", call)

    def claim(self) -> None:
        key = f"claim/{self.rng.randrange(400)}"
        self.told("cas", key, "-", lambda tag: self.store.compare_set(key, b"", tag))

    def swap(self) -> None:
        key = f"cell/{self.rng.randrange(2)}"
        try:
            now = self.store.get(key, 0)
        except StoreTimeoutError:
            now = b""
        number = int(now.split(b" ")[0]) + 1 if now else 1

        def call(tag: bytes) -> bytes:
            mine = b"%d %s" % (number, tag)
            return b"%d" % (self.store.compare_set(key, now, mine) == mine)

        self.told("cas", key, number, call)

    def barrier(self) -> None:
        key = f"b/{self.rng.randrange(30)}"

        def call(tag: bytes) -> bytes:
            try:
                self.store.barrier(key, 3, SHORT_S)
            except BarrierTimeoutError:
                return b"late"
            except StoreTimeoutError:
                return BUSY
            return b"passed"

        self.told("bar", key, "-", call)

    def signal(self) -> None:
        key = f"sig/{self.rng.randrange(200)}"

        def call(tag: bytes) -> bytes:
            self.store.set(key, tag)
            return b"1"

        self.told("set", key, "-", call)

    def wait(self) -> None:
        key = f"sig/{self.rng.randrange(200)}"

        def call(tag: bytes) -> bytes:
            try:
                self.store.wait([key], SHORT_S)
            except StoreTimeoutError as error:
                return BUSY if "the lock" in str(error) else b"late"
            return b"there"

        self.told("wait", key, "-", call)

    def look(self) -> None:
        """What reads many stripes at once."""
        keys = [f"n/{i}" for i in range(4)]

        def call(tag: bytes) -> bytes:
            which = self.rng.randrange(4)
            if which == 0:
                return b"%d" % len(self.store.list_keys())
            if which == 1:
                return b"%d" % self.store.num_keys()
            if which == 2:
                return b"%d" % sum(self.store.queue_len(f"q/{i}") for i in range(3))
            return b"%d" % (len(self.store.multi_get(keys)) if self.store.check(keys) else 0)

        self.told("look", "look", "-", call)

    def reopen(self) -> None:
        """Leaves the segment and comes back."""

        def call(tag: bytes) -> bytes:
            self.impatient.close()
            self.store.close()
            self.open(None)
            return b"1"

        if not self.inherited:
            self.told("open", "open", "-", call)
