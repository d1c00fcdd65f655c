"""What a barrier says of those who did not come, and of what broke it: records of both, and their words for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["timeout", "abort", "interrupt", "overtaken", "left", "died"]

NAMED_MAX: Final = 16
"""Missing ranks that a text spells out; the error's attribute has them all."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A rank that did not come.

    Attributes:
        rank: which.
        state: what is known of it, for people: "never attached", "alive, waiting on 'x' for 3.2 s", "alive, not
            waiting", "left", "dead", "did not arrive"; maybe with its pid in front.
    """

    rank: int
    state: str


@dataclass(frozen=True, slots=True)
class Break:
    """Why an epoch is broken. Whoever broke it leaves this for the others.

    Attributes:
        kind: what happened.
        rank: who timed out, aborted, was interrupted, left or died; None where that is not known.
        pid: its process, of a death; None where unknown.
        host: its host, of a death; None where unknown.
        arrived: how many had arrived at a timeout, or None.
        missing: which ranks were missing at a timeout, ascending.
        elapsed: how long the one that timed out had waited, in seconds, or None.
        waiting_on: what the dead waited for when it died, or None.
        note: more for people; of an interrupt, what interrupted.
        node: the node of `rank`, of a barrier over several; None elsewhere.
    """

    kind: Kind
    rank: int | None = None
    pid: int | None = None
    host: str | None = None
    arrived: int | None = None
    missing: tuple[int, ...] = ()
    elapsed: float | None = None
    waiting_on: str | None = None
    note: str = ""
    node: int | None = None

    def text(self, parties: int) -> str:
        """What happened, for the errors of the others."""
        who = "a party without a rank" if self.rank is None else f"rank {self.rank}"
        notes = [
            *([] if self.node is None or self.kind == "died" else [f"node {self.node}"]),
            *filter(None, [self.note]),
        ]
        more = f" ({', '.join(notes)})" if notes else ""
        if self.kind == "timeout":
            after = "" if self.elapsed is None else f" after {span_text(self.elapsed)}"
            count = "" if self.arrived is None else f", {self.arrived} of {parties} had arrived"
            missing = f", missing {named([f'rank {rank}' for rank in self.missing])}" if self.missing else ""
            return f"{who} timed out{after}{count}{missing}{more}"
        if self.kind == "abort":
            return f"{who} called abort(){more}"
        if self.kind == "interrupt":
            return f"{who} was interrupted while it waited{more}"
        if self.kind == "overtaken":
            why = "its store failed, or two threads use one object"
            return f"{who} began its next call when this one of it had not ended ({why})"
        if self.kind == "left":
            return f"{who} left the store{more}"
        last = "" if self.waiting_on is None else f", waiting on {self.waiting_on!r}"
        return f"{who}{process(self.pid, self.host, self.node)} died{last}{more}"


def peer_text(peer: Any) -> str:
    """What a record of `.peers()` says of a rank that did not come; None is no record."""
    if peer is None:
        return "never attached"
    who = f"pid {peer.pid}, " if peer.pid is not None else ""
    if peer.state == "left":
        return f"{who}left"
    if peer.state == "dead":
        return f"{who}dead"
    if peer.waiting_on is None:
        return f"{who}alive, not waiting"
    waited = "" if peer.waiting_s is None else f" for {span_text(peer.waiting_s)}"
    return f"{who}alive, waiting on {peer.waiting_on!r}{waited}"


def span_text(elapsed: float) -> str:
    """Seconds for people."""
    return f"{elapsed:.1f} s" if elapsed >= 1 else f"{elapsed:.3f} s"


def process(pid: int | None, host: str | None, node: int | None = None) -> str:
    """` (node 1, pid 4711 on host)`, or what is known of it."""
    known = [] if node is None else [f"node {node}"]
    if pid is not None:
        known.append(f"pid {pid}" if host is None else f"pid {pid} on {host}")
    return f" ({', '.join(known)})" if known else ""


def named(names: Sequence[str], more: int = 0) -> str:
    """`a`, `a and b`, `a, b and 3 more`."""
    names = list(names)
    if len(names) > NAMED_MAX:
        names, more = names[:NAMED_MAX], more + len(names) - NAMED_MAX
    if more:
        names.append(f"{more} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


PARTS: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(("rank", "pid", "arrived", "node"), (int, type(None))),
    **dict.fromkeys(("kind", "note"), (str,)),
    **dict.fromkeys(("host", "waiting_on"), (str, type(None))),
    "elapsed": (int, float, type(None)),
    "missing": (tuple,),
}


def break_of(record: dict[str, Any] | None) -> Break | None:
    """The Break of a record that `asdict` made, as JSON brings it back. ValueError, TypeError, KeyError: another."""
    if record is None:
        return None
    made = Break(**{**record, "missing": tuple(record["missing"])})
    if not all(type(part) in PARTS[name] for name, part in asdict(made).items()) or made.kind not in get_args(Kind):
        raise ValueError("no cause of a break")
    if not all(type(rank) is int for rank in made.missing):
        raise ValueError("no ranks")
    return made
