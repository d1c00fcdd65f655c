"""Timeouts, aborts and resets at random, of all ranks at once: what an epoch was for one, it was for all."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import proofs
import pytest
from clusters import LONG, Cluster, clusters
from kinds import warm_torch

from shmstore import Barrier, BrokenBarrierError
from shmstore._barrier_hybrid import HybridBarrier
from shmstore.barrier import Attempt
from shmstore.testing.contract import in_threads

SECONDS = 12 if proofs.LONG else 2
FEW = 5
"""So many epochs are passed, and so many broken, or it would show little: on a loaded machine it goes on for them."""
SEEDS = range(8, 16) if proofs.LONG else [8]


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    warm_torch()


@pytest.fixture(params=["ours", "torch", "hash"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cluster(kind: str, name: str) -> Iterator[Cluster]:
    with clusters(name, kind) as of:
        yield of(2)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_epoch_is_passed_for_one_and_broken_for_another(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    passed: dict[int, set[int]] = defaultdict(set)
    broken: dict[int, set[int]] = defaultdict(set)
    meet = HybridBarrier._meet

    def noted(barrier: HybridBarrier, attempt: Attempt) -> int | None:
        index = meet(barrier, attempt)
        if index is not None:
            assert attempt.epoch is not None and index == barrier.rank
            passed[attempt.epoch].add(index)
        return index

    monkeypatch.setattr(HybridBarrier, "_meet", noted)
    barriers = [Barrier(cluster.open(rank, 4), "b", 4, rank) for rank in range(4)]
    end, done, all_left = time.monotonic() + SECONDS, threading.Event(), threading.Event()
    left: list[int] = []

    def party(rank: int) -> None:
        dice = random.Random(f"{seed} {rank}")
        barrier = barriers[rank]
        while not done.is_set():
            if rank == 0 and time.monotonic() > end and min(len(passed), len(broken)) > FEW:
                done.set()
                break
            try:
                if dice.random() < 0.02:
                    barrier.abort()
                    barrier.reset()
                barrier.wait(LONG if dice.random() < 0.7 else dice.choice([0, 0.001, 0.003, 0.01, 0.15]))
            except BrokenBarrierError as error:
                assert error.epoch is not None
                broken[error.epoch].add(rank)
                barrier.reset()
        left.append(rank)
        if len(left) == 4:
            all_left.set()
        while not all_left.is_set():  # who has just reset it waits for all of them, and that wakes nobody
            barrier.abort()
            all_left.wait(0.01)

    in_threads(4, party)
    both = {epoch: (passed[epoch], broken[epoch]) for epoch in passed.keys() & broken.keys()}
    assert both == {}, (
        f"{len(both)} of {len(passed)} passed epochs were broken for some: {dict(list(both.items())[:5])}"
    )
    partly = [epoch for epoch, ranks in passed.items() if ranks != {0, 1, 2, 3}]
    assert partly == [], "passed for some only"
    assert min(len(passed), len(broken)) > FEW
