"""Many processes at once, each stress with two oracles that do not depend on each other."""

from __future__ import annotations

import re
from collections.abc import Iterator

import inside
import pytest
import workers
from harness import Team

from shmstore import ShmStore

pytestmark = pytest.mark.shows("process: many at once, two oracles each")


@pytest.fixture(params=["futex", "semaphore"])
def store(request: pytest.FixtureRequest, name: str) -> Iterator[ShmStore]:
    with ShmStore(name, sync=request.param, timeout=30) as store:
        yield store
        assert inside.verify(store) == []


def test_adds(store: ShmStore, name: str, team: Team) -> None:
    n, each = 4, 3000
    answers = team.run(n, workers.add_many, name, each)
    assert sorted(v for values in answers for v in values) == list(range(1, n * each + 1))
    assert store.get("n") == str(n * each).encode()
    assert all(values == sorted(values) for values in answers)


def test_swaps(store: ShmStore, name: str, team: Team) -> None:
    n, each = 4, 300
    store.set("cell", b"0")
    answers = team.run(n, workers.swap_many, name, each)
    assert sorted(v for values in answers for v in values) == list(range(1, n * each + 1))
    assert int(store.get("cell")) == n * each


def test_appends(store: ShmStore, name: str, team: Team) -> None:
    n, each = 3, 400
    team.run(n, workers.append_many, name, each)
    log = store.get("log").decode()
    pieces = re.findall(r"<(\d+):(\d+)>", log)
    assert "".join(f"<{a}:{b}>" for a, b in pieces) == log
    for index in range(n):
        assert [int(b) for a, b in pieces if int(a) == index] == list(range(each))


def test_queue(store: ShmStore, name: str, team: Team) -> None:
    each = 500
    producers = [team.start(workers.push_many, name, each) for _ in range(2)]
    consumers = [team.start(workers.pop_many, name, each) for _ in range(2)]
    team.go()
    indices = [child.result() for child in producers]
    got = [child.result() for child in consumers]
    assert sorted(item for items in got for item in items) == sorted(
        f"{index}:{i}".encode() for index in indices for i in range(each)
    )
    for items in got:
        for index in indices:
            seen = [int(item.split(b":")[1]) for item in items if item.startswith(b"%d:" % index)]
            assert seen == sorted(seen)
    assert store.queue_len("q") == 0


def test_barriers(store: ShmStore, name: str, team: Team) -> None:
    n, rounds = 4, 50
    seen = team.run(n, workers.barriers, name, n, rounds)
    assert seen == [[n] * rounds] * n
    assert store.multi_get([f"arrived-{i}" for i in range(rounds)]) == [b"%d" % n] * rounds


def test_a_timeout_of_zero_is_not_for_the_lock(store: ShmStore, name: str, team: Team) -> None:
    """Others hold the key's lock most of the time; what needs no wait for a key does not time out on that."""
    store.set("k", b"x")
    store.set("n", b"0")
    children = [team.start(workers.write_until_told, name, 60_000) for _ in range(2)]
    team.go()
    for child in children:
        assert child.hear() == "writing"
    store.set_timeout(0)
    for _ in range(300):
        assert len(store.get("k", 0)) in (1, 60_000)
        store.wait(["k"], 0)
        assert len(store.multi_get(["k", "n"], 0)) == 2
        assert store.check(["k"]) is True
        store.append("k", b"")
        assert store.compare_set("n", b"0", b"0") == b"0"
        assert "k" in store.list_keys()
    store.set("stop", b"")
    for child in children:
        assert child.result() > 0


def test_threads_in_processes(store: ShmStore, name: str, team: Team) -> None:
    n, threads, each = 2, 8, 150
    left = team.run(n, workers.mixed, name, threads, each)
    assert store.get("shared") == str(n * threads * each).encode()
    assert store.num_keys() == sum(left) + 1
    assert len(set(store.list_keys())) == sum(left) + 1
