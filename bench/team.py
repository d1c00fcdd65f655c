"""Processes that do the same thing at the same moment.

The members are forked, from a process that has no threads yet, and talk over a pipe each. `race` starts them together:
each says that it is ready and blocks on one eventfd; when the last has said so, as many tokens as members are put into
it at once. Nobody sleeps and nobody polls, so that idle members take nothing from whoever is being timed.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bench.host import pin_to

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Gate", "MemberError", "Team", "TeamLostError"]

Gate = Callable[[], None]
"""What a member calls when it is ready; returns when all are."""


class MemberError(Exception):
    """A member's handler raised; the text is rank, type and message. The team goes on."""


class TeamLostError(Exception):
    """A member died, hangs, or failed while others wait for it: this team is of no use any more."""


class Team:
    """`size` processes that handle messages.

    Args:
        size: how many.
        cpus: the cores of each member.
        make: called in each member with its rank; returns what handles its messages: (message, gate) -> answer.
        patience_s: how long one message may take, in seconds.
        grace_s: how long the others may take once one has failed; then they are taken to wait for it.

    A handler calls the gate exactly once when the message came by `race`, and never when it came by `ask`.
    """

    def __init__(
        self,
        size: int,
        cpus: Sequence[set[int]],
        make: Callable[[int], Callable[[Any, Gate], Any]],
        patience_s: float = 600.0,
        grace_s: float = 10.0,
    ) -> None:
        self._patience_s = patience_s
        self._grace_s = grace_s
        self._tokens = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
        self._pipes: list[Connection] = []
        self._members: list[BaseProcess] = []
        context = multiprocessing.get_context("fork")
        gc.collect()
        gc.freeze()  # what is there now is shared with the members: a collection of theirs need not touch it
        for rank in range(size):
            mine, theirs = context.Pipe()
            member = context.Process(target=_live, args=(rank, theirs, self._tokens, cpus[rank], make), daemon=True)
            member.start()
            theirs.close()
            self._pipes.append(mine)
            self._members.append(member)

    def ask(self, message: Any) -> list[Any]:
        """Every member's answer, in rank order; they work at once, started one by one.

        Raises:
            MemberError: some failed, all have answered. TeamLostError: see there.
        """
        for pipe in self._pipes:
            pipe.send(message)
        return self._answers()

    def race(self, message: Any) -> list[Any]:
        """As `ask`, but all wait at the gate for the last and go together."""
        for pipe in self._pipes:
            pipe.send(message)
        try:
            self._answers()  # each says that it is ready
        except MemberError as error:
            if len(self._members) > 1:
                raise TeamLostError(f"{error}, before the start") from None
            raise
        os.eventfd_write(self._tokens, len(self._members))
        return self._answers()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            _send_end(pipe)
        for member in self._members:
            member.join(0 if error else self._grace_s)
            if member.is_alive():
                member.kill()
                member.join()
        for pipe in self._pipes:
            pipe.close()
        os.close(self._tokens)

    def _answers(self) -> list[Any]:
        end = time.monotonic() + self._patience_s
        answers: dict[int, Any] = {}
        failures: list[str] = []
        waiting: dict[Connection | int, int] = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        waiting |= {member.sentinel: rank for rank, member in enumerate(self._members)}
        while len(answers) + len(failures) < len(self._members):
            here = wait(list(waiting), max(0.0, end - time.monotonic()))
            if not here:
                late = sorted(set(waiting.values()))
                raise TeamLostError(
                    f"{failures[0]}, and rank {late[0]} waits for it"
                    if failures
                    else f"rank {late[0]}: no answer in {self._patience_s:g} s"
                )
            for rank in sorted({waiting[each] for each in here}):  # type: ignore[index]
                pipe = self._pipes[rank]
                try:
                    good, answer = pipe.recv()
                except (EOFError, OSError):
                    raise TeamLostError(f"rank {rank} died: {_death(self._members[rank])}") from None
                del waiting[pipe], waiting[self._members[rank].sentinel]
                if good:
                    answers[rank] = answer
                else:
                    failures.append(f"rank {rank}: {answer}")
                    end = min(end, time.monotonic() + self._grace_s)
        if failures:
            raise MemberError(failures[0])
        return [answers[rank] for rank in range(len(self._members))]


_END = "end of the team"


def _send_end(pipe: Connection) -> None:
    try:
        pipe.send(_END)
    except OSError:  # it is dead
        pass


def _live(
    rank: int, pipe: Connection, tokens: int, cpus: set[int], make: Callable[[int], Callable[[Any, Gate], Any]]
) -> None:
    """The life of a member: one answer for each message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started all this, and ends it all
    pin_to(cpus)
    gc.disable()  # a collection inside a timed loop would be noise of the harness

    def gate() -> None:
        pipe.send((True, None))
        os.eventfd_read(tokens)

    handle = make(rank)
    while (message := pipe.recv()) != _END:
        try:
            answer = (True, handle(message, gate))
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}" if str(error) else traceback.format_exc(limit=-1))
        pipe.send(answer)
        gc.collect()


def _death(member: BaseProcess) -> str:
    member.join()  # its end was seen
    code = member.exitcode
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
