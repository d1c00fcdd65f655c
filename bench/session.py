"""One session, in a process of its own: `launch.py` starts it and gets its rows.

A fresh process has no threads yet, so it can fork the team; it hosts the rivals' servers where they are threads; and
when a rival hangs or dies, it can be thrown away. The order is: import, make what is inherited, fork, host, prepare,
play, close.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.hogs import hogs
from bench.host import cpus_for, pin_to
from bench.member import Member, Message, Which, quietly
from bench.records import Case, Row, Sample, Session
from bench.rivals.base import Place, ProgramRival, Rival, Run, StoreRival
from bench.rounds import Turn, play
from bench.scenarios import SCENARIOS
from bench.team import MemberError, Team, TeamLostError

__all__ = ["LostError", "Order", "conduct", "main"]


@dataclass(frozen=True, slots=True)
class Order:
    """What a session's process is told.

    Attributes:
        session: what to run.
        rivals: who takes part; those that are missing on this machine are left out already.
        cpus: the cores that may be used.
        token: letters, digits and dashes that no other session has.
        directory: an empty directory for the rivals' files.
    """

    session: Session
    rivals: tuple[Rival, ...]
    cpus: tuple[int, ...]
    token: str
    directory: Path


class LostError(Exception):
    """A rival took the team with it."""

    def __init__(self, rival: str, why: str) -> None:
        super().__init__(f"{rival}: {why}")
        self.rival = rival
        self.why = why


class _CannotError(Exception):
    """A rival has no part in a case; the text says why."""


def conduct(order: Order) -> list[Row]:
    """Runs the session; one row for each case of each rival, in the order of cases, then rivals.

    Raises:
        LostError: the session must be run again without that rival.
    """
    session, scenario = order.session, SCENARIOS[order.session.scenario]
    stores = _Stores(order)
    stores.inherit()
    _trim()
    pins = [cpus_for(session.pin, order.cpus, rank) for rank in range(session.processes)]

    def member(rank: int) -> Callable[[Any, Any], object]:
        return Member(session, scenario, order.rivals, stores.inherited, rank).handle

    with Team(session.processes, pins, member) as team, ExitStack() as hosts:
        pin_to(cpus_for(session.pin, order.cpus, None))
        stores.host(hosts)
        runner = _Runner(order, stores, team, hosts)
        turns, ready = [], []
        for j, case in enumerate(session.cases):  # neighbours in a round: all rivals at one case
            for i, rival in enumerate(order.rivals):
                turn = Turn((rival, case), runner.turn(i, j), first=rival.first, most=case.most, fixed=case.fixed)
                turns.append(turn)
                try:
                    runner.prepare(i, j)
                    ready.append(turn)
                except (_CannotError, MemberError) as error:
                    turn.why = _reason(error)
        with hogs(order.cpus) if session.hogs else nullcontext():
            play(ready, session.rounds, session.target_s, _reason)
        quietly(lambda: team.ask(Message("end")))  # before their servers go
    return [_row(session, turn) for turn in turns]


class _Stores:
    """The stores of a session: one for each rival and each `Case.store`, or why it is not there."""

    def __init__(self, order: Order) -> None:
        self.inherited: dict[Which, Any] = {}
        self.addresses: dict[Which, Any] = {}
        self.why: dict[Which, str] = {}
        self._places: dict[Which, tuple[StoreRival, Place]] = {}
        processes = order.session.processes
        for i, rival in enumerate(order.rivals):
            for case in order.session.cases:
                if isinstance(rival, StoreRival) and not rival.cannot(case, processes):
                    token = "-".join(filter(None, [order.token, str(i), case.store]))
                    place = Place(token, order.directory / token, processes, case.capacity)
                    self._places.setdefault((i, case.store), (rival, place))

    def inherit(self) -> None:
        """Before the fork: imports, and what the members inherit."""
        for which, (rival, place) in self._places.items():
            with self._noting(which):
                for module in rival.modules:
                    import_module(module)
                place.directory.mkdir()
                self.inherited[which] = rival.inherit(place)

    def host(self, stack: ExitStack) -> None:
        """After the fork: starts servers, which end with the stack."""
        for which, (rival, place) in self._places.items():
            if which not in self.why:
                with self._noting(which):
                    self.addresses[which] = stack.enter_context(rival.host(place, self.inherited[which]))

    @contextmanager
    def _noting(self, which: Which) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.why[which] = _reason(error)


class _Runner:
    """Has the team, or a program, do one rival's part."""

    def __init__(self, order: Order, stores: _Stores, team: Team, hosts: ExitStack) -> None:
        self._order = order
        self._session = order.session
        self._stores = stores
        self._team = team
        self._serials = itertools.count(1)
        self._hosts = hosts
        self._programs: dict[int, Run | str] = {}  # rival -> what takes its samples, or why it did not start
        self._shared: set[Which] = set()  # stores that all members are known to see

    def prepare(self, i: int, j: int) -> None:
        """Makes rival i ready for case j, or says why it cannot be."""
        rival, case = self._order.rivals[i], self._session.cases[j]
        which = (i, case.store)
        why = rival.cannot(case, self._session.processes) or self._stores.why.get(which)
        if why:
            raise _CannotError(why)
        if isinstance(rival, ProgramRival):
            self._start(i, rival)
            return
        address = self._stores.addresses[which]
        with _losing(rival):
            if self._session.processes > 1 and which not in self._shared and "set" not in rival.lacks:
                self._team.ask(Message("mark", i, j, address))
                if not all(self._team.ask(Message("see", i, j, address))):
                    self._stores.why[which] = "another process does not see its keys"
                    raise _CannotError(self._stores.why[which])
                self._shared.add(which)
            self._team.ask(Message("prepare", i, j, address))

    def _start(self, i: int, rival: ProgramRival) -> None:
        if i not in self._programs:
            order = self._order
            try:
                directory = order.directory / order.token
                directory.mkdir(exist_ok=True)
                started = rival.started(order.session, order.cpus, directory)
                self._programs[i] = self._hosts.enter_context(started)
            except Exception as error:
                self._programs[i] = _reason(error)
        found = self._programs[i]
        if isinstance(found, str):
            raise _CannotError(found)

    def turn(self, i: int, j: int) -> Callable[[int], Sample]:
        """What takes one sample of rival i at case j."""
        rival, case, session = self._order.rivals[i], self._session.cases[j], self._session
        if isinstance(rival, ProgramRival):

            def call(count: int) -> Sample:
                run = self._programs[i]
                assert not isinstance(run, str)
                return run(case, count)

            return call

        def run(count: int) -> Sample:
            with _losing(rival):
                timings = self._team.race(
                    Message("work", i, j, count=count, fresh=f"{self._order.token}/{next(self._serials)}")
                )
            return SCENARIOS[session.scenario].sample(count, timings)

        return run


def _trim() -> None:
    """Gives freed memory back, where the libc can: what a store takes later then shows as growth."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def _losing(rival: Rival) -> Iterator[None]:
    """Says whose turn it was when the team was lost."""
    try:
        yield
    except TeamLostError as error:
        raise LostError(rival.name, str(error)) from error


def _row(session: Session, turn: Turn[tuple[Rival, Case]]) -> Row:
    rival, case = turn.of
    return Row(
        scenario=session.scenario,
        measure=case.measure,
        params=dict(case.params),
        unit=case.unit,
        rival=rival.name,
        samples=tuple(turn.samples),
        at_s=tuple(turn.at_s),
        operations=turn.operations if turn.samples else 0,
        why=turn.why,
    )


def _reason(error: BaseException) -> str:
    """One line about what ended a turn; what ends the session is raised again."""
    if isinstance(error, LostError):
        raise error
    lines = str(error).strip().splitlines()
    kind = "" if isinstance(error, (_CannotError, MemberError)) else f"{type(error).__name__}: "
    return kind + (lines[0] if lines else "no word of why")


def main() -> None:
    """Reads an `Order` from the descriptor named on the command line and answers with rows, or with who is lost."""
    pipe = Connection(int(sys.argv[1]))
    try:
        pipe.send(("rows", conduct(pipe.recv())))
    except LostError as lost:
        pipe.send(("lost", (lost.rival, lost.why)))
        os._exit(1)  # members and servers may hang: whoever started this ends them all
