"""Torch's rendezvous state in a segment: tokens, conflicts, corrupt state; and torch's collectives over a store."""

from __future__ import annotations

import threading
from base64 import b64decode
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from kinds import torchs

from shmstore import HashStore
from shmstore.testing.contract.support import Later

dist: Any = torchs("torch.distributed", "torch's rendezvous")
rendezvous: Any = torchs("torch.distributed.elastic.rendezvous")
from shmstore.torch import C10dStore  # noqa: E402 -- torch is there
from shmstore.torch.agents import ShmRendezvousBackend  # noqa: E402 -- the same

KEY = "torch.rendezvous.run"


@pytest.fixture
def below() -> Iterator[HashStore]:
    with HashStore(timeout=20) as store:
        yield store


@pytest.fixture
def store(below: HashStore) -> Iterator[C10dStore]:
    made = C10dStore(below)
    yield made
    made.close()


@pytest.fixture
def backend(store: C10dStore) -> Any:
    return ShmRendezvousBackend(store, "run")


def test_name(backend: Any) -> None:
    assert backend.name == "shm"


def test_no_run_id(store: C10dStore) -> None:
    with pytest.raises(ValueError, match="run id"):
        ShmRendezvousBackend(store, "")


def test_no_state_at_first(backend: Any) -> None:
    assert backend.get_state() is None


def test_state_and_token(backend: Any, below: HashStore) -> None:
    state, token, was_set = backend.set_state(b"one")
    assert (state, was_set) == (b"one", True)
    assert backend.get_state() == (b"one", token)
    assert b64decode(below.get(KEY)) == b"one"


def test_a_state_is_not_written_over_without_its_token(backend: Any) -> None:
    _, first, _ = backend.set_state(b"one")
    assert backend.set_state(b"two") == (b"one", first, False)
    state, second, was_set = backend.set_state(b"two", first)
    assert (state, was_set, second != first) == (b"two", True, True)


@pytest.mark.parametrize("token", [b"another", "no bytes", object()], ids=["other", "str", "object"])
def test_a_token_that_is_not_the_states(backend: Any, token: Any) -> None:
    assert backend.set_state(b"new", token) is None  # there is no state
    _, right, _ = backend.set_state(b"one")
    assert backend.set_state(b"two", token) == (b"one", right, False)


def test_of_an_old_and_a_new_token_the_new_one_counts(backend: Any) -> None:
    _, old, _ = backend.set_state(b"one")
    _, new, _ = backend.set_state(b"two", old)
    assert backend.set_state(b"three", old) == (b"two", new, False)
    assert backend.set_state(b"three", new)[2] is True


def test_of_many_writers_one_wins(below: HashStore) -> None:
    backends = [ShmRendezvousBackend(C10dStore(below), "run") for _ in range(4)]
    _, token, _ = backends[0].set_state(b"begin")
    for turn in range(20):
        gate = threading.Barrier(4)

        def write(i: int, turn: int = turn, token: Any = token, gate: threading.Barrier = gate) -> Any:
            gate.wait(20)
            return backends[i].set_state(b"%d by %d" % (turn, i), token)

        outcomes = [call.result() for call in [Later(write, i) for i in range(4)]]
        assert sum(was_set for _, _, was_set in outcomes) == 1
        assert len({(state, new) for state, new, _ in outcomes}) == 1  # all have heard who
        token = outcomes[0][1]
    for one in backends:
        one._store.close()


def test_a_corrupt_state(backend: Any, below: HashStore) -> None:
    below.set(KEY, "a")  # too short for base64
    with pytest.raises(rendezvous.RendezvousStateError, match="corrupt"):
        backend.get_state()
    with pytest.raises(rendezvous.RendezvousStateError, match="corrupt"):
        backend.set_state(b"new")


def test_a_store_that_is_gone(backend: Any, store: C10dStore) -> None:
    store.close()
    for call in (backend.get_state, lambda: backend.set_state(b"new", b"token")):
        with pytest.raises(rendezvous.RendezvousConnectionError):
            call()


# -- collectives ------------------------------------------------------------------------------------------------------

WORLD = 3


def _collectives(store: C10dStore, rank: int) -> Any:
    return dist._StoreCollectives(store, rank, WORLD)


def _in_ranks(below: HashStore, call: Any) -> list[Any]:
    stores = [C10dStore(below) for _ in range(WORLD)]
    results = [Later(call, _collectives(stores[rank], rank), rank) for rank in range(WORLD)]
    values = [result.result() for result in results]
    for store in stores:
        store.close()
    return values


LIMIT = timedelta(seconds=20)


def test_collectives(below: HashStore) -> None:
    def call(over: Any, rank: int) -> list[Any]:
        over.barrier("met", LIMIT, True)
        if rank == 0:
            over.broadcast_send("said", "to all", LIMIT)
            gathered = over.gather_recv("sum", "0", LIMIT)
            scattered = over.scatter_send("part", [str(i) for i in range(WORLD)], LIMIT)
            said = b"to all"
        else:
            said = over.broadcast_recv("said", LIMIT)
            gathered = over.gather_send("sum", str(rank), LIMIT)
            scattered = over.scatter_recv("part", LIMIT)
        return [said, gathered, scattered, over.all_gather("all", str(rank), LIMIT), over.all_sum("total", rank, LIMIT)]

    of_zero, *others = _in_ranks(below, call)
    everything = [b"%d" % i for i in range(WORLD)]
    assert of_zero[1] == everything
    for rank, (said, _, scattered, together, total) in enumerate([of_zero, *others]):
        assert (said, together, total) == (b"to all", everything, 3)
        assert scattered == b"%d" % rank


def test_a_collective_that_not_all_come_to(below: HashStore) -> None:
    made = C10dStore(below)
    with pytest.raises(RuntimeError, match=r"missing ranks: 1, 2.*Wait timeout"):
        _collectives(made, 0).barrier("met", timedelta(milliseconds=50), True)
    made.close()
