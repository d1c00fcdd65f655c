"""The meeting of all ranks at a segment, with a rank killed before each of its verbs."""

from __future__ import annotations

import importlib
import json
from itertools import count
from typing import Any

import inside
import pytest
from harness import Child, Me, Team
from kinds import torchs

from shmstore import ShmStore, StoreError
from shmstore.testing.contract import Later

torchs("torch.distributed", "shm:// is a rendezvous of torch's")
meeting: Any = importlib.import_module("shmstore.torch._meeting")

MINUTE = 60_000_000_000
VERBS = ("compare_set", "set", "delete_key", "wait")


class Stepped:
    """A store that says each verb to the test, and waits for its word, before it does it."""

    def __init__(self, me: Me, store: ShmStore) -> None:
        self._me, self._store = me, store

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)
        if name in VERBS:
            self._me.say(name)
            self._me.hear()
        return verb


def _meets(me: Me, name: str, rank: int, stepped: bool) -> None:
    """Meets, and says the round; the next one when it is told to."""
    with ShmStore(name, rank=rank) as store:
        at = Stepped(me, store) if stepped else store
        me.say(meeting.meet(at, rank, 2, MINUTE))
        while me.hear() == "again":
            me.say(meeting.meet(store, rank, 2, MINUTE))


def _end(*children: Child) -> None:
    for child in children:
        child.say("end")
        child.result()


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_killed_before_each_verb(name: str, team: Team, first: bool) -> None:
    """The other meets the victim, if the round had been formed, or else the successor; the next round is whole."""

    def begin(rank: int, stepped: bool = False) -> Child:
        return team.start(_meets, keys.name, rank, stepped, how="fork")

    for steps in count(1):
        with ShmStore(f"{name}-{steps}") as keys:
            other = None if first else begin(1)
            if other is not None:
                inside.parked(keys, "shm/2/go/0")
            victim = begin(0, stepped=True)
            verbs: list[str] = []
            while len(verbs) < steps and type(heard := victim.hear()) is str:
                verbs.append(heard)
                if len(verbs) < steps:
                    victim.say("go on")
                    if heard == "wait" and other is None:
                        inside.parked(keys, "shm/2/go/0")
                        other = begin(1)
            if len(verbs) < steps:
                assert other is not None
                assert (heard, other.hear()) == (0, 0)
                _end(victim, other)
                break
            victim.kill()
            formed = keys.check(["shm/2/meeting"]) and json.loads(keys.get("shm/2/meeting"))[2] != []
            other = other or begin(1)
            if formed:
                assert other.hear() == 0
                other.say("again")
            successor = begin(0)
            assert (other.hear(), successor.hear()) == (int(formed), int(formed))
            _end(other, successor)
    assert verbs == (["compare_set", "wait", "compare_set"] if first else [*["compare_set"] * 2, "set", "delete_key"])


@pytest.mark.parametrize(
    "what",
    [
        "no",
        "[1, 2, 3]",
        '[0, {"0": 1}, []]',
        "[0, {}, [[]]]",
        "[0, {}]",
        "{}",
        "7",
        "[-5, {}, []]",
        '[0, {}, "abc"]',
        "[" * 100_000,
    ],
)
def test_what_others_put_under_its_key(name: str, what: str) -> None:
    with ShmStore(name, rank=0) as store:
        store.set("shm/1/meeting", what)
        with pytest.raises(StoreError, match="shm/1/meeting is in use for something else"):
            meeting.meet(store, 0, 1, MINUTE)


def test_who_gives_up_as_the_round_is_formed_is_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other comes between its last look and its giving up."""
    with ShmStore(name, rank=0) as store, ShmStore(name, rank=1) as other:
        look = meeting._parsed
        met: list[int] = []

        def slow(*args: Any) -> Any:
            state = look(*args)
            if not met and args[0] is store and state.come:
                met.append(meeting.meet(other, 1, 2, MINUTE))
            return state

        monkeypatch.setattr(meeting, "_parsed", slow)
        assert meeting.meet(store, 0, 2, 0) == 0
        assert met == [0]


def test_a_call_that_was_replaced_says_so(name: str) -> None:
    with ShmStore(name, rank=0) as store:
        first = Later(meeting.meet, store, 0, 2, MINUTE)
        inside.until(lambda: store.check(["shm/2/meeting"]))
        second = Later(meeting.meet, store.clone(), 0, 2, MINUTE)
        with ShmStore(name, rank=1) as other:
            inside.until(lambda: len(inside.waits(store)) == 2)
            assert meeting.meet(other, 1, 2, MINUTE) == 0
            assert second.result() == 0
            with pytest.raises(StoreError, match="rank 0 has begun another group of 2 meanwhile"):
                first.result()


def test_a_go_of_a_stranger_is_an_error(name: str) -> None:
    with ShmStore(name, rank=0) as store:
        store.set("shm/2/go/0", "x")
        with pytest.raises(StoreError, match="shm/2/go/0 is in use for something else"):
            meeting.meet(store, 0, 2, MINUTE)
