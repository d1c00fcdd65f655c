"""The elastic functions on every store there is, interchangeably: between threads, each with a handle of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kinds import SEGMENT, OnTorch, handles

from shmstore import elastic
from shmstore.testing.contract import in_threads

WORLD = 3


class Suite:
    @pytest.fixture
    def stores(self, kind: str, name: str, tmp_path: Path) -> Iterator[Callable[[], Any]]:
        with handles(kind, name, tmp_path) as factory:
            yield factory

    def test_exchange_and_meet(self, stores: Callable[[], Any]) -> None:
        mine = [stores() for _ in range(WORLD)]

        def party(rank: int) -> list[bytes]:
            store = mine[rank]
            values: list[bytes] = elastic.synchronize(store, f"data{rank}", rank, WORLD, "hands/", 20)
            for turn in range(5):
                store.add(f"came/{turn}", 1)
                elastic.barrier(store, WORLD, f"turn/{turn}", 20, rank=rank)
                assert int(store.get(f"came/{turn}")) == WORLD
            return [*values, *elastic.get_all(store, rank, "hands/", WORLD)]

        expected = [f"data{rank}".encode() for rank in range(WORLD)] * 2
        assert in_threads(WORLD, party) == [expected] * WORLD

    def test_a_timeout_names_the_missing(self, stores: Callable[[], Any], kind: str) -> None:
        store = stores()
        before = store.timeout
        with pytest.raises(RuntimeError) as caught:
            elastic.barrier(store, 3, "alone", 0.05, 0, "Rank {} host".format, 0.02)
        if (
            kind == "torch-file"
        ):  # it raises no DistStoreError, so there is no tracing: torch's own function does the same
            assert "Wait timeout" in str(caught.value)
            return
        assert "missing_ranks=[Rank 1 host, Rank 2 host]" in str(caught.value)
        assert store.timeout == (before if kind in SEGMENT else timedelta(seconds=0.05))


class TestOnOurs(Suite):
    @pytest.fixture(params=SEGMENT)
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)


class TestOnTorch(OnTorch, Suite):
    pass
