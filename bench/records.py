"""What is asked for and what came of it, as plain records; a result is written to and read from JSON here.

A scenario makes `Session`s of `Case`s. A session is one team of processes in which all cases of all rivals take turns,
so any two of its rows may be set against each other round by round. A `Row` keeps every sample in the order of the
rounds: medians, spreads and ratios are always derived (stats.py), never stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Aim", "Bound", "Case", "Contrast", "Pin", "Result", "Row", "Sample", "Session", "Timing", "read", "write"]

FORMAT = 1
"""The meaning of the JSON; another number is another meaning, and is refused."""

Pin = Literal["one", "spread", "free"]
"""Where a session's processes run: "one", all of it on one core, servers too · "spread", process i on core i modulo
their number, servers anywhere · "free", anywhere."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time.

    Attributes:
        measure: its name ("get", "elastic barrier, skewed"); a column of the table.
        params: what varies between the cases and sessions of a scenario, such as processes or value bytes.
        needs: what a rival must be able to do (rivals/base.py lists the words); one that cannot gets a row with why.
        store: cases of one session that name different stores get a store each.
        capacity: bytes a store should be made for, 0 for its own default.
        most: the most operations of a round; where each leaves something behind, this bounds it.
        fixed: exactly so many operations, once and without warm-up, instead of as many as fill the round.
        unit: of the samples, "s" (seconds an operation), "B" (bytes) or "n" (a count).
    """

    measure: str
    params: Mapping[str, int | str]
    needs: tuple[str, ...]
    store: str = ""
    capacity: int = 0
    most: int = 1_000_000
    fixed: int = 0
    unit: Literal["s", "B", "n"] = "s"


@dataclass(frozen=True, slots=True)
class Session:
    """Cases that are run side by side, by one team of processes.

    Attributes:
        scenario: the scenario's name.
        processes: how many processes work; the rivals' servers come on top.
        cases: what each rival does in each round, in this order.
        rounds: samples of each case of each rival.
        target_s: how long one rival should work for one sample, in seconds.
        pin: where they run.
        hogs: beside each core's processes runs one that only computes, while the samples are taken.
        alone: each rival gets a session of its own, a fresh one each round: for what cannot be told apart otherwise.
    """

    scenario: str
    processes: int
    cases: tuple[Case, ...]
    rounds: int
    target_s: float
    pin: Pin = "spread"
    hogs: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """What one process saw of one round. Times in ns of CLOCK_MONOTONIC, which all processes of a host share.

    Attributes:
        enter: when it began, once for the round or once for each operation.
        leave: when it was through, of the same length.
        value: where the process itself knows the sample (bytes, a median of its calls in ns), that.
    """

    enter: tuple[int, ...]
    leave: tuple[int, ...]
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one rival: the value, in the case's unit for one operation, and how long the round took."""

    value: float
    took_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """All samples of one case of one rival, or why there are none.

    Attributes:
        scenario, measure, params, unit: the case.
        rival: whose it is.
        samples: one a round, in the order of the rounds; seconds an operation, bytes or a count, as `unit` says.
        at_s: when each sample was taken, in seconds since its session began: shows that rivals took turns.
        operations: how many operations made one sample.
        why: empty, or why there is no sample: what the rival cannot do, or how it failed.
    """

    scenario: str
    measure: str
    params: Mapping[str, int | str]
    unit: str
    rival: str
    samples: tuple[float, ...] = ()
    at_s: tuple[float, ...] = ()
    operations: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two cases of one scenario whose ratio, for the same rival, is the point of it. `label` says it in words."""

    scenario: str
    label: str
    of: tuple[str, Mapping[str, int | str]]
    to: tuple[str, Mapping[str, int | str]]


@dataclass(frozen=True, slots=True)
class Aim:
    """How fast one row was meant to be, against another of the same session.

    Attributes:
        scenario: the scenario's name.
        label: what is against what, in words; the same for the aims that a reader wants side by side.
        place: which of them this is ("4 processes").
        at_least: the least speed of `of` that is wanted, speed being the inverse of time; that of `to` is 1. 0: the
            ratio is shown, and no more.
        of, to: rival, measure and params of the rows.
        at_most: where this is a number, the most time instead, that of `to` being 1; 0 again only shows the ratio.
    """

    scenario: str
    label: str
    place: str
    at_least: float
    of: tuple[str, str, Mapping[str, int | str]]
    to: tuple[str, str, Mapping[str, int | str]]
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """How much every sample of one row was meant to be at the most, in the row's unit.

    Attributes:
        scenario: the scenario's name.
        label: what is bounded, in words.
        of: rival, measure and params of the row.
        at_most: the most; one sample above it, and the bound is missed.
    """

    scenario: str
    label: str
    of: tuple[str, str, Mapping[str, int | str]]
    at_most: float


@dataclass(frozen=True, slots=True)
class Result:
    """One run of the benchmark.

    Attributes:
        host: the machine, the versions and the settings (host.py).
        reference: the rival that the others' ratios are against, unless the reader asks for another.
        missing: rival -> why it is not there at all.
        rows: in the order of scenarios, sessions, cases, rivals.
        contrasts, aims, bounds: see there.
        texts: scenario -> what it does, for the reader of a table.
    """

    host: Mapping[str, Any]
    reference: str
    missing: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    aims: tuple[Aim, ...] = ()
    bounds: tuple[Bound, ...] = ()


def write(result: Result, path: Path) -> None:
    """Writes the result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": FORMAT, **asdict(result)}, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Result:
    """Reads what `write` wrote.

    Raises:
        ValueError: the file is no result, or one of another format.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("format") != FORMAT:
            raise ValueError(f"{path}: a result of another format than {FORMAT}; run the benchmark again")
        rows = tuple(
            Row(**{**row, "samples": tuple(row["samples"]), "at_s": tuple(row["at_s"])}) for row in found.pop("rows")
        )
        contrasts = tuple(
            Contrast(each["scenario"], each["label"], (each["of"][0], each["of"][1]), (each["to"][0], each["to"][1]))
            for each in found.pop("contrasts")
        )
        aims = tuple(
            Aim(**{**each, "of": tuple(each["of"]), "to": tuple(each["to"])}) for each in found.pop("aims", ())
        )
        bounds = tuple(Bound(**{**each, "of": tuple(each["of"])}) for each in found.pop("bounds", ()))
        return Result(**found, rows=rows, contrasts=contrasts, aims=aims, bounds=bounds)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a result of this benchmark: {error!r}") from error
