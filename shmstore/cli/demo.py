"""`shmstore demo`: eight processes count a real directory tree together, and one process checks what they found.

The launcher makes the segment, puts the list of files into it, starts a process a rank, and stays attached, without a
rank, until all are gone: so it is the last one out and takes the segment with it, also when a rank died. What the ranks
do is in `count.py`. Their reports come through a pipe each and not through the store that they show: a pipe also says
that its rank is dead. The progress bar pops a queue of the store. Nobody sleeps and looks again: ranks and bar wait in
the store, the launcher on the pipes.

The single process counts last, with the tree's files in the page cache; what that is worth is its advantage.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import secrets
import signal
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
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
from shmstore.cli.count import Plan, Report, Tally

__all__ = ["demo"]

# Of the default tree only: these hold what was installed beside the standard library, and what running it writes.
_NOT_STANDARD = frozenset({b"site-packages", b"dist-packages", b"__pycache__"})


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
    "--kill", type=click.IntRange(0), metavar="RANK", help="This rank kills itself in the middle of its work."
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

    Exits with 1 when a rank failed or died, or when they counted anything else than the single process did.
    """
    if kill is not None and kill >= nproc:
        raise click.BadParameter(f"there are ranks 0 to {nproc - 1} only", param_hint="--kill")
    root = os.path.abspath(path or sysconfig.get_path("stdlib"))  # noqa: PTH100 -- resolve() would follow links
    plan = Plan(f"demo-{os.getpid()}-{secrets.token_hex(4)}", os.fsencode(root), nproc, rounds, timeout, kill)
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False, soft_wrap=True)
    files, unreadable = count.list_files(plan.root, _NOT_STANDARD if path is None else ())
    console.print(f"{_many(len(files), 'file', 'files')} below {_shown(plan.root)}")
    if unreadable:
        console.print(f"{_many(unreadable, 'directory', 'directories')} left out as unreadable")
    start_s = time.monotonic()
    try:
        with ShmStore(plan.name, create=True, sync=sync) as store:
            count.publish(store, files)
            results = _run(plan, store, files, console)
    except (StoreError, OSError) as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from error
    together_s = time.monotonic() - start_s
    reports = [result for result in results if isinstance(result, Report)]
    faults = [result for result in results if isinstance(result, str)]
    if not faults:
        start_s = time.monotonic()
        alone = count.count(plan.root, files)
        alone_s = time.monotonic() - start_s
        console.print(_table(plan, sync, reports, alone, console.width), soft_wrap=False)
        if alone.skipped:
            console.print(f"{_many(alone.skipped, 'file', 'files')} left out as unreadable, by all alike")
        console.print(_speed(plan, reports, together_s, alone_s))
        faults = _faults(reports, alone)
    if not _gone(plan.name):
        faults.append(f"the segment {plan.name} is still there")
    for fault in faults:
        console.print(f"FAILED: {fault}", style="bold red")
    if faults:
        raise SystemExit(1)
    console.print(
        f"OK: {_many(nproc, 'process', 'processes')} counted {_many(alone.files, 'file', 'files')} exactly as one did; "
        "no server, no port, and the segment is gone."
    )


# -- the processes ----------------------------------------------------------------------------------------------------


def _run(plan: Plan, store: ShmStore, files: list[bytes], console: Console) -> list[Report | str]:
    """Starts all ranks and collects a report of each, in rank order; or ends the rest at the first that fails."""
    ranks: dict[Connection, tuple[int, SpawnProcess]] = {}
    results: dict[int, Report] = {}
    faults: dict[int, str] = {}
    try:
        with _no_interrupt():
            for rank in range(plan.nproc):
                _start(plan, rank, ranks)
        with _bar(store, len(files), console):
            pending = set(ranks)
            while pending and not faults:
                for pipe in wait(list(pending)):
                    assert isinstance(pipe, Connection)
                    pending.discard(pipe)
                    rank, process = ranks[pipe]
                    result = _receive(pipe, rank, process)
                    if isinstance(result, str):
                        faults[rank] = result
                    else:
                        results[rank] = result
    finally:
        for pipe, (_, process) in ranks.items():
            if len(results) < plan.nproc:
                process.kill()  # the store survives that; also ends a process that is stopped
            process.join()
            pipe.close()
    for rank, process in ranks.values():
        held = count.unfinished(store, rank, process.pid or 0) if rank in faults else []
        if held:
            named = ", ".join(_shown(files[index]) for index in held)
            faults[rank] += f"; it had claimed and not finished: {named}"
    return [*faults.values()] or [results[rank] for rank in sorted(results)]


def _start(plan: Plan, rank: int, ranks: dict[Connection, tuple[int, SpawnProcess]]) -> None:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=count.live, args=(plan, rank, theirs), name=f"rank {rank}", daemon=True)
    try:
        process.start()
    except BaseException:
        mine.close()
        raise
    finally:
        theirs.close()  # the rank holds the only end: its death is an end of file here
    ranks[mine] = (rank, process)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes started in here never see Ctrl-C, which is the launcher's to answer; one that comes meanwhile waits."""
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and unblocks SIGINT then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive(pipe: Connection, rank: int, process: SpawnProcess) -> Report | str:
    try:
        result = pipe.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"rank {rank} (pid {process.pid}) died: {how}; the other ranks were stopped"
    assert isinstance(result, (Report, str))
    return result


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


def _table(plan: Plan, sync: str, reports: list[Report], alone: Tally, width: int) -> Table:
    table = Table(
        title=f"{plan.nproc} processes, {plan.rounds} rounds, sync={sync}, segment {plan.name}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, int(width >= 100)),  # without it the table fits into 80 columns
    )
    table.add_column("rank", overflow="fold")
    for head in ("pid", "files", "words", "lines", "bytes", *(f"wait ms\n{what}" for what in count.WAITS)):
        table.add_column(head, justify="right", overflow="fold")
    for r in reports:
        table.add_row(
            str(r.rank), str(r.pid), *_cells(r.own), *(f"{r.waited_s[what] * 1e3:.1f}" for what in count.WAITS)
        )
    table.add_section()
    table.add_row("all", "", *_cells(_total(reports)))
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


def _many(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _shown(path: bytes) -> str:
    """For people: what is not UTF-8 and what would move the cursor, as escapes."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# -- is it right? -----------------------------------------------------------------------------------------------------


def _total(reports: list[Report]) -> Tally:
    return sum((report.own for report in reports), Tally())


def _faults(reports: list[Report], alone: Tally) -> list[str]:
    """What is wrong with the reports of all ranks, one sentence each; nothing when all is well."""
    total = _total(reports)
    faults = [
        f"rank {r.rank} was told that all counted {r.total}, but they counted {total}"
        for r in reports
        if r.total != total
    ]
    if total != alone:
        faults.append(f"the ranks counted {total}, the single process {alone}; did the tree change meanwhile?")
    return faults
