"""Runs sessions: each in a fresh process, and again without the rival that took it down.

The process is the leader of a process group of its own, so that whatever it started can be ended with it. Its errors go
to a file, of which the last line is shown when it dies without an answer.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from bench.host import SHM
from bench.records import Row, Session
from bench.rivals.base import Rival
from bench.session import Order

__all__ = ["run"]

BOOT = "from bench.session import main; main()"
JOIN_S = 60.0
"""Seconds that a session may take to close its stores, after its rows have come."""


def run(session: Session, rivals: Sequence[Rival], cpus: Sequence[int]) -> list[Row]:
    """All rows of a session. A rival that hangs or dies gets rows that say so, and the others are run without it."""
    if not session.alone:
        return _survive(session, rivals, cpus)
    once = replace(session, alone=False, rounds=1)
    rounds = [[row for rival in rivals for row in _survive(once, [rival], cpus)] for _ in range(session.rounds)]
    return [_joined(rows) for rows in zip(*rounds, strict=True)]


def _joined(rows: Sequence[Row]) -> Row:
    """One row of the same case and rival's rows."""
    good = [row for row in rows if not row.why]
    if not good:
        return rows[0]
    samples = tuple(sample for row in good for sample in row.samples)
    return replace(good[0], samples=samples, at_s=tuple(at_s for row in good for at_s in row.at_s))


def _survive(session: Session, rivals: Sequence[Rival], cpus: Sequence[int]) -> list[Row]:
    lost: dict[str, str] = {}
    while True:
        left = [rival for rival in rivals if rival.name not in lost]
        outcome = _once(session, left, cpus)
        if isinstance(outcome, tuple):
            lost[outcome[0]] = outcome[1]
            continue
        rows = {(row.rival, id_): row for row, id_ in zip(outcome, _case_numbers(session, left), strict=True)}
        return [
            rows.get((rival.name, j))
            or Row(session.scenario, case.measure, dict(case.params), case.unit, rival.name, why=lost[rival.name])
            for j, case in enumerate(session.cases)
            for rival in rivals
        ]


def _case_numbers(session: Session, rivals: Sequence[Rival]) -> list[int]:
    return [j for j in range(len(session.cases)) for _ in rivals]


def _once(session: Session, rivals: Sequence[Rival], cpus: Sequence[int]) -> list[Row] | tuple[str, str]:
    """The rows, or (rival, why) of the one that is lost.

    Raises:
        RuntimeError: the process ended without an answer: a fault of the harness.
    """
    token = f"bench-{os.getpid()}-{secrets.token_hex(4)}"
    with _directory(token) as directory, (directory / "errors").open("wb") as errors, _process(errors.fileno()) as pipe:
        (directory / "stores").mkdir()
        pipe.send(Order(session, tuple(rivals), tuple(cpus), token, directory / "stores"))
        try:
            kind, what = pipe.recv()
        except EOFError:
            said = (directory / "errors").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(f"the session of {session.scenario} died: {said[-1] if said else 'no word'}") from None
    return (str(what[0]), str(what[1])) if kind == "lost" else list(what)


@contextmanager
def _process(errors: int) -> Iterator[Connection]:
    """A session's process, and the pipe to it."""
    ours, theirs = socket.socketpair()
    path = os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])  # what is importable here is there too
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(  # noqa: S603 -- this very interpreter
        [sys.executable, "-c", BOOT, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=errors,
        stderr=errors,
        env=environment,
        start_new_session=True,
    )
    theirs.close()
    pipe = Connection(ours.detach())
    good = False
    try:
        yield pipe
        good = True
    finally:
        pipe.close()
        try:
            process.wait(JOIN_S if good else 0)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


@contextmanager
def _directory(token: str) -> Iterator[Path]:
    """An empty directory, on tmpfs where there is one: the best case of the rivals that keep files."""
    where = SHM if os.access(SHM, os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="bench-", dir=where))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        for left in SHM.glob(f"*{token}*"):  # of processes that were ended by force
            left.unlink(missing_ok=True)
