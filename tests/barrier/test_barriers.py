"""One suite, every store a parameter: shmstore.Barrier where it chooses by itself, and KeyBarrier on stores of ours.

    class              barrier         stores                              what
    TestInTheSegment   SegmentBarrier  every kind that lies in a segment   the whole contract
    TestByKeys         KeyBarrier      a ShmStore; the least that will do  the whole contract
    TestByKeysOnMore   KeyBarrier      the others of ours, other ducks     what depends on the store
    TestOnTorch        KeyBarrier      torch's                             what depends on the store

All of it with ranks and without, where that makes a difference. KeyBarrier has two ways, with compare_set and
delete_key (on a ShmStore) and without (on `kinds.Plain`), and both run the whole. On the other stores it is the same
Python, between other verbs: there run the tests in which these differ. What is refused before the store is asked, and
what threads make of one handle, is not run there again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kinds import DUCKS, LONG, SEGMENT, OnTorch, handles

import shmstore
from shmstore import _barrier_keys
from shmstore._barrier_keys import KeyBarrier
from shmstore.testing.barriers import BarrierContract, BarrierOnStoreContract


class Suite(BarrierOnStoreContract):
    @pytest.fixture
    def store_factory(self, kind: str, name: str, tmp_path: Path) -> Iterator[Callable[[], Any]]:
        with handles(kind, name, tmp_path) as factory:
            yield factory


class TestInTheSegment(Suite, BarrierContract):
    @pytest.fixture(params=SEGMENT)
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def keys_left(self, n: int, ranked: bool) -> int:
        return 0

    def test_it_is_the_segments(self, make: Any) -> None:
        assert type(make()).__name__ == "SegmentBarrier"


class ByKeys(Suite):
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


class TestByKeys(ByKeys, BarrierContract):
    @pytest.fixture(params=["futex", "duck-plain"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)


class TestByKeysOnMore(ByKeys):
    @pytest.fixture(params=["hash", "prefix-hash", "duck", "duck-swap"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)


class TestOnTorch(OnTorch, Suite):
    @pytest.fixture(autouse=True)
    def short_slices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What ends with a slice here: an interrupt, and a thread's hold of a TCPStore client."""
        monkeypatch.setattr(_barrier_keys, "FIRST_SLICE_NS", 100_000_000)

    def keys_left(self, n: int, ranked: bool) -> int:
        return 6

    @pytest.fixture
    def rounds(self) -> int:
        return 20

    @pytest.fixture
    def uses(self, kind: str) -> int:
        return 100 if kind == "torch-file" else 500

    def test_it_is_by_keys(self, make: Any) -> None:
        assert type(make()) is KeyBarrier


@pytest.mark.parametrize("kind", DUCKS)
def test_other_objects_with_the_verbs_get_keys(kind: str, name: str, tmp_path: Path) -> None:
    with handles(kind, name, tmp_path) as factory:
        assert type(shmstore.Barrier(factory(), "b", 2)) is KeyBarrier


def test_an_object_without_the_verbs_is_refused() -> None:
    with pytest.raises(TypeError, match="set, get, add, wait, check"):
        shmstore.Barrier(object(), "b", 2)


def test_a_subclass_that_no_store_would_choose_is_refused() -> None:
    with pytest.raises(TypeError, match="let your class hold a Barrier"):

        class Mine(shmstore.Barrier):
            pass
