"""`shmstore demo`: real processes exchange values and meet at barriers, and a table says what each saw.

The launcher makes the segment, starts a process a rank, and stays attached, without a rank, until all are gone: so it
is the last one out and takes the segment with it, also when a rank died. Ranks report through a pipe each, not through
the store that they show. Nobody sleeps: ranks wait in the store only, the launcher on the pipes.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Literal

import click
from rich.console import Console
from rich.table import Table

from shmstore import SegmentNotFoundError, ShmStore, elastic

__all__ = ["demo"]


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank held, saw and waited for. Times in ms, one a round."""

    rank: int
    pid: int
    held: str
    saw: tuple[str, ...]
    exchange_ms: float
    store_ms: tuple[float, ...]
    elastic_ms: tuple[float, ...]
    early: int  # barriers that let this rank through before all had arrived


@dataclass(frozen=True, slots=True)
class Plan:
    """What every rank is told."""

    name: str
    nproc: int
    rounds: int
    timeout: float
    kill: int | None


@click.command()
@click.option("--nproc", type=click.IntRange(1, 1000), default=4, show_default=True, help="How many processes.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="How often they meet.")
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
@click.option("--kill", type=click.IntRange(0), metavar="RANK", help="This rank kills itself before the barriers.")
def demo(nproc: int, rounds: int, sync: Literal["futex", "semaphore"], timeout: float, kill: int | None) -> None:
    """Starts processes that share values and wait for each other, and shows what each saw.

    Exits with 1 when a rank failed, died or saw anything else than what the others held.
    """
    if kill is not None and kill >= nproc:
        raise click.BadParameter(f"there are ranks 0 to {nproc - 1} only", param_hint="--kill")
    plan = Plan(f"demo-{os.getpid()}-{secrets.token_hex(4)}", nproc, rounds, timeout, kill)
    console = Console(width=None if os.isatty(1) else 110)
    with ShmStore(plan.name, create=True, sync=sync, timeout=timeout):
        results = _run(plan)
    reports = [result for result in results if isinstance(result, Report)]
    if reports:
        console.print(_table(plan, sync, sorted(reports, key=lambda report: report.rank)))
    faults = [result for result in results if isinstance(result, str)] + _faults(plan, reports)
    if not _gone(plan.name):
        faults.append(f"the segment {plan.name} is still there")
    for fault in faults:
        console.print(f"FAILED: {fault}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if faults:
        raise SystemExit(1)
    console.print(
        f"OK: {nproc} processes saw the same {nproc} values and met at {2 * rounds} barriers; "
        "no server, no port, and the segment is gone.",
        highlight=False,
        soft_wrap=True,
    )


def _run(plan: Plan) -> list[Report | str]:
    """Starts all ranks and collects a report of each; stops the rest at the first one that fails."""
    context = multiprocessing.get_context("spawn")
    ranks: dict[Connection, tuple[int, SpawnProcess]] = {}
    results: list[Report | str] = []
    try:
        for rank in range(plan.nproc):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(plan, rank, theirs), name=f"rank {rank}", daemon=True)
            process.start()
            theirs.close()  # the rank holds the only end: its death is an end of file here
            ranks[mine] = (rank, process)
        pending = set(ranks)
        while pending and not any(isinstance(result, str) for result in results):
            for pipe in wait(list(pending)):
                assert isinstance(pipe, Connection)
                pending.discard(pipe)
                results.append(_receive(pipe, *ranks[pipe]))
        return results
    finally:
        failed = len(results) < plan.nproc or any(isinstance(result, str) for result in results)
        for pipe, (_, process) in ranks.items():
            if failed:
                process.terminate()
            process.join()
            pipe.close()


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


def _rank(plan: Plan, rank: int, pipe: Connection) -> None:
    """The life of one rank: the whole use of the library is in here."""
    result: Report | str
    try:
        with ShmStore(plan.name, rank=rank, create=False, timeout=plan.timeout) as store:
            result = _play(plan, rank, store)
    except Exception as error:
        result = f"rank {rank} (pid {os.getpid()}): {type(error).__name__}: {error}"
    pipe.send(result)


def _play(plan: Plan, rank: int, store: ShmStore) -> Report:
    held = secrets.token_hex(3)
    saw: list[bytes] = []
    exchange_ms = _timed(
        lambda: saw.extend(elastic.synchronize(store, held.encode(), rank, plan.nproc, "values/", plan.timeout))
    )
    if rank == plan.kill:
        os.kill(os.getpid(), signal.SIGKILL)
    store_ms, elastic_ms, early = [], [], 0
    for i in range(plan.rounds):
        store.add(f"arrived/a{i}", 1)
        store_ms.append(_timed(lambda i=i: store.barrier(f"a{i}", plan.nproc)))  # type: ignore[misc]
        early += store.get(f"arrived/a{i}") != b"%d" % plan.nproc
        store.add(f"arrived/b{i}", 1)
        elastic_ms.append(
            _timed(lambda i=i: elastic.barrier(store, plan.nproc, f"b{i}", plan.timeout, rank))  # type: ignore[misc]
        )
        early += store.get(f"arrived/b{i}") != b"%d" % plan.nproc
    texts = tuple(value.decode() for value in saw)
    return Report(rank, os.getpid(), held, texts, exchange_ms, tuple(store_ms), tuple(elastic_ms), early)


def _gone(name: str) -> bool:
    try:
        ShmStore(name, create=False).close()
    except SegmentNotFoundError:
        return True
    return False


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _faults(plan: Plan, reports: list[Report]) -> list[str]:
    if len(reports) < plan.nproc:
        return []  # said already: a rank failed, and nothing can be told of the rest
    held = {report.rank: report.held for report in reports}
    everything = tuple(held[rank] for rank in range(plan.nproc))
    wrong = [
        f"rank {r.rank} saw {', '.join(r.saw)} but was to see {', '.join(everything)}"
        for r in reports
        if r.saw != everything
    ]
    return wrong + [f"rank {r.rank} passed {r.early} barriers early" for r in reports if r.early]


def _table(plan: Plan, sync: str, reports: list[Report]) -> Table:
    table = Table(title=f"{plan.nproc} processes, {plan.rounds} rounds, sync={sync}, segment {plan.name}")
    table.add_column("rank", justify="right")
    table.add_column("pid", justify="right")
    table.add_column("holds")
    table.add_column("saw")
    table.add_column("synchronize\nwaited ms", justify="right")
    table.add_column("Store.barrier\nwaited ms", justify="right")
    table.add_column("elastic.barrier\nwaited ms", justify="right")
    for r in reports:
        table.add_row(
            str(r.rank),
            str(r.pid),
            r.held,
            _few(list(r.saw)),
            f"{r.exchange_ms:.2f}",
            _times(r.store_ms),
            _times(r.elastic_ms),
        )
    return table


def _few(texts: list[str]) -> str:
    return " ".join(texts if len(texts) <= 4 else [*texts[:3], f"… {len(texts)} in all"])


def _times(waits_ms: tuple[float, ...]) -> str:
    if len(waits_ms) <= 3:
        return " ".join(f"{ms:.2f}" for ms in waits_ms)
    ordered = sorted(waits_ms)
    return f"median {ordered[len(ordered) // 2]:.2f}\nmax {ordered[-1]:.2f}"
