"""The barrier in shared memory, beyond what all barriers share: who is missing, who died or left, and what it costs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import inside
import pytest
from harness import Me, Team

import shmstore
from shmstore import (
    BarrierTimeoutError,
    BrokenBarrierError,
    HashStore,
    PeerDiedError,
    PrefixStore,
    ShmStore,
    StoreClosedError,
    StoreFullError,
    _barrier_segment,
    _native,
)
from shmstore._barrier_segment import SegmentBarrier
from shmstore._native import ffi, lib
from shmstore.barrier import Barrier

FOREVER_S = 60


@pytest.fixture
def hash_store() -> Iterator[HashStore]:
    with HashStore(timeout=FOREVER_S) as store:
        yield store


def used_bytes(store: Any) -> int:
    info = ffi.new("sst_info *")
    assert lib.sst_stat(store._seg, info) == lib.SST_OK
    return int(info.used)


def meet(me: Me, name: str, rank: int, parties: int, rounds: int, store_rank: int | None = None) -> None:
    """Passes some times, then does what it is told: leaves, dies, or waits for a key that never comes."""
    store = ShmStore(name, rank=store_rank if store_rank is not None else rank, timeout=FOREVER_S)
    barrier = Barrier(store, "meet", parties, rank)
    me.say("attached")
    for _ in range(rounds):
        barrier.wait()
    while (end := me.hear()) == "meet":
        barrier.wait()
    if end == "leave":
        store.close()
        me.say("left")
        me.hear()
    elif end == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif end == "wait":
        store.get("never")


def waits_on(store: ShmStore, pid: int, what: str | None) -> None:
    inside.until(lambda: any(peer.pid == pid and peer.waiting_on == what for peer in store.peers()))


# -- what it is -------------------------------------------------------------------------------------------------------


def test_stores_in_a_segment_have_it(name: str, hash_store: HashStore) -> None:
    with ShmStore(name) as store:
        for kind in (store, hash_store, PrefixStore("p", store), PrefixStore("q", PrefixStore("p", hash_store))):
            assert type(Barrier(kind, "b", 2)) is SegmentBarrier


def test_a_prefix_is_a_part_of_the_name(hash_store: HashStore) -> None:
    outer = Barrier(hash_store, "p/b", 2)
    inner = Barrier(PrefixStore("p", hash_store), "b", 2)
    other = Barrier(hash_store, "b", 2)
    thread = threading.Thread(target=outer.wait)
    thread.start()
    inner.wait(FOREVER_S)
    thread.join()
    assert (outer.epoch, inner.epoch, other.epoch) == (1, 1, 0)


def test_it_is_no_key(hash_store: HashStore) -> None:
    Barrier(hash_store, "b", 2)
    assert hash_store.num_keys() == 0
    assert hash_store.list_keys() == []
    assert not hash_store.check(["b"])
    assert not hash_store.delete_key("b")
    hash_store.set("b", "value")
    hash_store.queue_push("b", "item")
    assert Barrier(hash_store, "b", 2).n_waiting == 0
    assert hash_store.delete_key("b")


@pytest.mark.parametrize(("parties", "rank"), [(3, None), (2, 0)])
def test_all_who_name_it_agree(hash_store: HashStore, parties: int, rank: int | None) -> None:
    Barrier(hash_store, "b", 2)
    with pytest.raises(ValueError, match=r"'b'.*made for other parties"):
        Barrier(hash_store, "b", parties, rank)


def test_no_room(name: str) -> None:
    with ShmStore(name, capacity=lib.sst_min_capacity()) as store:
        with pytest.raises(StoreFullError):
            for i in range(100_000):
                Barrier(store, f"b{i}", 4096, 0)
        assert store.verify() == []
        Barrier(store, "b0", 4096, 1)


def test_a_pickled_one_is_the_same(name: str) -> None:
    with ShmStore(name) as store:
        barrier = Barrier(store, b"b\xff", 2, 1, 7)
        copy = pickle.loads(pickle.dumps(barrier))
        assert (copy.key, copy.parties, copy.rank, copy.timeout) == (
            barrier.key,
            2,
            1,
            barrier.timeout,
        )
        barrier.abort()
        assert copy.broken
        copy._store.close()


def test_closed(hash_store: HashStore) -> None:
    own = hash_store.clone()
    barrier = Barrier(own, "b", 2, 0)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            barrier.wait()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    inside.parked(hash_store, "b")
    own.close()
    thread.join(FOREVER_S)
    assert [type(error) for error in caught] == [StoreClosedError]
    assert inside.waits(hash_store) == []
    with pytest.raises(BrokenBarrierError, match="rank 0 was interrupted"):  # the others are told
        Barrier(hash_store, "b", 2, 1).wait()
    for call in (barrier.wait, barrier.abort, barrier.reset, lambda: barrier.n_waiting, lambda: Barrier(own, "c", 2)):
        with pytest.raises(StoreClosedError):
            call()


def test_a_million_uses_leave_nothing(name: str, team: Team) -> None:
    """Between two processes, in the short way and, now and then, in parks."""
    uses = 1_000_000
    with ShmStore(name) as store:
        barrier = Barrier(store, "meet", 2, 0)
        child = team.start(pass_often, name, uses)
        child.wait_ready()
        before = used_bytes(store)
        child.say("go")
        for i in range(uses):
            barrier.wait()
            if i == 1000:
                after_some = used_bytes(store)
        child.result()
        assert barrier.epoch == uses
        assert before == after_some == used_bytes(store)
        assert store.num_keys() == 0
        assert store.verify() == []


def pass_often(me: Me, name: str, uses: int) -> None:
    with ShmStore(name, create=False) as store:
        barrier = Barrier(store, "meet", 2, 1)
        me.ready()
        for _ in range(uses):
            barrier.wait(FOREVER_S)


# -- who is missing ---------------------------------------------------------------------------------------------------


def test_a_timeout_tells_of_each_who_is_missing(name: str, team: Team) -> None:
    with ShmStore(name, rank=0, timeout=FOREVER_S) as store:
        barrier = Barrier(store, "meet", 5, 0)
        waits = team.start(meet, name, 1, 5, 0)
        works = team.start(meet, name, 2, 5, 0)
        for child in (waits, works):
            assert child.hear() == "attached"
        waits.say("wait")
        waits_on(store, waits.pid, "never")
        forked = team.start(attach_only, name, 3)
        assert forked.hear() == "attached"
        with pytest.raises(BarrierTimeoutError) as caught:
            barrier.wait(0.3)
        error = caught.value
        assert isinstance(error, BrokenBarrierError)
        assert error.missing_ranks == (1, 2, 3, 4)
        assert (error.key, error.epoch, error.arrived, error.world_size, error.timeout) == ("meet", 0, 1, 5, 0.3)
        text = str(error)
        assert f"rank 1 (pid {waits.pid}, alive, waiting on 'never' for " in text
        assert f"rank 2 (pid {works.pid}, alive" in text
        assert f"rank 3 (pid {forked.pid}, alive" in text
        assert "rank 4 (never attached)" in text
        with pytest.raises(BrokenBarrierError, match=r"rank 0 timed out.*missing rank 1, rank 2, rank 3 and rank 4"):
            barrier.wait()
        for child in (waits, works, forked):
            child.kill()


def attach_only(me: Me, name: str, rank: int) -> None:
    store = ShmStore(name, rank=rank)
    me.say("attached")
    me.hear()
    store.close()


# -- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["futex", "semaphore"])
@pytest.mark.parametrize("doing", ["works", "waits", "died before"])
def test_a_death_breaks_it(name: str, team: Team, engine: str, doing: str) -> None:
    with ShmStore(name, rank=0, sync=engine, timeout=FOREVER_S) as store:
        victim = team.start(meet, name, 1, 2, 1 if doing != "died before" else 0)
        assert victim.hear() == "attached"
        barrier = Barrier(store, "meet", 2, 0)
        last = None
        if doing != "died before":
            barrier.wait()
        if doing == "works":
            waits_on(store, victim.pid, None)  # it has passed, too
        if doing == "waits":
            victim.say("wait")
            waits_on(store, victim.pid, "never")
            last = "never"
        caught: list[PeerDiedError] = []
        thread = threading.Thread(target=lambda: caught.append(raised(barrier.wait)))
        if doing == "died before":
            victim.kill()
            thread.start()
        else:
            thread.start()
            inside.parked(store, "meet")
            victim.kill()
        thread.join(FOREVER_S)
        (error,) = caught
        assert isinstance(error, PeerDiedError)
        assert isinstance(error, BrokenBarrierError)
        assert (error.rank, error.pid, error.host, error.waiting_on) == (1, victim.pid, os.uname().nodename, last)
        assert (error.key, error.epoch) == ("meet", barrier.epoch)
        assert f"rank 1 (pid {victim.pid} on " in str(error)
        with pytest.raises(PeerDiedError, match=r"rank 1 \(pid "):  # who comes later learns the same
            barrier.wait()
        heir = team.start(meet, name, 1, 2, 0)
        assert heir.hear() == "attached"
        barrier.reset()
        heir.say("meet")
        assert barrier.wait() in (0, 1)
        heir.say("leave")
        assert heir.hear() == "left"
        heir.say("end")


def raised(call: Callable[[], Any]) -> Any:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it came through")


def test_a_rank_of_the_job_that_never_came_here(name: str, team: Team) -> None:
    """The barrier is of all ranks, so a rank's death is news, wherever it was."""
    with ShmStore(name, rank=0, world_size=2, timeout=FOREVER_S) as store:
        victim = team.start(attach_only, name, 1)
        assert victim.hear() == "attached"
        victim.kill()
        with pytest.raises(PeerDiedError) as caught:
            Barrier(store, "meet", 2, 0).wait()
        assert (caught.value.rank, caught.value.pid) == (1, victim.pid)


def test_others_deaths_are_not_ours(name: str, team: Team) -> None:
    """A barrier of a part of the job, whose ranks are numbered anew: store rank 1 is none of its parties."""
    with ShmStore(name, rank=0, world_size=3, timeout=FOREVER_S) as store:
        barrier = Barrier(store, "meet", 2, 0)
        stranger = team.start(attach_only, name, 1)
        assert stranger.hear() == "attached"
        stranger.kill()
        party = team.start(meet, name, 1, 2, 1, 2)
        assert party.hear() == "attached"
        with pytest.raises(BarrierTimeoutError):
            Barrier(store, "half empty", 2, 0).wait(0.4)  # long enough for a look at who died
        barrier.wait()
        party.kill()
        with pytest.raises(PeerDiedError) as caught:
            barrier.wait()
        assert (caught.value.rank, caught.value.pid) == (1, party.pid)


def test_who_left_is_not_dead(name: str, team: Team) -> None:
    with ShmStore(name, rank=0, timeout=FOREVER_S) as store:
        child = team.start(meet, name, 1, 2, 1)
        assert child.hear() == "attached"
        barrier = Barrier(store, "meet", 2, 0)
        barrier.wait()
        child.say("leave")
        assert child.hear() == "left"
        with pytest.raises(BrokenBarrierError, match="rank 1 left the store") as caught:
            barrier.wait()
        assert not isinstance(caught.value, PeerDiedError)
        child.say("end")


@pytest.mark.parametrize("how", ["_exit", "multiprocessing"])
def test_a_forked_childs_exit_is_no_death(name: str, how: str) -> None:
    """It stands in for its parent for an epoch, and ends; the rank is its parent's, and lives."""
    with ShmStore(name, rank=0, timeout=FOREVER_S) as store:
        barrier, other = Barrier(store, "meet", 2, 0), Barrier(store, "meet", 2, 1)

        def stand_in() -> None:
            Barrier(store, "opened only", 2, 0)
            barrier.wait()

        thread = threading.Thread(target=other.wait)
        if how == "_exit":
            pid = os.fork()
            if pid == 0:
                try:
                    stand_in()
                finally:
                    os._exit(0)
            thread.start()
            assert os.waitpid(pid, 0)[1] == 0
        else:
            child = multiprocessing.get_context("fork").Process(target=stand_in)
            child.start()
            thread.start()
            child.join()
            assert child.exitcode == 0
        thread.join(FOREVER_S)
        assert barrier.epoch == 1
        with pytest.raises(BarrierTimeoutError, match=rf"rank 0 \(pid {os.getpid()}, alive"):
            other.wait(0.4)  # long enough for a look at who died
        with pytest.raises(BarrierTimeoutError):
            Barrier(store, "opened only", 2, 1).wait(0.4)


def test_who_opens_it_for_a_child_may_leave(name: str, team: Team) -> None:
    """Its leaving is not the child's, which has not come yet."""
    with ShmStore(name, rank=0, timeout=FOREVER_S) as store:
        parent = team.start(open_for_another, name)
        assert parent.hear() == "left"
        with pytest.raises(BarrierTimeoutError, match=r"rank 1 \(never"):
            Barrier(store, "meet", 2, 0).wait(0.4)
        parent.say("end")


def open_for_another(me: Me, name: str) -> None:
    with ShmStore(name, rank=5) as store:
        Barrier(store, "meet", 2, 1)
    me.say("left")
    me.hear()


def test_two_die_at_once(name: str, team: Team) -> None:
    with ShmStore(name, rank=0, timeout=FOREVER_S) as store:
        barrier = Barrier(store, "meet", 4, 0)
        victims = [team.start(meet, name, rank, 4, 1) for rank in (1, 2, 3)]
        for victim in victims:
            assert victim.hear() == "attached"
        barrier.wait()
        pids = {rank: victim.pid for rank, victim in enumerate(victims, 1)}
        for victim in victims[1:]:
            victim.signal(signal.SIGKILL)
        for victim in victims[1:]:
            victim.wait()
        with pytest.raises(PeerDiedError) as caught:
            barrier.wait()
        assert caught.value.rank in (2, 3)
        assert caught.value.pid == pids[caught.value.rank]
        victims[0].kill()


def test_a_party_that_uses_a_clone(name: str, team: Team) -> None:
    """A clone has no rank; its party is known by its process all the same."""
    with ShmStore(name, rank=0, timeout=FOREVER_S) as store:
        barrier = Barrier(store, "meet", 2, 0)
        child = team.start(meet_by_a_clone, name)
        barrier.wait()
        assert child.hear() == "passed"
        with pytest.raises(BarrierTimeoutError, match=rf"rank 1 \(pid {child.pid}, alive"):
            barrier.wait(0.3)
        barrier.reset()
        child.say("wait")
        inside.parked(store, "never")
        child.kill()
        with pytest.raises(PeerDiedError) as caught:
            barrier.wait()
        error = caught.value
        assert (error.rank, error.pid, error.host) == (1, child.pid, os.uname().nodename)


def meet_by_a_clone(me: Me, name: str) -> None:
    with ShmStore(name, rank=1, timeout=FOREVER_S) as store, store.clone() as clone:
        Barrier(clone, "meet", 2, 1).wait()
        me.say("passed")
        me.hear()
        clone.get("never")


def test_without_ranks_a_watching_store_tells(name: str, team: Team) -> None:
    with ShmStore(name, rank=0, watch_peers=True, timeout=FOREVER_S) as store:
        victim = team.start(attach_only, name, 1)
        assert victim.hear() == "attached"
        barrier = Barrier(store, "meet", 3)
        caught: list[Any] = []
        thread = threading.Thread(target=lambda: caught.append(raised(barrier.wait)))
        thread.start()
        inside.parked(store, "meet")
        victim.kill()
        thread.join(FOREVER_S)
        assert isinstance(caught[0], PeerDiedError)
        assert isinstance(caught[0], BrokenBarrierError)
        assert (caught[0].rank, caught[0].pid) == (1, victim.pid)
        assert (caught[0].key, caught[0].epoch) == ("meet", 0)
        assert inside.waits(store) == []
        with pytest.raises(PeerDiedError):
            barrier.wait()


def test_without_ranks_a_death_is_not_known(name: str, team: Team) -> None:
    with ShmStore(name, rank=0, timeout=FOREVER_S) as store:
        victim = team.start(attach_only, name, 1)
        assert victim.hear() == "attached"
        victim.kill()
        with pytest.raises(BarrierTimeoutError, match="1 of 2 arrived; missing 1, not known by name") as caught:
            Barrier(store, "meet", 2).wait(0.4)
        assert caught.value.missing_ranks == ()


def test_a_watching_party_that_was_passed_after_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last party arrives between this one's look at the ranks and its break: the epoch has passed, for both."""
    with ShmStore(name, rank=0, watch_peers=True, timeout=FOREVER_S) as store, store.clone() as clone:
        barrier, other = Barrier(store, "meet", 2), Barrier(clone, "meet", 2)

        def a_death(_: bytes) -> None:
            other.wait()
            raise PeerDiedError("rank 7 died", rank=7)

        monkeypatch.setattr(store, "_watch_peers", a_death)
        assert barrier.wait() == 0
        assert not barrier.broken


# -- texts of a timeout that others have moved on from ----------------------------------------------------------------


@pytest.mark.parametrize("ranked", [True, False])
def test_a_timeout_that_others_reset_at_once(
    hash_store: HashStore, monkeypatch: pytest.MonkeyPatch, ranked: bool
) -> None:
    barrier, other = (Barrier(hash_store, "b", 3, rank if ranked else None) for rank in (0, 1))
    look = barrier._who_came  # type: ignore[attr-defined]

    def late(epoch: int) -> Any:
        other.reset()
        thread.start()
        inside.parked(hash_store, "b")
        return look(epoch)

    thread = threading.Thread(target=lambda: raised(other.wait))
    monkeypatch.setattr(barrier, "_who_came", late)
    with pytest.raises(BarrierTimeoutError) as caught:
        barrier.wait(0.01)
    text = "not known any more" if ranked else "as the parties gave no ranks"
    assert text in str(caught.value)
    assert caught.value.missing_ranks == ()
    other.abort()
    thread.join()


# -- resets of who was told -------------------------------------------------------------------------------------------


def test_a_reset_for_another_thread_is_for_its_last_break_only(hash_store: HashStore) -> None:
    barrier = Barrier(hash_store, "b", 1)
    thread = threading.Thread(target=lambda: raised(barrier.wait))
    barrier.abort()
    barrier._told.clear()
    thread.start()
    thread.join()  # told of epoch 0, and ended
    barrier.reset()
    assert barrier.epoch == 1
    thread = threading.Thread(target=lambda: (barrier.abort(), raised(barrier.wait)))
    thread.start()
    thread.join()
    Barrier(hash_store, "b", 1).reset()  # by somebody else
    for _ in range(3):
        barrier.wait()
    assert barrier.epoch == 5
    barrier.reset()  # nobody waits to hear of what was told long ago
    assert barrier.epoch == 6


def test_an_interrupt_after_the_pass_leaves_nothing_to_reset(
    hash_store: HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier = Barrier(hash_store, "b", 1, 0)

    def interrupted(*args: Any) -> Any:
        assert _native.door_barrier(*args) == 0
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_barrier_segment, "door_barrier", interrupted)
        with pytest.raises(KeyboardInterrupt):
            barrier.wait()
    assert (barrier.epoch, barrier.broken) == (1, False)
    barrier.reset()
    assert barrier.epoch == 2


# -- signals ----------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def test_an_interrupt_breaks_it_for_the_others(name: str, team: Team) -> None:
    with ShmStore(name, timeout=FOREVER_S) as store:
        barrier = Barrier(store, "meet", 2, 0)
        child = team.start(interrupted, name)
        assert child.hear() == "waiting"
        inside.parked(store, "meet")
        child.signal(signal.SIGUSR2)
        assert child.hear() == "Stop"
        with pytest.raises(BrokenBarrierError, match="rank 1 was interrupted while it waited"):
            barrier.wait()
        child.say("end")
        child.result()


def interrupted(me: Me, name: str) -> None:
    def stop(*_: object) -> None:
        raise Stop

    signal.signal(signal.SIGUSR2, stop)
    with ShmStore(name, timeout=FOREVER_S) as store:
        barrier = Barrier(store, "meet", 2, 1)
        me.say("waiting")
        me.say(type(raised(barrier.wait)).__name__)
        me.hear()


def test_a_handler_that_returns_ends_nothing(name: str, team: Team) -> None:
    with ShmStore(name, timeout=FOREVER_S) as store:
        barrier = Barrier(store, "meet", 2, 0)
        child = team.start(handles, name)
        assert child.hear() == "waiting"
        inside.parked(store, "meet")
        for n in range(1, 4):
            child.signal(signal.SIGUSR2)
            assert child.hear() == n
        assert barrier.n_waiting == 1
        assert barrier.wait() == 1
        assert child.result() == 0


def handles(me: Me, name: str) -> int:
    """Its handler uses the store, and another barrier."""
    with ShmStore(name, timeout=FOREVER_S) as store:
        barrier, alone = Barrier(store, "meet", 2, 1), Barrier(store, "alone", 1)

        def handler(*_: object) -> None:
            alone.wait()
            me.say(store.add("signals", 1))

        signal.signal(signal.SIGUSR2, handler)
        me.say("waiting")
        return barrier.wait()


def test_exported() -> None:
    assert shmstore.Barrier is Barrier
