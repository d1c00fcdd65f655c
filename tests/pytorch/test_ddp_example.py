"""docs/examples/ddp.py: by itself and under torchrun, whole, with a rank that is killed, and with a restart after that.

With two ranks a sum does not depend on its order, so that runs of two end with the same bits, resumed or not.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kinds import torchs

from shmstore._names import SHM

torchs("torch.distributed", "the example trains with torch")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "ddp.py"
LIMIT_S = 80
MARK = "SHMSTORE_TEST_RUN"
PEER_DIED = 3


@dataclass(frozen=True)
class Run:
    """A run of the example that is over."""

    status: int
    out: str
    err: str
    folder: Path

    def __str__(self) -> str:
        return f"status {self.status}\n{self.out}\n{self.err}"

    @property
    def losses(self) -> list[float]:
        return [float(loss) for loss in re.findall(r"^epoch \d+: loss ([\d.]+)", self.out, re.MULTILINE)]

    @property
    def digest(self) -> str:
        """Of the parameters that all ranks ended with."""
        found = re.search(r"^OK: \d ranks have the same parameters, (\w+), and a single", self.out, re.MULTILINE)
        assert found, self
        return found[1]

    @property
    def witnesses(self) -> list[tuple[int, int, int]]:
        """Who said that a rank died: itself, that rank, and its pid."""
        told = re.findall(r"^rank (\d+): rank (\d+) \(pid (\d+)\) died; leaving$", self.out, re.MULTILINE)
        return sorted((int(who), int(dead), int(pid)) for who, dead, pid in told)


def by_itself(name: str, folder: Path, nproc: int, *more: str) -> Run:
    return run(name, folder, str(EXAMPLE), "--name", name, "--nproc", str(nproc), *more)


def by_torchrun(name: str, folder: Path, nproc: int, *more: str, restarts: int = 0) -> Run:
    options = ["--rdzv-backend=shm", f"--rdzv-id={name}", f"--nproc-per-node={nproc}", f"--max-restarts={restarts}"]
    return run(name, folder, "-m", "torch.distributed.run", *options, str(EXAMPLE), *more)


def run(name: str, folder: Path, *arguments: str) -> Run:
    """Runs it to its end; then nothing of it may be left, neither a segment nor a process."""
    folder.mkdir()
    (folder / "tmp").mkdir()  # torchrun leaves a folder for logs
    environ = {key: value for key, value in os.environ.items() if key != "SHMSTORE_JOB"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, *arguments, "--folder", str(folder / "checkpoints")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp"), MARK: name},
    )
    try:
        out, err = process.communicate(timeout=LIMIT_S)
        done = Run(process.returncode, out, err, folder / "checkpoints")
        assert not ended(name, 10), f"processes are left of {done}"
        assert not [entry for entry in os.listdir(SHM) if name in entry], f"a segment is left of {done}"
        return done
    finally:
        for pid in processes(name):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def processes(name: str) -> list[int]:
    """The processes of a run that live: all have its mark in their environment, whatever session they are in."""
    mark = f"{MARK}={name}".encode()
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                found.append(int(entry))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def ended(name: str, limit_s: float) -> list[int]:
    """Waits for the processes of a run, as multiprocessing's tracker ends after its parent; who has not ended then."""
    end = time.monotonic() + limit_s
    for pid in processes(name):
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            select.select([fd], [], [], max(0.0, end - time.monotonic()))
        finally:
            os.close(fd)
    return processes(name)


def survived(run: Run, world: int, dead: int) -> int:
    """Checks that all others named the dead rank, and that its checkpoint does not count; the pid they gave."""
    pids = {pid for _, _, pid in run.witnesses}
    assert len(pids) == 1, run
    (pid,) = pids
    assert run.witnesses == [(rank, dead, pid) for rank in range(world) if rank != dead], run
    assert "Traceback" not in run.out, run
    assert len(run.losses) == 2, run
    assert json.loads((run.folder / "latest.json").read_text()) == {"epoch": 2, "world": world}
    assert {f"epoch-2.rank-{rank}.pt" for rank in range(world)} <= {path.name for path in run.folder.iterdir()}
    return pid


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run of two processes that it starts itself."""
    yield by_itself(f"t-{os.getpid()}-{uuid.uuid4().hex[:10]}", tmp_path_factory.mktemp("ddp") / "whole", 2)


def test_by_itself(whole: Run) -> None:
    assert whole.status == 0, whole
    assert "exit codes: 0 0\n" in whole.out
    assert whole.digest
    assert len(whole.losses) == 4, whole
    assert whole.losses == sorted(whole.losses, reverse=True), whole
    assert whole.losses[-1] < whole.losses[0] / 10, whole
    names = {path.name for path in whole.folder.iterdir()}
    assert names == {"latest.json", "epoch-4.rank-0.pt", "epoch-4.rank-1.pt"}


def test_by_torchrun(name: str, tmp_path: Path, whole: Run) -> None:
    done = by_torchrun(name, tmp_path / "torchrun", 2)
    assert done.status == 0, done
    assert done.losses == whole.losses
    assert done.digest == whole.digest


def test_by_itself_survivors_name_the_dead_and_leave(name: str, tmp_path: Path) -> None:
    done = by_itself(name, tmp_path / "kill", 3, "--kill", "0")
    assert done.status == 1, done
    assert f"exit codes: -9 {PEER_DIED} {PEER_DIED}\n" in done.out, done
    survived(done, 3, 0)
    assert "Traceback" not in done.err, done


def test_by_torchrun_survivors_name_the_dead_and_leave(name: str, tmp_path: Path) -> None:
    done = by_torchrun(name, tmp_path / "kill", 3, "--kill", "2")
    assert done.status == 1, done
    pid = survived(done, 3, 2)
    # What torchrun saw of its workers: each failure's rank, status and pid.
    seen = re.findall(r"rank +: (\d+) .*\n +exitcode +: (-?\d+) \(pid: (\d+)\)", done.err)
    assert sorted((int(rank), int(status)) for rank, status, _ in seen) == [(0, PEER_DIED), (1, PEER_DIED), (2, -9)]
    assert [int(its) for rank, _, its in seen if rank == "2"] == [pid]
    assert f"Sending process {pid}" not in done.err


def test_a_restart_goes_on_from_the_last_whole_checkpoint_and_ends_the_same(
    name: str, tmp_path: Path, whole: Run
) -> None:
    done = by_torchrun(name, tmp_path / "restart", 2, "--kill", "0", restarts=1)
    assert done.status == 0, done
    assert [(who, dead) for who, dead, _ in done.witnesses] == [(1, 0)], done
    assert done.out.count("goes on after epoch 2\n") == 1, done
    assert done.losses == whole.losses
    assert done.digest == whole.digest
