"""What one process of a session's team does: it opens the rivals' stores and works on them as it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.records import Case, Session
from bench.rivals.base import METHODS, Rival, StoreRival
from bench.scenarios.base import Client, Job, Scenario
from bench.team import Gate

__all__ = ["Member", "Message", "Which", "quietly"]

MARK = "bench/mark"
"""A key that rank 0 sets and all must see."""

Which = tuple[int, str]
"""A store of a session: the rival's index and `Case.store`."""


@dataclass(frozen=True, slots=True)
class Message:
    """What the members are told.

    Attributes:
        action: "mark" sets a key, in rank 0 only · "see" tells whether it is there · "prepare" makes ready for a case ·
            "work" is a sample · "end" closes all stores. Only "work" has a gate.
        rival, case: indices into the session's.
        address: the store's.
        count, fresh: of the sample.
    """

    action: Literal["mark", "see", "prepare", "work", "end"]
    rival: int = 0
    case: int = 0
    address: Any = None
    count: int = 0
    fresh: str = ""


class Member:
    """The handler of a team's messages in the process of one rank."""

    def __init__(
        self,
        session: Session,
        scenario: Scenario,
        rivals: Sequence[Rival],
        inherited: Mapping[Which, Any],
        rank: int,
    ) -> None:
        self._session = session
        self._scenario = scenario
        self._rivals = rivals
        self._inherited = inherited
        self._rank = rank
        self._clients: dict[Which, Client] = {}

    def handle(self, message: Message, gate: Gate) -> object:
        """Does what the message says; what it returns is the answer, what it raises the failure."""
        if message.action == "end":
            for client in self._clients.values():
                quietly(client.end)
            return None
        case = self._session.cases[message.case]
        client = self._client(message, case)
        if message.action == "work":
            return self._scenario.work(
                client, Job(case, message.count, message.fresh, self._rank, self._session.processes, gate)
            )
        if message.action == "mark":
            if self._rank == 0:
                client.store.set(MARK, b"here")
            return None
        if message.action == "see":
            return bool(client.store.check([MARK])) if hasattr(client.store, "check") else True
        if self._scenario.opens:
            _must_have(client.store, case.needs)
        self._scenario.prepare(case, client, self._rank, self._session.processes)
        return None

    def _client(self, message: Message, case: Case) -> Client:
        which = (message.rival, case.store)
        if which not in self._clients:
            rival = self._rivals[message.rival]
            assert isinstance(rival, StoreRival)
            self._clients[which] = Client(
                rival, message.address, self._inherited[which], self._rank, self._session.processes
            )
        return self._clients[which]


def quietly(call: Callable[[], object]) -> None:
    """Calls it; what goes wrong at the end of a session changes no sample of it."""
    try:
        call()
    except Exception:  # noqa: S110 -- see above
        pass


def _must_have(store: object, needs: Sequence[str]) -> None:
    for word in needs:
        for method in METHODS.get(word, ()):
            if not hasattr(store, method):
                raise NotImplementedError(f"has no {method}")
