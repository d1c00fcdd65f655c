"""A process stopped in the middle of a verb of its own keeps its lock; continued, it ends the verb, and all go on."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import inside
import pytest
import workers
from harness import Child, Team

from shmstore import ShmStore, StoreTimeoutError

pytestmark = pytest.mark.shows("crash: stopped in a verb")

SIZE = 8 << 20


@pytest.fixture(params=["futex", "semaphore"])
def store(request: pytest.FixtureRequest, name: str) -> Iterator[ShmStore]:
    with ShmStore(name, sync=request.param, timeout=20) as store:
        yield store


VERBS: dict[str, Callable[[ShmStore], Any]] = {
    "set": lambda s: s.set("k", b"x"),
    "add": lambda s: s.add("k", 1),
    "compare_set": lambda s: s.compare_set("k", b"y", b"z"),
    "append": lambda s: s.append("k", b"x"),
    "delete_key": lambda s: s.delete_key("k"),
    "multi_set": lambda s: s.multi_set(["other", "k"], [b"", b""]),
    "queue_push": lambda s: s.queue_push("k", b"item"),
    "queue_pop": lambda s: s.queue_pop("k"),
    "barrier": lambda s: s.barrier("k", 1),
}


READS: dict[str, Callable[[ShmStore], Any]] = {
    "get": lambda s: len(s.get("k")),
    "get, at once": lambda s: len(s.get("k", 0)),
    "check": lambda s: s.check(["k"]),
    "wait": lambda s: s.wait(["k"]),
    "multi_get": lambda s: [len(value) for value in s.multi_get(["k"])],
}
"""They take no lock, unless a write of their stripe is under way: its sequence is odd then."""


def hold(me: Any, name: str) -> None:
    """Holds the lock of "k" until it is killed."""
    store = ShmStore(name, timeout=60)
    inside.hold(store, "stripe", b"k")
    me.say("holding")
    signal.pause()


def stop_inside(child: Child, store: ShmStore) -> str:
    """Stops the child at random moments until one is within its lock; the text of who met it."""
    store.set_timeout(0.2)
    end = time.monotonic() + 40
    while time.monotonic() < end:
        child.signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        try:
            store.queue_len("k")
            store.append("k", b"")
        except StoreTimeoutError as error:
            return str(error)
        child.signal(signal.SIGCONT)
    raise AssertionError("never stopped while it held its lock")


def answer(call: Callable[[ShmStore], Any], store: ShmStore) -> Any:
    """What a read gives, or the text of its timeout."""
    try:
        return call(store)
    except StoreTimeoutError as error:
        return str(error)


def whole(size: int) -> dict[str, Any]:
    """What all reads give of a value of that size."""
    return {"get": size, "get, at once": size, "check": True, "wait": None, "multi_get": [size]}


def test_stopped_between_two_writes_it_holds_up_no_read(store: ShmStore, name: str, team: Team) -> None:
    """It holds the lock, and nothing is half written: writers wait for it, readers do not even look at the lock."""
    store.set("k", b"x" * 100)
    child = team.start(hold, name)
    assert child.hear() == "holding"
    child.signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    start = time.monotonic()
    assert {verb: call(store) for verb, call in READS.items()} == whole(100)
    assert time.monotonic() - start < 10, "the timeout is 20 s: a read waited for the lock"
    store.set_timeout(0.1)
    with pytest.raises(StoreTimeoutError, match=f"process {child.pid} "):
        store.append("k", b"x")
    child.signal(signal.SIGCONT)
    child.kill()
    store.set_timeout(20)
    store.append("k", b"x")
    assert inside.verify(store) == []


def test_stopped_in_a_verb_and_continued(store: ShmStore, name: str, team: Team) -> None:
    child = team.start(workers.write_until_told, name, SIZE)
    team.go()
    assert child.hear() == "writing"
    store.get("k")
    text = stop_inside(child, store)
    (slot,) = [peer.slot for peer in store.peers() if peer.pid == child.pid]
    assert f"process {child.pid} " in text
    assert f"peer slot {slot})" in text
    store.set_timeout(0.1)
    answers = {verb: answer(call, store) for verb, call in READS.items()}
    if any(isinstance(said, str) for said in answers.values()):  # it was stopped within the write: that is most of it
        for verb, said in answers.items():
            assert re.search(rf"process {child.pid} \(.*peer slot {slot}\)", str(said)), (verb, said)
    else:
        assert answers == whole(SIZE)
    for verb, call in VERBS.items():
        start = time.monotonic()
        with pytest.raises(StoreTimeoutError) as caught:
            call(store)
        assert time.monotonic() - start >= 0.1, verb
        assert re.search(rf"process {child.pid} \(.*peer slot {slot}\)", str(caught.value)), verb
    assert [peer.state for peer in store.peers() if peer.pid == child.pid] == ["live"]
    child.signal(signal.SIGCONT)
    store.set_timeout(20)
    assert len(store.get("k")) == SIZE, "what timed out has changed nothing"
    assert store.check(["other"]) is False
    assert store.queue_len("k") == 0
    store.set("stop", b"")
    assert child.result() > 0
    assert store.get("k", 0) == b"w" * SIZE
    for call in list(VERBS.values())[:1] + list(VERBS.values())[2:7]:
        call(store)
    assert inside.verify(store) == []
