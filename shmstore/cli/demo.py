"""`shmstore demo`: eight processes count a real directory tree together, and one process checks what they found.

The launcher makes the segment, puts the list of files into it, starts a process a rank (`launch.py`), and stays
attached, without a rank, until all are gone: so it is the last one out and takes the segment with it, also when a rank
died. What the ranks do is in `count.py`. The progress bar pops a queue of the store. The launcher does not sleep and
look again: the bar waits in the store, the launcher on the pipes.

A death is survived, whoever killed: the others learn it from the store, finish the work of the dead, and the counts
must agree all the same. `--kill` only saves looking for a pid. So the exit code is 0 after deaths too, as long as one
rank is left, and the output says who died.

The single process counts last, with the tree's files in the page cache; what that is worth is its advantage.
"""

from __future__ import annotations

import math
import os
import secrets
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Literal

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shmstore import ShmStore, StoreError
from shmstore.cli import count
from shmstore.cli.count import Plan, Report
from shmstore.cli.launch import Death, Outcome, Ranks
from shmstore.cli.tally import Tally, list_files
from shmstore.cli.tally import count as count_alone

__all__ = ["demo"]

# Of the default tree only: these hold what was installed beside the standard library, and what running it writes.
_NOT_STANDARD = frozenset({b"site-packages", b"dist-packages", b"__pycache__"})
_NAMED = 16  # survivors whose notice of a death is shown each


@click.command()
@click.option("--nproc", type=click.IntRange(1, 1000), default=8, show_default=True, help="How many processes.")
@click.option(
    "--path",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="The tree whose files are counted.  [default: the running Python's standard library]",
)
@click.option("--rounds", type=click.IntRange(1), default=4, show_default=True, help="How often they meet.")
@click.option(
    "--sync",
    type=click.Choice(["futex", "semaphore"]),
    default="futex",
    show_default=True,
    help="How a waiting process sleeps.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds after which a wait has failed.",
)
@click.option(
    "--kill",
    type=click.IntRange(0),
    metavar="RANK",
    help="This rank is killed (SIGKILL) in the middle of its work; the others learn it from the store and take over.",
)
def demo(
    nproc: int,
    path: str | None,
    rounds: int,
    sync: Literal["futex", "semaphore"],
    timeout: float,
    kill: int | None,
) -> None:
    """Has processes count the words and lines of a directory tree together, and compares with a single process.

    A process that dies, by --kill or anybody's hand, is survived: the others finish its work.

    Exits with 1 when a rank failed, when all died, or when they counted anything else than the single process did.
    """
    if kill is not None and kill >= nproc:
        raise click.BadParameter(f"there are ranks 0 to {nproc - 1} only", param_hint="--kill")
    root = os.path.abspath(path or sysconfig.get_path("stdlib"))  # noqa: PTH100 -- resolve() would follow links
    plan = Plan(f"demo-{os.getpid()}-{secrets.token_hex(4)}", os.fsencode(root), nproc, rounds, timeout, kill)
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False, soft_wrap=True)
    files, unreadable = list_files(plan.root, _NOT_STANDARD if path is None else ())
    console.print(f"{_many(len(files), 'file', 'files')} below {_shown(plan.root)}")
    if unreadable:
        console.print(f"{_many(unreadable, 'directory', 'directories')} left out as unreadable")
    start_s = time.monotonic()
    try:
        with ShmStore(plan.name, create=True, sync=sync) as store:
            count.publish(store, files)
            outcome = _run(plan, store, len(files), console)
    except (StoreError, OSError) as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from error
    together_s = time.monotonic() - start_s
    for death in outcome.deaths:
        console.print(_obituary(death, outcome.reports, files))
    faults = outcome.faults
    alone = Tally()
    if not faults:
        start_s = time.monotonic()
        alone = count_alone(plan.root, files)
        alone_s = time.monotonic() - start_s
        console.print(_table(plan, sync, outcome, alone, console.width), soft_wrap=False)
        if alone.skipped:
            console.print(f"{_many(alone.skipped, 'file', 'files')} left out as unreadable, by all alike")
        console.print(_speed(plan, outcome.reports, together_s, alone_s))
        faults = _faults(outcome.reports, alone)
    if not _gone(plan.name):
        faults.append(f"the segment {plan.name} is still there")
    for fault in faults:
        console.print(f"FAILED: {fault}", style="bold red")
    if faults:
        raise SystemExit(1)
    left = f"{len(outcome.reports):,} of " if outcome.deaths else ""
    console.print(
        f"OK: {left}{_many(nproc, 'process', 'processes')} counted {_many(alone.files, 'file', 'files')} exactly as "
        "one did; no server, no port, and the segment is gone."
    )


def _run(plan: Plan, store: ShmStore, total: int, console: Console) -> Outcome:
    with Ranks(plan) as ranks, _bar(store, total, console):
        return ranks.collect(store)


def _gone(name: str) -> bool:
    return not Path("/dev/shm", f"shmstore.{name}").exists()


# -- what is shown ----------------------------------------------------------------------------------------------------


@contextmanager
def _bar(store: ShmStore, total: int, console: Console) -> Iterator[None]:
    """Shows how many files are done while the block runs; on a terminal only. A thread pops the ranks' queue."""
    columns = (TextColumn("counting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    feed = store.clone()
    feed.set_timeout(math.inf)
    with Progress(*columns, console=console, auto_refresh=False, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("", total=total)

        def follow() -> None:
            try:
                while finished := int(feed.queue_pop(count.PROGRESS)):
                    progress.update(task, advance=finished, refresh=True)
            except StoreError:
                pass  # closed below

        thread = Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
            store.queue_push(count.PROGRESS, "0")  # comes after all the others, and ends the thread
            thread.join()
        finally:
            feed.close()  # ends its wait, when the block was left by Ctrl-C
            thread.join()


def _table(plan: Plan, sync: str, outcome: Outcome, alone: Tally, width: int) -> Table:
    table = Table(
        title=f"{plan.nproc} processes, {plan.rounds} rounds, sync={sync}, segment {plan.name}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, int(width >= 100)),  # without it the table fits into 80 columns
    )
    table.add_column("rank", overflow="fold")
    for head in ("pid", "files", "words", "lines", "bytes", *(f"wait ms\n{what}" for what in count.WAITS)):
        table.add_column(head, justify="right", overflow="fold")
    everyone = outcome.reports[0].everyone  # the dead have finished files too; _faults looks whether all say the same
    rows = [
        (r.rank, r.pid, r.own, [f"{r.waited_s[what] * 1e3:.1f}" for what in count.WAITS]) for r in outcome.reports
    ] + [(d.rank, d.pid, everyone[d.rank], ["-", "-", "died"]) for d in outcome.deaths]
    for rank, pid, tally, waits in sorted(rows, key=lambda row: row[0]):
        table.add_row(str(rank), str(pid), *_cells(tally), *waits)
    table.add_section()
    table.add_row("all", "", *_cells(outcome.reports[0].total))
    table.add_row("single\nprocess", str(os.getpid()), *_cells(alone))
    return table


def _cells(tally: Tally) -> list[str]:
    return [f"{number:,}" for number in (tally.files, tally.words, tally.lines, tally.size_bytes)]


def _speed(plan: Plan, reports: list[Report], together_s: float, alone_s: float) -> str:
    work_s = max(r.ended_s for r in reports) - min(r.begun_s for r in reports)
    return (
        f"{plan.nproc} processes on {len(os.sched_getaffinity(0))} cores: {work_s:.2f} s from start to last barrier, "
        f"{together_s:.2f} s with making and ending them.\n"
        f"Single process, afterwards: {alone_s:.2f} s. Speedup: {alone_s / work_s:.2f}, or "
        f"{alone_s / together_s:.2f} with making and ending them."
    )


def _obituary(death: Death, reports: list[Report], files: list[bytes]) -> str:
    """Who died, who noticed and when, and what became of the files in hand."""
    notices = sorted(
        (notice.at_s - death.seen_s, report.rank, notice.where)
        for report in reports
        for notice in report.noticed
        if notice.rank == death.rank
    )
    taken = [(index, report.rank) for report in reports for victim, index in report.taken if victim == death.rank]
    lines = [f"rank {death.rank} (pid {death.pid}) died: {death.how}. The launcher told nobody."]
    if notices:
        lines.append(
            f"  {len(notices)} of {_many(len(reports), 'survivor', 'survivors')} noticed, each at its next wait; "
            "in ms after the launcher saw the end (-: before):"
        )
        lines += [f"    rank {rank} {after_s * 1e3:+.1f} {where}" for after_s, rank, where in notices[:_NAMED]]
        if len(notices) > _NAMED:
            lines.append(f"    and {len(notices) - _NAMED:,} more, the last {notices[-1][0] * 1e3:+.1f}")
    else:
        lines.append("  no survivor noticed: nobody had to wait for it any more")
    lines.append(f"  taken over from it: {_many(len(taken), 'file', 'files')}")
    lines += [f"    rank {rank} counted {_shown(files[index])}" for index, rank in taken]
    return "\n".join(lines)


def _many(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _shown(path: bytes) -> str:
    """For people: what is not UTF-8 and what would move the cursor, as escapes."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# -- is it right? -----------------------------------------------------------------------------------------------------


def _faults(reports: list[Report], alone: Tally) -> list[str]:
    """What is wrong with the reports of all ranks, one sentence each; nothing when all is well."""
    first = reports[0]
    faults = []
    for r in reports:
        if r.own != r.everyone[r.rank]:
            faults.append(f"rank {r.rank} counted {r.own}, and in its store it is {r.everyone[r.rank]}")
        if r.everyone != first.everyone:
            faults.append(f"rank {r.rank} knows that all counted {r.total}, and rank {first.rank} that {first.total}")
    if first.total != alone:
        faults.append(f"the ranks counted {first.total}, the single process {alone}; did the tree change meanwhile?")
    return faults
