"""A dict is the model: random verbs through several handles and a second process must agree with it at each step."""

from __future__ import annotations

import itertools
import os
import re
from collections import deque
from typing import Any

import inside
import pytest
import workers
from harness import Child, Team
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shmstore import HashStore, PrefixStore, QueueEmptyError, ShmStore, StoreTimeoutError

KEYS = st.sampled_from(["a", "b", "c/d", "grün", "nul\0l", "", "k" * 3000]).filter(bool)
VALUES = st.one_of(
    st.binary(max_size=20),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: str(n).encode()),
    st.sampled_from([b"", b"12x", b" 7", b"+5", b"9" * 30, b"x" * 700, b"y" * 66000]),
)
NUMBERS = st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))
WHO = st.integers(0, 3)
INT = re.compile(rb"[ \t\n\v\f\r]*([+-]?[0-9]+)")
counter = itertools.count()


def wrap(n: int) -> int:
    return (n + 2**63) % 2**64 - 2**63


class StoreMachine(RuleBasedStateMachine):
    """Who 0 and 1 are handles here, 2 a PrefixStore's base-side twin (a clone), 3 a process of its own."""

    engine = "futex"
    child: Child

    @initialize()
    def open(self) -> None:
        self.name = f"model-{os.getpid()}-{next(counter)}"
        if self.engine == "hash":
            first: Any = HashStore(timeout=5)
            second: Any = first.clone()
        else:
            first = ShmStore(self.name, sync=self.engine, timeout=5, capacity=32 << 20)
            second = ShmStore(self.name, timeout=5)
        self.handles = [first, second, first.clone()]
        self.keys: dict[str, bytes] = {}
        self.queues: dict[str, deque[bytes]] = {}

    def teardown(self) -> None:
        if not hasattr(self, "handles"):
            return
        try:
            assert inside.verify(self.handles[0]) == []
        finally:
            if self.engine != "hash":
                self.child.say((self.name, "close_if_open", ()))
                self.child.hear()
            for handle in self.handles:
                handle.close()

    def do(self, who: int, verb: str, *args: Any) -> Any:
        """The verb's value; or the name of the exception it raised."""
        if who == 3 and self.engine != "hash":
            self.child.say((self.name, verb, args))
            kind, value = self.child.hear()
            return value if kind == "ok" else f"raised {value}"
        try:
            return getattr(self.handles[who % 3], verb)(*args)
        except (ValueError, StoreTimeoutError, QueueEmptyError) as error:
            return f"raised {type(error).__name__}"

    @rule(who=WHO, key=KEYS, value=VALUES)
    def set(self, who: int, key: str, value: bytes) -> None:
        assert self.do(who, "set", key, value) is None
        self.keys[key] = value

    @rule(who=WHO, key=KEYS)
    def get(self, who: int, key: str) -> None:
        assert self.do(who, "get", key, 0) == self.keys.get(key, "raised StoreTimeoutError")

    @rule(who=WHO, key=KEYS, n=NUMBERS)
    def add(self, who: int, key: str, n: int) -> None:
        number = INT.match(self.keys.get(key, b"0"))
        got = self.do(who, "add", key, n)
        if number is None or not -(2**63) <= int(number[1]) < 2**63:
            assert got == "raised ValueError"
        else:
            assert got == wrap(int(number[1]) + n)
            self.keys[key] = str(got).encode()

    @rule(who=WHO, key=KEYS, value=VALUES)
    def append(self, who: int, key: str, value: bytes) -> None:
        assert self.do(who, "append", key, value) is None
        self.keys[key] = self.keys.get(key, b"") + value

    @rule(who=WHO, key=KEYS, expected=VALUES, desired=VALUES, right=st.booleans())
    def compare_set(self, who: int, key: str, expected: bytes, desired: bytes, right: bool) -> None:
        now = self.keys.get(key)
        if right:
            expected = b"" if now is None else now
        got = self.do(who, "compare_set", key, expected, desired)
        if (now is None and expected == b"") or now == expected:
            self.keys[key] = desired
            assert got == desired
        else:
            assert got == (expected if now is None else now)

    @rule(who=WHO, key=KEYS)
    def delete(self, who: int, key: str) -> None:
        assert self.do(who, "delete_key", key) is (self.keys.pop(key, None) is not None)

    @rule(who=WHO, keys=st.lists(KEYS, max_size=4))
    def check(self, who: int, keys: list[str]) -> None:
        there = all(key in self.keys or self.queues.get(key) for key in keys)
        assert self.do(who, "check", keys) is there
        assert self.do(who, "wait", keys, 0) == (None if there else "raised StoreTimeoutError")

    @rule(who=WHO, pairs=st.lists(st.tuples(KEYS, VALUES), max_size=5), cut=st.booleans())
    def multi_set(self, who: int, pairs: list[tuple[str, bytes]], cut: bool) -> None:
        keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        if cut and keys:
            assert self.do(who, "multi_set", keys, values[:-1]) == "raised ValueError"
        else:
            assert self.do(who, "multi_set", keys, values) is None
            self.keys.update(pairs)

    @rule(who=WHO, keys=st.lists(KEYS, max_size=4))
    def multi_get(self, who: int, keys: list[str]) -> None:
        got = self.do(who, "multi_get", keys, 0)
        if all(key in self.keys for key in keys):
            assert got == [self.keys[key] for key in keys]
        else:
            assert got == "raised StoreTimeoutError"

    @rule(who=WHO, key=KEYS, value=VALUES)
    def push(self, who: int, key: str, value: bytes) -> None:
        assert self.do(who, "queue_push", key, value) is None
        self.queues.setdefault(key, deque()).append(value)

    @rule(who=WHO, key=KEYS)
    def pop(self, who: int, key: str) -> None:
        queue = self.queues.get(key)
        got = self.do(who, "queue_pop", key, False)
        assert got == (queue.popleft() if queue else "raised QueueEmptyError")

    @precondition(lambda self: any(self.queues.values()))
    @rule(who=WHO, data=st.data())
    def pop_blocking(self, who: int, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key, queue in self.queues.items() if queue)))
        assert self.do(who, "queue_pop", key) == self.queues[key].popleft()

    @rule(who=WHO, key=KEYS)
    def queue_len(self, who: int, key: str) -> None:
        assert self.do(who, "queue_len", key) == len(self.queues.get(key, ()))

    @rule(who=WHO)
    def list_keys(self, who: int) -> None:
        assert sorted(self.do(who, "list_keys")) == sorted(self.keys)

    @rule(slot=st.integers(1, 2))
    def reopen(self, slot: int) -> None:
        """A handle closes and another takes its place."""
        self.handles[slot].close()
        self.handles[slot] = self.handles[0].clone()

    @precondition(lambda self: "c/d" in self.keys)
    @rule()
    def through_a_prefix(self) -> None:
        assert PrefixStore("c", self.handles[0]).get("d", 0) == self.keys["c/d"]

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "handles"):
            assert self.handles[0].num_keys() == len(self.keys)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of the big values
@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", ["futex", "semaphore", "hash"])
def test_store_agrees_with_a_dict(engine: str) -> None:
    machine = type("Machine", (StoreMachine,), {"engine": engine})
    with Team(100) as team:
        if engine != "hash":
            machine.child = team.start(workers.executor)
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine,
            settings=settings(
                max_examples=25,
                stateful_step_count=30,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        if engine != "hash":
            machine.child.say(None)
            machine.child.result()
