"""The one barrier suite on HybridStores: nodes of one rank, of all ranks (a segment's own barrier), and between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from clusters import LONG, Cluster, clusters, width
from kinds import warm_torch

from shmstore import Barrier
from shmstore._barrier_hybrid import HybridBarrier
from shmstore._barrier_keys import KeyBarrier
from shmstore._barrier_segment import SegmentBarrier
from shmstore.testing.barriers import BarrierContract, BarrierOnStoreContract


class Suite(BarrierOnStoreContract):
    @pytest.fixture
    def of(self, kind: str, name: str) -> Iterator[Callable[[int], Cluster]]:
        with clusters(name, kind) as made:
            yield made

    @pytest.fixture
    def store_factory(self, of: Callable[[int], Cluster], shape: str) -> Callable[[], Any]:
        return lambda: of(width(shape, 2)).open(0, 2)

    @pytest.fixture
    def make(self, of: Callable[[int], Cluster], shape: str) -> Any:
        def make(key: Any = "b", parties: Any = 2, rank: Any = None, timeout: Any = LONG) -> Barrier:
            ranks = parties if type(parties) is int and 0 < parties <= 64 else 2
            mine = rank if type(rank) is int and 0 <= rank < ranks else 0
            size = width(shape, ranks)
            barrier = Barrier(of(size).open(mine, ranks), key, parties, rank, timeout)
            several = KeyBarrier if rank is None else HybridBarrier
            assert type(barrier) is (several if size < ranks else SegmentBarrier)
            return barrier

        return make

    def keys_left(self, n: int, ranked: bool) -> int:
        return 12

    @pytest.fixture
    def rounds(self) -> int:
        return 20

    @pytest.fixture
    def uses(self) -> int:
        return 200


class TestOverOurServer(Suite, BarrierContract):
    @pytest.fixture
    def kind(self) -> str:
        return "ours"

    @pytest.fixture(params=["wide", "deep", "mixed"])
    def shape(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)


class TestOverOthers(Suite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def warm(cls) -> None:
        warm_torch()

    @pytest.fixture(params=["libuv", "torch", "hash", "prefix"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(params=["wide", "mixed"])
    def shape(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)
