"""The command line: options in, sessions run, JSON out, and tables and charts from that JSON."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from bench.compare import compare
from bench.host import ROOT, allowed_cpus, stamp
from bench.launch import run
from bench.plots import draw
from bench.records import Aim, Bound, Result, Row, Session, read, write
from bench.report import show
from bench.rivals import Given, Rival, everyone
from bench.scenarios import SCENARIOS
from bench.scenarios.base import Effort

__all__ = ["main"]

FULL = Effort(quick=False, rounds=11, target_s=0.04)
QUICK = Effort(quick=True, rounds=5, target_s=0.01)
WIDTH = 140
"""Columns of a table where there is no terminal to say."""
MARKDOWN_WIDTH = 10_000
"""Enough for never breaking a line: a row of Markdown is one."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="[SCENARIO…]")
@click.option("--store", "stores", multiple=True, metavar="SPEC", help="One more store: module:callable, or a URL.")
@click.option("--rival", "only", multiple=True, metavar="TEXT", help="Only rivals whose name has TEXT in it.")
@click.option("--quick", is_flag=True, help="Fewer rounds, fewer and smaller cases: does it run, and about how fast.")
@click.option("--processes", type=click.IntRange(1), multiple=True, help="Only sessions of so many processes.")
@click.option("--rounds", type=click.IntRange(1), help="Samples of each case of each rival.  [11; quick: 5]")
@click.option("--cpus", metavar="LIST", help="The cores to use, as 0,1,2.  [all that may be used]")
@click.option(
    "--json",
    "out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=ROOT / "build" / "bench" / "result.json",
    metavar="OUT",
    help="Where the result goes.  [build/bench/result.json]",
)
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Draw charts too.")
@click.option("--against", metavar="RIVAL", help="Whom ratios are to.  [the first rival]")
@click.option("--markdown", is_flag=True, help="Tables as Markdown.")
@click.option("--show", "showing", is_flag=True, help="Run nothing: show the JSON file named instead of scenarios.")
@click.option("--compare", "comparing", is_flag=True, help="Run nothing: compare the JSON files named.")
@click.option("--list", "listing", is_flag=True, help="Run nothing: list scenarios and rivals.")
def main(
    *,
    words: tuple[str, ...],
    stores: tuple[str, ...],
    only: tuple[str, ...],
    quick: bool,
    processes: tuple[int, ...],
    rounds: int | None,
    cpus: str | None,
    out: Path,
    plots: Path | None,
    against: str | None,
    markdown: bool,
    showing: bool,
    comparing: bool,
    listing: bool,
) -> None:
    """Times stores and barriers side by side: all SCENARIOs unless some are named.

    --compare A.json B.json… compares results, --show A.json shows one again.

    A store of your own is named by a callable that returns it, or by a URL. The callable gets, by keyword, those of
    name, rank, world_size, directory and capacity that it takes; bench/rivals/given.py says what they are.
    """
    console = Console(width=MARKDOWN_WIDTH if markdown else None if sys.stdout.isatty() else WIDTH)
    if listing:
        _list(console, [*everyone(), *map(_given, stores)])
        return
    if showing or comparing:
        results = {_short(word): _read(word) for word in words}
        if comparing and len(results) < 2:
            raise click.UsageError("--compare needs two JSON files or more")
        if comparing:
            compare(results, console, against=against, markdown=markdown)
            return
        for result in results.values():
            _present(result, console, plots, against, markdown=markdown)
        return
    for word in words:
        if word not in SCENARIOS:
            raise click.BadParameter(f"no scenario {word!r}: there are {', '.join(SCENARIOS)}")
    effort = QUICK if quick else FULL
    if rounds is not None:
        effort = dataclasses.replace(effort, rounds=rounds)
    names = list(dict.fromkeys(words)) or list(SCENARIOS)
    sessions = [
        session
        for name in names
        for session in SCENARIOS[name].sessions(effort)
        if not processes or session.processes in processes
    ]
    if not sessions:
        raise click.BadParameter("no session has so many", param_hint="--processes")
    _measure(sessions, _chosen(stores, only), _cores(cpus), effort, out)
    _present(read(out), console, plots, against, markdown=markdown)


def _measure(
    sessions: Sequence[Session], rivals: Sequence[Rival], cpus: Sequence[int], effort: Effort, out: Path
) -> None:
    """Runs the sessions; the file grows with each session, so that what was measured stays."""
    progress = Console(stderr=True)
    missing = {rival.name: why for rival in rivals if (why := rival.missing())}
    for name, why in missing.items():
        progress.print(f"missing: {name}: {why}", highlight=False, markup=False, soft_wrap=True)
    kinds = {SCENARIOS[session.scenario].kind for session in sessions}
    here = [rival for rival in rivals if rival.name not in missing and rival.kind in kinds]
    if not here:
        raise click.ClickException("none of the rivals is there")
    host = {**stamp(cpus), "command": shlex.join(sys.argv[1:]), "effort": dataclasses.asdict(effort)}
    names = list(dict.fromkeys(session.scenario for session in sessions))
    texts = {name: SCENARIOS[name].text for name in names}
    rows: list[Row] = []
    contrasts = tuple(each for name in names for each in SCENARIOS[name].contrasts(effort))
    worlds = {session.processes for session in sessions}
    aims = tuple(each for name in names for each in SCENARIOS[name].aims(effort) if _world(each) in worlds)
    bounds = tuple(each for name in names for each in SCENARIOS[name].bounds(effort) if _world(each) in worlds)
    began = time.monotonic()
    for session in sessions:
        start = time.monotonic()
        taking_part = [rival for rival in here if rival.kind == SCENARIOS[session.scenario].kind]
        rows += run(session, taking_part, cpus) if taking_part else []
        took = f"{len(taking_part)} rivals, {time.monotonic() - start:.1f} s"
        progress.print(
            f"{session.scenario} ({_shared(session)}): {took}", highlight=False, markup=False, soft_wrap=True
        )
        host |= {"took_s": time.monotonic() - began, "load_1min_after": os.getloadavg()[0]}
        write(Result(host, here[0].name, missing, tuple(rows), contrasts, texts, aims, bounds), out)
    progress.print(f"written: {out}", highlight=False, markup=False, soft_wrap=True)


def _world(aim: Aim | Bound) -> int:
    """How many processes its rows are of."""
    return int(aim.of[2].get("processes", 1))


def _shared(session: Session) -> str:
    """What all cases of a session have in common."""
    first, *others = (case.params for case in session.cases)
    same = [f"{key} {value}" for key, value in first.items() if all(each.get(key) == value for each in others)]
    return ", ".join(same or [f"{len(session.cases)} cases"])


def _present(result: Result, console: Console, plots: Path | None, against: str | None, *, markdown: bool) -> None:
    show(result, console, against=against, markdown=markdown)
    if plots is not None:
        try:
            files = draw(result, plots)
        except ModuleNotFoundError as error:
            raise click.ClickException(f"no charts: {error}; install the extra 'bench'") from error
        for path in files:
            console.print(f"drawn: {path}", highlight=False, markup=False, soft_wrap=True)


def _chosen(stores: Sequence[str], only: Sequence[str]) -> list[Rival]:
    """All rivals, or those asked for; a store that was given is always asked for."""
    found = [rival for rival in everyone() if not only or any(text.lower() in rival.name.lower() for text in only)]
    if only and not found and not stores:
        raise click.BadParameter(f"no rival is called {' or '.join(only)}; see --list", param_hint="--rival")
    return [*found, *map(_given, dict.fromkeys(stores))]


def _given(spec: str) -> Rival:
    try:
        return Given(spec)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--store") from error


def _cores(text: str | None) -> list[int]:
    allowed = allowed_cpus()
    if text is None:
        return allowed
    try:
        wanted = sorted({int(word) for word in text.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of cores such as 0,1", param_hint="--cpus") from error
    if not set(wanted) <= set(allowed):
        raise click.BadParameter(f"the cores that may be used are {allowed}", param_hint="--cpus")
    return wanted


def _read(name: str) -> Result:
    try:
        return read(Path(name))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _short(name: str) -> str:
    return Path(name).stem if name.endswith(".json") else name


def _list(console: Console, rivals: Sequence[Rival]) -> None:
    for name, scenario in SCENARIOS.items():
        console.print(f"{name}: {scenario.text}", highlight=False, markup=False)
    console.print()
    for rival in rivals:
        why = rival.missing()
        console.print(f"{rival.name}{f' — missing: {why}' if why else ''}", highlight=False, markup=False)
