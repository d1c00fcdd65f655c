"""One suite, every store a parameter: shmstore.Barrier where it chooses by itself, and KeyBarrier on stores of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kinds import DUCKS, LONG, SEGMENT, TORCH, handles, warm_torch

import shmstore
from shmstore._barrier_keys import KeyBarrier
from shmstore.testing.barriers import BarrierContract

torch_says = pytest.mark.filterwarnings("ignore::UserWarning")  # at import, that numpy is missing


class Suite(BarrierContract):
    @pytest.fixture
    def store_factory(self, kind: str, name: str, tmp_path: Path) -> Iterator[Callable[[], Any]]:
        with handles(kind, name, tmp_path) as factory:
            yield factory


class TestInTheSegment(Suite):
    @pytest.fixture(params=SEGMENT)
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def keys_left(self, n: int, ranked: bool) -> int:
        return 0

    def test_it_is_the_segments(self, make: Any) -> None:
        assert type(make()).__name__ == "SegmentBarrier"


class TestByKeys(Suite):
    @pytest.fixture(params=["hash", "futex", "prefix-hash", *DUCKS])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def make(self, store_factory: Callable[[], Any]) -> Any:
        def make(key: str = "b", parties: int = 2, rank: int | None = None, timeout: Any = LONG) -> KeyBarrier:
            return KeyBarrier(store_factory(), key, parties, rank, timeout)

        return make

    def keys_left(self, n: int, ranked: bool) -> int:
        return 4

    @pytest.fixture
    def uses(self, kind: str) -> int:
        if kind in ("duck-swap", "duck-plain"):
            pytest.skip("the store cannot delete keys")
        return 1000


@torch_says
class TestOnTorch(Suite):
    @pytest.fixture(autouse=True, scope="class")
    def warm(self) -> None:
        warm_torch()

    @pytest.fixture(params=TORCH)
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def keys_left(self, n: int, ranked: bool) -> int:
        return 6

    @pytest.fixture
    def rounds(self) -> int:
        return 20

    @pytest.fixture
    def uses(self, kind: str) -> int:
        return 100 if kind == "torch-file" else 500

    def test_threads_that_share_a_handle_may_all_reset(self, make: Any, kind: str) -> None:
        if kind == "torch-tcp":
            pytest.skip("a waiting thread holds the client for a slice")
        super().test_threads_that_share_a_handle_may_all_reset(make)

    def test_it_is_by_keys(self, make: Any) -> None:
        assert type(make()) is KeyBarrier


@pytest.mark.parametrize("kind", DUCKS)
def test_other_objects_with_the_verbs_get_keys(kind: str, name: str, tmp_path: Path) -> None:
    with handles(kind, name, tmp_path) as factory:
        assert type(shmstore.Barrier(factory(), "b", 2)) is KeyBarrier


def test_an_object_without_the_verbs_is_refused() -> None:
    with pytest.raises(TypeError, match="set, get, add, wait, check"):
        shmstore.Barrier(object(), "b", 2)
