"""One suite, every store a parameter."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import inside
import pytest

from shmstore import HashStore, PrefixStore, ShmStore, StoreFullError
from shmstore.testing.contract import VALUE_MAX, StoreContract

KINDS = {
    "hash": ("hash", []),
    "futex": ("futex", []),
    "semaphore": ("semaphore", []),
    "prefix-hash": ("hash", ["pre"]),
    "prefix-semaphore": ("semaphore", ["pre"]),
    "nested-futex": ("futex", ["outer", "inner"]),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestStores(StoreContract):
    @pytest.fixture
    def base_factory(self, kind: str, name: str) -> Iterator[Any]:
        """Handles of the store under the prefixes."""
        handles: list[Any] = []

        def make() -> Any:
            if KINDS[kind][0] != "hash":
                handles.append(ShmStore(name, sync=KINDS[kind][0], capacity=96 << 20, timeout=30))
            elif handles:
                handles.append(handles[0].clone())
            else:
                handles.append(HashStore(timeout=30))
            return handles[-1]

        make()  # one stays open, so that the store lasts as long as the test
        yield make
        for handle in handles[1:]:
            handle.close()
        broken = inside.verify(handles[0])
        handles[0].close()
        assert broken == []

    @pytest.fixture
    def store_factory(self, kind: str, base_factory: Any) -> Iterator[Any]:
        handles: list[Any] = []

        def make() -> Any:
            store = base_factory()
            for prefix in reversed(KINDS[kind][1]):
                store = PrefixStore(prefix, store)
            handles.append(store)
            return store

        yield make
        for handle in handles:
            handle.close()

    @pytest.fixture
    def key_overhead(self, kind: str) -> int:
        return sum(len(prefix) + 1 for prefix in KINDS[kind][1])

    @pytest.fixture
    def parked(self, base_factory: Any) -> Any:
        watcher = base_factory()
        return lambda key, n=1: inside.parked(watcher, key, n)


@pytest.mark.parametrize("what", ["cross_process", "picklable"])
def test_capabilities_say_the_difference(name: str, what: str) -> None:
    with HashStore() as one, ShmStore(name) as two:
        assert getattr(one.capabilities, what) is False
        assert getattr(two.capabilities, what) is True
        assert getattr(PrefixStore("p", one).capabilities, what) is False
        assert getattr(PrefixStore("p", two).capabilities, what) is True


# -- PrefixStore beyond the contract --------------------------------------------------------------------------------


@pytest.fixture
def base() -> Iterator[HashStore]:
    with HashStore(timeout=10) as store:
        yield store


def test_prefix_is_seen_from_below(base: HashStore) -> None:
    inner = PrefixStore("a", PrefixStore("b", base))
    inner.set("k", b"1")
    assert base.list_keys() == ["b/a/k"]
    assert base.get("b/a/k") == b"1"
    inner.queue_push("q", b"x")
    assert base.queue_len("b/a/q") == 1


def test_prefixes_keep_apart(base: HashStore) -> None:
    one, two = PrefixStore("p", base), PrefixStore("pp", base)
    base.set("k", b"base")
    one.set("k", b"one")
    two.set("k", b"two")
    assert (base.get("k"), one.get("k"), two.get("k")) == (b"base", b"one", b"two")
    assert (base.num_keys(), one.num_keys(), two.num_keys()) == (3, 1, 1)
    assert one.list_keys() == ["k"]
    assert one.delete_key("k") is True
    assert two.check(["k"]) is True
    assert sorted(base.list_keys()) == ["k", "pp/k"]


def test_prefix_reads_what_base_writes(base: HashStore) -> None:
    store = PrefixStore("p", base)
    base.multi_set(["p/a", "p/b/c", "p"], [b"1", b"2", b"3"])
    assert sorted(store.list_keys()) == ["a", "b/c"]
    assert store.multi_get(["a", "b/c"]) == [b"1", b"2"]


# -- a full segment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["futex", "semaphore"])
class TestFull:
    @pytest.fixture
    def small(self, name: str, engine: str) -> Iterator[ShmStore]:
        with ShmStore(name, sync=engine, capacity=24 << 20, timeout=10) as store:
            yield store
            assert inside.verify(store) == []

    def fill(self, store: ShmStore, size: int) -> dict[str, bytes]:
        model: dict[str, bytes] = {}
        while True:
            key, value = f"fill-{len(model)}", bytes([len(model) % 251]) * size
            try:
                store.set(key, value)
            except StoreFullError:
                assert len(model) * size <= 24 << 20
                return model
            model[key] = value
            assert len(model) * size <= 24 << 20, "more bytes stored than the capacity holds"

    @pytest.mark.parametrize("size", [VALUE_MAX, 1 << 20, 40000, 3000])
    def test_goes_on_working(self, small: ShmStore, size: int) -> None:
        small.set("before", b"kept")
        small.add("n", 1)
        model = self.fill(small, size)
        assert model, "not even one fitted"
        assert small.get("before") == b"kept"
        assert small.add("n", 1) == 2
        assert {key: small.get(key) for key in model} == model
        for key in model:
            assert small.delete_key(key) is True
        again = self.fill(small, size)
        assert len(again) >= len(model) * 3 // 4, "the space did not come back"
        assert {key: small.get(key) for key in again} == again

    def test_each_verb_says_so_and_changes_nothing(self, small: ShmStore) -> None:
        small.set("mine", b"old")
        small.queue_push("q", b"old")
        model = self.fill(small, VALUE_MAX)
        keys = small.num_keys()
        big = b"x" * VALUE_MAX
        for call in (
            lambda: small.set("mine", big),
            lambda: small.set("fresh", big),
            lambda: small.append("mine", b"x" * (VALUE_MAX - 3)),
            lambda: small.compare_set("mine", b"old", big),
            lambda: small.compare_set("fresh", b"", big),
            lambda: small.queue_push("q", big),
            lambda: small.multi_set(["mine", "fresh"], [b"new", big]),
        ):
            with pytest.raises(StoreFullError):
                call()
        assert small.get("mine") == b"old"
        assert small.num_keys() == keys
        assert small.queue_len("q") == 1
        assert small.queue_pop("q") == b"old"
        assert {key: small.get(key) for key in model} == model


def test_two_stores_share_nothing(name: str) -> None:
    with ShmStore(name) as one, ShmStore(f"{name}-{uuid.uuid4().hex[:6]}") as two, HashStore() as three:
        one.set("k", b"1")
        assert two.check(["k"]) is False
        assert three.check(["k"]) is False
        with HashStore() as four:
            three.set("k", b"3")
            assert four.check(["k"]) is False
