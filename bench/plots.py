"""Charts of a result: one SVG file for each scenario, made from the JSON and nothing else.

Along an axis (processes, keys, value bytes) a line for each rival and a panel for each measure; without an axis, bars.
All scales are logarithmic, since rivals are orders of magnitude apart, but those of counts, which may be 0. A rival has
one colour everywhere, but where it is drawn in several ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.records import Result, Row
from bench.report import beside, case_of, name_of_case, place, quantity, summed, varying
from bench.scenarios import SCENARIOS

__all__ = ["draw"]

LABELS = {"s": "time", "B": "bytes by key", "n": "how many"}


def draw(result: Result, folder: Path) -> list[Path]:
    """Draws all scenarios of a result that have samples; returns the files.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    matplotlib = import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "shmstore"  # the same result makes the same file
    plt = import_module("matplotlib.pyplot")
    rivals = list(dict.fromkeys(row.rival for row in result.rows))
    everywhere = {rival: plt.get_cmap("tab20")(i % 20) for i, rival in enumerate(rivals)}
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in dict.fromkeys(row.scenario for row in result.rows):
        rows = [row for row in result.rows if row.scenario == name and row.samples]
        if not rows:
            continue
        axis, way = (SCENARIOS[name].axis, SCENARIOS[name].beside) if name in SCENARIOS else ("", "")
        rows = beside(rows, way)
        lines = dict.fromkeys(row.rival for row in rows)
        many = [*plt.get_cmap("tab20").colors, *plt.get_cmap("tab20b").colors]
        colours = {line: many[i % len(many)] for i, line in enumerate(lines)} if way else everywhere
        figure = _lines(plt, rows, axis, colours) if axis else _bars(plt, rows, colours)
        figure.suptitle(f"{name} — {result.host.get('cpu', '')}, {result.host.get('cpus', '?')} cores", fontsize=10)
        files.append(folder / f"{name}.svg")
        figure.savefig(files[-1], metadata={"Date": None})
        plt.close(figure)
    return files


def _lines(plt: Any, rows: Sequence[Row], axis: str, colours: Mapping[str, Any]) -> Any:
    measures = list(dict.fromkeys(row.measure for row in rows))
    columns = min(2, len(measures))
    lines = -(-len(measures) // columns)
    figure, panels = plt.subplots(
        lines, columns, figsize=(5.5 * columns, 4 * lines + 1), squeeze=False, layout="constrained"
    )
    for panel, measure in zip(panels.flat, measures, strict=False):
        for rival in dict.fromkeys(row.rival for row in rows):
            mine = [row for row in rows if (row.measure, row.rival) == (measure, rival)]
            if not mine:
                continue
            mine.sort(key=lambda row: int(row.params[axis]))
            x = [int(row.params[axis]) for row in mine]
            found = [summed(row) for row in mine]
            panel.plot(x, [each.median for each in found], "o-", color=colours[rival], label=rival, markersize=4)
            panel.fill_between(
                x, [each.low for each in found], [each.high for each in found], color=colours[rival], alpha=0.2
            )
        places = sorted({int(row.params[axis]) for row in rows if row.measure == measure})
        panel.set_xscale("log", base=2 if axis != "keys" else 10)
        panel.set_xticks(places, [place(axis, each).removesuffix(f" {axis}") for each in places], fontsize=7)
        panel.minorticks_off()
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(_formatter(rows[0].unit))
        panel.set(title=measure, xlabel=axis.replace("_", " "), ylabel=LABELS[rows[0].unit])
        panel.grid(visible=True, alpha=0.3)
    for panel in list(panels.flat)[len(measures) :]:
        panel.set_visible(False)
    known = {
        label: handle for panel in panels.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _formatter(unit: str) -> Any:
    return import_module("matplotlib.ticker").EngFormatter(unit=unit)


def _bars(plt: Any, rows: Sequence[Row], colours: Mapping[str, Any]) -> Any:
    cases = list(dict.fromkeys(map(case_of, rows)))
    columns = min(2, len(cases))
    lines = -(-len(cases) // columns)
    most = max(sum(case_of(row) == case for row in rows) for case in cases)
    figure, panels = plt.subplots(
        lines, columns, figsize=(6.5 * columns, (0.3 * most + 1) * lines + 0.5), squeeze=False, layout="constrained"
    )
    for panel, case in zip(panels.flat, cases, strict=False):
        mine = [row for row in rows if case_of(row) == case][::-1]
        found = [summed(row) for row in mine]
        spread = [[each.median - each.low for each in found], [each.high - each.median for each in found]]
        bars = panel.barh(
            [row.rival for row in mine],
            [each.median for each in found],
            xerr=spread,
            color=[colours[row.rival] for row in mine],
            error_kw={"linewidth": 1},
        )
        panel.bar_label(bars, [quantity(each.median, mine[0].unit) for each in found], padding=4, fontsize=7)
        if mine[0].unit == "n":  # which may be 0
            panel.set_xlim(0, max(each.high for each in found) * 1.2 + 1)
        else:
            panel.set_xscale("log")
            medians = [each.median for each in found]
            panel.set_xlim(min(medians) / 3, max(medians) * 6)  # room for the shortest bar, and for the longest's label
            panel.xaxis.set_major_formatter(_formatter(mine[0].unit))
        panel.set(title=name_of_case(mine[0].measure, varying(mine[0].params, rows)), xlabel=LABELS[mine[0].unit])
        panel.tick_params(labelsize=8)
        panel.title.set_size(9)
        panel.grid(visible=True, axis="x", alpha=0.3)
    for panel in list(panels.flat)[len(cases) :]:
        panel.set_visible(False)
    return figure
