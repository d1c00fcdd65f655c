"""What a scenario is: which cases stand side by side, what a process prepares and runs, and how that makes a sample.

`sessions` and `sample` run in the harness, `prepare` and `work` in each process of the team. A scenario has no state:
what `prepare` makes for `work` stays with the process's `Client`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.clock import clock_ns, span_s
from bench.records import Aim, Bound, Case, Contrast, Sample, Session, Timing
from bench.rivals.base import Meeting, StoreRival
from bench.team import Gate

__all__ = ["Client", "Effort", "Job", "Scenario", "clock_ns", "span_s"]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done: fewer and smaller cases when quick, `rounds` samples of about `target_s` seconds each."""

    quick: bool
    rounds: int
    target_s: float


@dataclass(frozen=True, slots=True)
class Job:
    """One sample's part for one process.

    Attributes:
        case: what to do.
        count: how often.
        fresh: a text that no other sample has, in this run or another: makes fresh keys.
        rank, world: which of how many processes this is.
        gate: to be called once, when all is ready and the timing may begin.
    """

    case: Case
    count: int
    fresh: str
    rank: int
    world: int
    gate: Gate


class Client:
    """A rival's store as one process has it.

    Attributes:
        address: what its host said.
        notes: what `prepare` leaves for `work`.
    """

    def __init__(self, rival: StoreRival, address: Any, inherited: Any, rank: int, world: int) -> None:
        self.address = address
        self.notes: dict[str, Any] = {}
        self._rival = rival
        self._inherited = inherited
        self._rank = rank
        self._world = world
        self._store: Any = None

    @property
    def store(self) -> Any:
        """This process's handle; opened at first use."""
        if self._store is None:
            self._store = self.open()
        return self._store

    def open(self) -> Any:
        """One more handle."""
        return self._rival.open(self.address, self._inherited, self._rank, self._world)

    def close(self, store: Any) -> None:
        """Closes a handle that `open` gave."""
        self._rival.close(store)

    def meeting(self, *, parks: bool) -> Meeting:
        """A barrier on this process's handle that serves again and again; see StoreRival."""
        return self._rival.meeting(self.store, self._rank, self._world, parks=parks)

    def local(self) -> Any:
        """The same keys without the wire."""
        return self._rival.local(self.address)

    def files(self) -> Sequence[Path]:
        """The store's files on tmpfs."""
        return self._rival.files(self.address)

    def end(self) -> None:
        """Closes this process's handle, if there is one."""
        if self._store is not None:
            store, self._store = self._store, None
            self._rival.close(store)


class Scenario(ABC):
    """Something worth timing.

    Attributes:
        name: what a person types.
        text: what is timed and how, in a sentence or two, for readers of its table.
        axis: the parameter that a plot runs along; "" for bars.
        beside: a parameter that tables and plots show beside the rival, as if each value were a rival; "" for none.
        opens: a process has the store open before the first sample.
        kind: of the rivals that take part.
        reference: whom ratios are to, unless the reader asks for another; "" for the first of all rivals.
    """

    name: ClassVar[str]
    text: ClassVar[str]
    axis: ClassVar[str] = ""
    beside: ClassVar[str] = ""
    opens: ClassVar[bool] = True
    kind: ClassVar[Literal["store", "wire", "group"]] = "store"
    reference: ClassVar[str] = ""

    @abstractmethod
    def sessions(self, effort: Effort) -> Sequence[Session]:
        """What is run, in order; each session by a new team of processes."""

    def contrasts(self, effort: Effort) -> Sequence[Contrast]:
        """Pairs of cases of one session whose ratio is to be shown."""
        del effort
        return ()

    def aims(self, effort: Effort) -> Sequence[Aim]:
        """What one row was meant to reach against another of its session."""
        del effort
        return ()

    def bounds(self, effort: Effort) -> Sequence[Bound]:
        """What no sample of a row was meant to be more than."""
        del effort
        return ()

    def prepare(self, case: Case, client: Client, rank: int, world: int) -> None:
        """Makes the store ready for `work`, in each process, all of which are through before any works."""
        del case, client, rank, world

    @abstractmethod
    def work(self, client: Client, job: Job) -> Timing:
        """Does the case's operation job.count times and says when."""

    def sample(self, count: int, timings: Sequence[Timing]) -> Sample:
        """What the processes' timings of one round come to.

        From the first that began to the last that was through, by all operations of all processes: for one process the
        time of an operation, for several the inverse of what they get done together.
        """
        took_s = span_s(timings)
        return Sample(took_s / (count * len(timings)), took_s)
