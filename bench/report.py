"""Tables of a result: a time with its quartiles, and under it the ratio to the reference in the same rounds.

A scenario with an axis (processes, keys, value bytes) gets a table for each measure with a column for each value of it;
one without gets a table with a column for each measure. A rival that has no part in a table stands below it, with why.
Where a rival is timed in several ways, each way has a row like a rival's. Aims come last: what was reached, and whether
that is enough.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.box import MARKDOWN, ROUNDED
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.records import Aim, Bound, Contrast, Result, Row
from bench.scenarios import SCENARIOS
from bench.stats import Summary, ratio, summary, tally

__all__ = ["beside", "case_of", "name_of_case", "place", "quantity", "show", "summed", "varying"]

CELL_WIDTH = 25
"""Columns of a cell with its borders; a name takes what it needs."""


def case_of(row: Row) -> str:
    """A text that is the same for the rows of one case and no others."""
    return json.dumps([row.scenario, row.measure, row.params], sort_keys=True)


def name_of_case(measure: str, params: Mapping[str, int | str]) -> str:
    """A case in words."""
    return ", ".join([measure, *(f"{name.replace('_', ' ')} {_number(value)}" for name, value in params.items())])


def beside(rows: Sequence[Row], parameter: str) -> list[Row]:
    """The rows with that parameter told by the rival's name, as "rival: value" unless the rival has one value only."""
    if not parameter:
        return list(rows)
    ways: dict[str, set[int | str]] = {}
    for row in rows:
        if row.samples:
            ways.setdefault(row.rival, set()).add(row.params[parameter])
    return [
        replace(
            row,
            params={name: value for name, value in row.params.items() if name != parameter},
            rival=f"{row.rival}: {row.params[parameter]}" if len(ways[row.rival]) > 1 else row.rival,
        )
        for row in rows
        if row.params[parameter] in ways.get(row.rival, ())
    ]


def varying(params: Mapping[str, int | str], rows: Sequence[Row]) -> dict[str, int | str]:
    """Those of the parameters that are not the same in all rows."""
    return {name: value for name, value in params.items() if any(row.params.get(name) != value for row in rows)}


def quantity(value: float, unit: str) -> str:
    """A number with its unit, three digits of it: 623 ns, 1.25 µs, 30.0 ms, 1.50 s, 145 B; a count has none."""
    scale, name = _scale(value, unit)
    return f"{_digits(value / scale)} {name}" if name else f"{value:.3g}"


def summed(row: Row) -> Summary:
    """The row's samples: median and quartiles, of counts the mean, the least and the most."""
    return tally(row.samples) if row.unit == "n" else summary(row.samples)


def show(result: Result, console: Console, *, against: str | None = None, markdown: bool = False) -> None:
    """Prints all of a result.

    Args:
        result: as it was read.
        console: where to.
        against: the rival that ratios are to; the result's own reference unless given.
        markdown: tables as Markdown, one line a cell.
    """
    page = _Page(result, console, against or result.reference, markdown, chosen=against is not None)
    page.head()
    for scenario in dict.fromkeys(row.scenario for row in result.rows):
        page.scenario(scenario)
    for rival, why in result.missing.items():
        console.print(f"missing: {rival}: {why}", highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _Page:
    result: Result
    console: Console
    reference: str
    markdown: bool
    chosen: bool
    """The reader asked for that reference."""

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def head(self) -> None:
        host = self.result.host
        cores = f"{host.get('cpus')} cores, used {host.get('cpus_used')}"
        packages = [f"{name} {version}" for name, version in host.get("packages", {}).items()]
        self.say("; ".join(filter(None, [host.get("cpu") or host.get("machine"), cores, host.get("kernel")])))
        self.say("; ".join(filter(None, [f"Python {host.get('python')}", ", ".join(packages), host.get("time")])))
        load = [host[name] for name in ("load_1min_before", "load_1min_after") if name in host]
        self.say(
            f"load of the minute before{' and after' * (len(load) > 1)}: {', '.join(f'{each:.2f}' for each in load)}"
        )
        if load and load[0] > host.get("cpus", 1) / 2:
            self.say("The machine was busy with something else when this began: take the figures as noisy.")
        self.say(f"(low–high) are quartiles, ~ marks wide ones; × is to {self.reference} in the same rounds")
        if any(row.unit == "n" for row in self.result.rows):
            self.say("of counts: the mean of the rounds (least–most)")

    def scenario(self, name: str) -> None:
        rows = [row for row in self.result.rows if row.scenario == name]
        axis, way = (SCENARIOS[name].axis, SCENARIOS[name].beside) if name in SCENARIOS else ("", "")
        self.say("")
        self.say(f"{name}: {self.result.texts.get(name, '')}")
        lines = beside(rows, way)
        own = SCENARIOS[name].reference if name in SCENARIOS and not self.chosen else ""
        page = replace(self, reference=self.line_of(own or self.reference, lines))
        if page.reference != self.reference:
            self.say(f"× is to {page.reference}")
        if axis:
            for measure in dict.fromkeys(row.measure for row in lines):
                some = [row for row in lines if row.measure == measure]
                page.tables(measure, some, {case_of(r): place(axis, r.params[axis]) for r in some})
        else:
            heads = {case_of(r): name_of_case(r.measure, varying(r.params, lines)) for r in lines}
            page.tables("", lines, heads)
        self.without([replace(row, measure=str(row.params[way])) for row in rows] if way else rows)
        for contrast in self.result.contrasts:
            if contrast.scenario == name:
                self.contrast(contrast, rows)
        verdicts = [
            *self.aims([aim for aim in self.result.aims if aim.scenario == name], rows),
            *self.bounds([bound for bound in self.result.bounds if bound.scenario == name], rows),
        ]
        if verdicts:
            counts = [f"{verdicts.count(each)} {each}" for each in ("met", "missed", "not measured")]
            self.say(f"  aims of this run: {', '.join(counts)}")

    def line_of(self, rival: str, lines: Sequence[Row]) -> str:
        """The row that the rival's name means: its first, unless one has just that name."""
        names = dict.fromkeys(row.rival for row in lines)
        return rival if rival in names else next((name for name in names if name.startswith(f"{rival}: ")), rival)

    def tables(self, title: str, rows: Sequence[Row], heads: Mapping[str, str]) -> None:
        """The cases in `heads` as columns, in as many tables as the width asks for."""
        name_width = max((len(row.rival) for row in rows if row.samples), default=0) + 5
        fit = len(heads) if self.markdown else max(1, (self.console.width - name_width) // CELL_WIDTH)
        cases = list(heads)
        for start in range(0, len(cases), fit):
            some = cases[start : start + fit]
            self.table(title, [row for row in rows if case_of(row) in some], {case: heads[case] for case in some})

    def table(self, title: str, rows: Sequence[Row], heads: Mapping[str, str]) -> None:
        table = Table(title=title or None, title_justify="left", box=MARKDOWN if self.markdown else ROUNDED)
        table.add_column("")
        for head in heads.values():
            table.add_column(head, justify="right")
        cells = {(case_of(row), row.rival): row for row in rows}
        for rival in dict.fromkeys(row.rival for row in rows):
            mine = [cells.get((case, rival)) for case in heads]
            if any(row is not None and row.samples for row in mine):
                table.add_row(
                    escape(rival),
                    *(self.cell(row, cells.get((case, self.reference))) for case, row in zip(heads, mine, strict=True)),
                )
        if table.row_count:
            self.console.print(table)

    def cell(self, row: Row | None, reference: Row | None) -> str:
        if row is None or not row.samples:
            return "—"
        text = _with_spread(summed(row), row.unit)
        if reference is None or row.rival == reference.rival or row.unit == "n":
            return text
        against = ratio(row.samples, reference.samples)
        return text if against is None else f"{text}{' ' if self.markdown else chr(10)}{_times(against)}"

    def without(self, rows: Sequence[Row]) -> None:
        """Who has no part, by why; in which measures, where it is not all."""
        reasons: dict[str, dict[str, set[str]]] = {}
        for row in rows:
            if row.why:
                reasons.setdefault(row.why, {}).setdefault(row.rival, set()).add(row.measure)
        measures = list(dict.fromkeys(row.measure for row in rows))
        for why, rivals in reasons.items():
            names = [
                rival if len(of) == len(measures) else f"{rival} ({'; '.join(m for m in measures if m in of)})"
                for rival, of in rivals.items()
            ]
            self.say(f"  — {', '.join(names)}: {why}")

    def contrast(self, contrast: Contrast, rows: Sequence[Row]) -> None:
        sides = {
            (row.rival, side): row
            for row in rows
            for side, wanted in (("of", contrast.of), ("to", contrast.to))
            if (row.measure, dict(row.params)) == (wanted[0], dict(wanted[1]))
        }
        parts = []
        for rival in dict.fromkeys(row.rival for row in rows):
            of, to = sides.get((rival, "of")), sides.get((rival, "to"))
            found = ratio(of.samples, to.samples) if of and to else None
            if found:
                parts.append(f"{rival} {_times(found)}")
        if parts:
            self.say(f"  {contrast.label}: {'; '.join(parts)}")

    def aims(self, aims: Sequence[Aim], rows: Sequence[Row]) -> list[str]:
        """A line for each label, with what was reached in each place; gives what became of each aim."""
        verdicts = []
        by_key = {_key(row.rival, row.measure, row.params): row for row in rows}
        for label in dict.fromkeys(aim.label for aim in aims):
            parts = []
            for aim in (each for each in aims if each.label == label):
                of, to = by_key.get(_key(*aim.of)), by_key.get(_key(*aim.to))
                pair = (of.samples, to.samples) if of and to else ((), ())
                found = ratio(*(pair[::-1] if aim.at_most is None else pair))  # of speeds: the inverse of times
                reached = "not measured" if found is None else _times(found)
                parts.append(f"{aim.place} {reached}")
                if aim.at_least or aim.at_most:
                    met = found is not None and _met(aim, found.median)
                    verdicts.append("not measured" if found is None else "met" if met else "missed")
                    wanted = f"at most × {aim.at_most:g}" if aim.at_most else f"× {aim.at_least:g}"
                    parts[-1] += f", aim {wanted}" + f": {verdicts[-1]}" * (found is not None)
            kind = "time" if any(aim.at_most is not None for aim in aims if aim.label == label) else "speed"
            self.say(f"  {kind}, {label}: {'; '.join(parts)}")
        return verdicts

    def bounds(self, bounds: Sequence[Bound], rows: Sequence[Row]) -> list[str]:
        """A line for each, with the most that any round had; gives what became of each."""
        verdicts = []
        by_key = {_key(row.rival, row.measure, row.params): row for row in rows}
        for bound in bounds:
            row = by_key.get(_key(*bound.of))
            wanted = f"aim at most {quantity(bound.at_most, row.unit if row else 'n')}"
            if row is None or not row.samples:
                verdicts.append("not measured")
                self.say(f"  {bound.label}: not measured, {wanted}")
                continue
            most = max(row.samples)
            verdicts.append("met" if most <= bound.at_most else "missed")
            rounds = f"{len(row.samples)} round{'s' * (len(row.samples) > 1)}"
            self.say(f"  {bound.label}: {quantity(most, row.unit)} at most in {rounds}, {wanted}: {verdicts[-1]}")
        return verdicts


def _met(aim: Aim, reached: float) -> bool:
    return reached <= aim.at_most if aim.at_most else reached >= aim.at_least


def _key(rival: str, measure: str, params: Mapping[str, int | str]) -> str:
    return json.dumps([rival, measure, dict(params)], sort_keys=True)


def _with_spread(found: Summary, unit: str) -> str:
    """The median with its unit and the quartiles in the same one."""
    if unit == "n":
        return f"{found.median:.3g} ({found.low:g}–{found.high:g})"
    scale, name = _scale(found.median, unit)
    low, high = _digits(found.low / scale), _digits(found.high / scale)
    return f"{'~' if found.noisy else ''}{_digits(found.median / scale)} {name} ({low}–{high})"


def _scale(value: float, unit: str) -> tuple[float, str]:
    """The unit that shows a value best: how much of `unit` it is, and its name."""
    if unit == "n":
        return 1.0, ""
    if unit == "B":
        return (1.0, "B") if abs(value) < 9999.5 else (1024.0, "KiB")
    for scale, name in ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms")):
        if value < scale * 999.5:
            return scale, name
    return 1.0, "s"


def _times(found: Summary) -> str:
    return f"× {_digits(found.median)} ({_digits(found.low)}–{_digits(found.high)})"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.0995 or not value else f"{value:.3g}"


def _number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def place(axis: str, value: int | str) -> str:
    """A place on an axis: 4 processes, 1,000 keys; a value of 64 KiB."""
    if axis.endswith("_bytes") and isinstance(value, int):
        for scale, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
            if value >= scale:
                return f"{value / scale:g} {name}"
        return f"{value} B"
    return f"{_number(value)} {axis.replace('_', ' ')}"
