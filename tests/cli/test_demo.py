"""The demo as its users start it: in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("click", reason="the command line needs the extra cli")
pytest.importorskip("rich", reason="the command line needs the extra cli")


def demo(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shmstore.cli", *args],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=80, check=False,
    )  # fmt: skip


def segments() -> list[str]:
    return [name for name in os.listdir("/dev/shm") if "demo-" in name and not name.endswith(".lock")]


def rows(out: str) -> list[list[str]]:
    """The cells of the table's rows, one line a rank."""
    lines = [[cell.strip() for cell in re.split("[│┃|]", line)[1:-1]] for line in out.splitlines()]
    return [cells for cells in lines if len(cells) == 7 and cells[0].isdecimal()]


@pytest.mark.parametrize("sync", ["futex", "semaphore"])
def test_every_process_sees_what_all_hold(sync: str) -> None:
    done = demo("demo", "--nproc", "3", "--rounds", "2", "--sync", sync)
    assert done.returncode == 0, done.stdout + done.stderr
    table = rows(done.stdout)
    assert [row[0] for row in table] == ["0", "1", "2"]
    assert len({row[1] for row in table}) == 3, "three processes"
    held = [row[2] for row in table]
    assert [row[3].split() for row in table] == [held] * 3
    for row in table:
        assert len(row[5].split()) == len(row[6].split()) == 2, "a wait for each round"
    assert f"sync={sync}" in done.stdout
    assert "OK: 3 processes" in done.stdout
    assert done.stderr == ""
    assert segments() == []


def test_many_rounds_are_summed_up() -> None:
    done = demo("demo", "--nproc", "6", "--rounds", "50")
    assert done.returncode == 0, done.stdout + done.stderr
    table = rows(done.stdout)
    assert [row[0] for row in table] == [str(rank) for rank in range(6)]
    assert all("median" in row[5] for row in table)
    assert "met at 100 barriers" in done.stdout


def test_one_process_alone() -> None:
    assert demo("demo", "--nproc", "1").returncode == 0


@pytest.mark.parametrize("sync", ["futex", "semaphore"])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_dies_is_reported_and_nothing_stays(sync: str, rank: int) -> None:
    done = demo("demo", "--nproc", "3", "--sync", sync, "--kill", str(rank))
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"FAILED: rank {rank} \(pid \d+\) died: SIGKILL", done.stdout)
    assert "OK" not in done.stdout
    assert "Traceback" not in done.stderr
    assert segments() == []


def test_a_wait_that_times_out_is_reported() -> None:
    done = demo("demo", "--nproc", "2", "--timeout", "0.000001")
    assert done.returncode == 1
    assert "FAILED: rank" in done.stdout
    assert segments() == []


def test_a_wrong_view_or_an_early_pass_is_a_fault() -> None:
    from shmstore.cli.demo import Plan, Report, _faults

    plan = Plan("n", nproc=2, rounds=1, timeout=1.0, kill=None)
    good = Report(0, 10, "a", ("a", "b"), 0.1, (0.1,), (0.1,), early=0)
    other = Report(1, 11, "b", ("a", "b"), 0.1, (0.1,), (0.1,), early=0)
    assert _faults(plan, [good, other]) == []
    assert "rank 1 saw b, a" in _faults(plan, [good, replace(other, saw=("b", "a"))])[0]
    assert "rank 1 passed 1 barriers early" in _faults(plan, [good, replace(other, early=1)])[0]


@pytest.mark.parametrize("args", [["--nproc", "0"], ["--sync", "sleep"], ["--nproc", "2", "--kill", "2"]])
def test_what_is_refused(args: list[str]) -> None:
    done = demo("demo", *args)
    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_help_and_version() -> None:
    import shmstore

    assert "demo" in demo("--help").stdout
    assert demo("--version").stdout.split()[-1] == shmstore.__version__
