"""Results side by side: the same case of the same rival, before and after.

Samples of different runs are no pairs, so what is shown is the ratio of the medians, marked only where the quartiles do
not overlap. Two machines differ by more than the code does: beside the times stand the ratios to the reference within
each run, which carry over better, and above all what differs between the machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import MARKDOWN, ROUNDED
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.records import Result, Row
from bench.report import case_of, name_of_case, quantity, summed
from bench.stats import Summary, ratio

__all__ = ["compare"]

IGNORED = {"time", "load_1min_before", "load_1min_after", "shm_free_bytes", "took_s", "command"}
"""What differs between any two runs."""


def compare(
    results: Mapping[str, Result], console: Console, *, against: str | None = None, markdown: bool = False
) -> None:
    """Prints what two or more results have in common; the ratio is of the last to the first.

    Args:
        results: what to call it -> the result, in order; two at least.
        console: where to.
        against: the rival that ratios within a result are to; the first result's reference unless given.
        markdown: tables as Markdown.
    """
    reference = against or next(iter(results.values())).reference
    for name, values in _differences([result.host for result in results.values()]):
        console.print(f"{name}: {' → '.join(values)}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"* the quartiles do not overlap; × is to {reference} within each run", highlight=False, markup=False)
    rows = [{(case_of(row), row.rival): row for row in result.rows} for result in results.values()]
    keys = list(dict.fromkeys(key for each in rows for key in each))
    for scenario in dict.fromkeys(next(each[key] for each in rows if key in each).scenario for key in keys):
        table = Table(title=scenario, title_justify="left", box=MARKDOWN if markdown else ROUNDED)
        for column in ("", "rival"):
            table.add_column(column)
        for column in (*results, "last / first", "×"):
            table.add_column(column, justify="right")
        for key in keys:
            found = [each.get(key) for each in rows]
            known = next(row for row in found if row is not None)
            if known.scenario == scenario and any(row is not None and row.samples for row in found):
                table.add_row(
                    escape(name_of_case(known.measure, known.params)),
                    escape(known.rival),
                    *map(_time, found),
                    _change(found),
                    _ratios(found, [each.get((key[0], reference)) for each in rows]),
                )
        if table.row_count:
            console.print(table)


def _differences(hosts: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for host in hosts for name in host if name not in IGNORED)
    found = [(name, [str(host.get(name, "?")) for host in hosts]) for name in names]
    return [(name, values) for name, values in found if len(set(values)) > 1]


def _summary(row: Row | None) -> Summary | None:
    return summed(row) if row is not None and row.samples else None


def _time(row: Row | None) -> str:
    found = _summary(row)
    if row is None or found is None:
        return "—"
    return f"{'~' if found.noisy else ''}{quantity(found.median, row.unit)}"


def _change(rows: Sequence[Row | None]) -> str:
    first, last = _summary(rows[0]), _summary(rows[-1])
    if first is None or last is None or not first.median:
        return "—"
    apart = last.low > first.high or last.high < first.low
    return f"{'* ' if apart else ''}{last.median / first.median:.2f}"


def _ratios(rows: Sequence[Row | None], references: Sequence[Row | None]) -> str:
    """The ratios to the reference, first → last."""
    texts = []
    for row, reference in zip(rows, references, strict=True):
        found = ratio(row.samples, reference.samples) if row is not None and reference is not None else None
        texts.append("—" if found is None else f"{found.median:.3g}")
    return " → ".join(texts)
