"""Signals: Ctrl-C ends every wait, handlers may use the store, and no signal shortens a timeout."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import inside
import pytest
import workers
from harness import Team

from shmstore import ShmStore

pytestmark = pytest.mark.shows("process: signals in all that blocks, and handlers that use the store")


@pytest.fixture(params=["futex", "semaphore"])
def store(request: pytest.FixtureRequest, name: str) -> Iterator[ShmStore]:
    with ShmStore(name, sync=request.param, timeout=30) as store:
        yield store
        assert inside.verify(store) == []


@pytest.mark.parametrize("verb", ["get", "wait", "multi_get", "queue_pop", "barrier"])
def test_ctrl_c_ends_a_wait(store: ShmStore, name: str, team: Team, verb: str) -> None:
    child = team.start(workers.interrupted, name, verb)
    team.go()
    inside.parked(store, "never")
    sent = time.monotonic()
    child.signal(signal.SIGINT)
    assert child.result() - sent < 10  # the wait itself would last 1000 s
    assert store.get("afterwards", 0) == b"works"
    assert inside.waits(store) == []


def test_an_interrupted_popper_leaves_the_line(store: ShmStore, name: str, team: Team) -> None:
    child = team.start(workers.interrupted, name, "queue_pop")
    team.go()
    inside.parked(store, "never")
    child.signal(signal.SIGINT)
    child.result()
    store.queue_push("never", b"for me")
    assert store.queue_pop("never", False) == b"for me"


def test_handler_uses_the_store_while_its_thread_waits(store: ShmStore, name: str, team: Team) -> None:
    child = team.start(workers.handler_uses_store, name)
    team.go()
    inside.parked(store, "never yet")
    for n in range(1, 4):
        child.signal(signal.SIGUSR2)
        store.wait([f"handled {n}"], 20)  # the handler runs while its thread waits
    store.set("never yet", b"now")
    value, hits = child.result()
    assert value == b"now"
    assert hits == 3


def test_handlers_do_not_mix_results(store: ShmStore, name: str, team: Team) -> None:
    child = team.start(workers.handler_storm, name, 5000)
    team.go()
    assert child.result() >= 50


def test_signals_do_not_shorten_a_timeout(store: ShmStore, name: str, team: Team) -> None:
    child = team.start(workers.signals_do_not_shorten, name, 0.25)
    team.go()
    took, hits = child.result()
    assert took >= 0.25
    assert hits > 5


@pytest.mark.parametrize("verb", ["get", "wait", "multi_get", "queue_pop", "barrier"])
def test_a_handler_ends_the_wait_that_it_interrupts(store: ShmStore, name: str, team: Team, verb: str) -> None:
    """It uses the store some times, and then does what its own thread waits for."""
    child = team.start(workers.handler_releases, name, verb)
    team.go()
    assert child.result() == {"get": b"v", "multi_get": [b"v"], "queue_pop": b"v"}.get(verb)
    assert store.get("handled", 0) == b"5"
    assert inside.waits(store) == []


@pytest.mark.parametrize("verb", list(workers.AT_A_LOCK))
def test_signals_while_a_verb_waits_for_a_lock(store: ShmStore, name: str, team: Team, verb: str) -> None:
    """Its holder is alive and never lets go: handlers run, the verb goes on, and Ctrl-C ends it with nothing done."""
    holder = team.start(workers.hold_and_die, name, "stripe")
    assert holder.hear() == "holding"
    child = team.start(workers.interrupted_at_a_lock, name, verb)
    child.wait_ready()
    child.say(None)
    assert child.hear() == "interrupted"
    holder.kill()
    child.say("go on")
    assert child.result() == 5
    assert store.check(["held"]) is False
    assert store.queue_len("held") == 0
    assert store.get("afterwards", 0) == b"works"
