"""The demo as its users start it: in a shell."""

from __future__ import annotations

import ctypes
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pytest.importorskip("click", reason="the command line needs the extra cli")
pytest.importorskip("rich", reason="the command line needs the extra cli")

from click.testing import CliRunner, Result

import shmstore
from shmstore.cli.count import WAITS, Report, Tally
from shmstore.cli.demo import _faults, _shown
from shmstore.cli.main import main

COMMAND = [sys.executable, "-m", "shmstore.cli", "demo"]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str
    pid: int

    @property
    def rows(self) -> dict[str, list[str]]:
        """The cells of the table's rows, by the first one."""
        lines = [line.split() for line in self.stdout.splitlines() if line.startswith("  ")]
        table = [cells for cells in lines if cells and re.fullmatch(r"\d+|all|single", cells[0])]
        return {cells[0]: cells[1:] for cells in table if len(cells) in (5, 6, 9)}

    @property
    def segments(self) -> list[str]:
        """What this demo left in /dev/shm; others may be running."""
        return [name for name in os.listdir("/dev/shm") if f"demo-{self.pid}-" in name]


def obey_modes() -> None:
    """In the child, before it becomes the demo: takes the right to read everything from root."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(
            24, capability, 0, 0, 0
        )  # PR_CAPBSET_DROP; refused to those who are not root, and have no such right


def demo(*args: str | bytes) -> Done:
    with subprocess.Popen(
        [*COMMAND, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=obey_modes,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=80)
        finally:
            process.kill()
    return Done(process.returncode, out, err, process.pid)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[bytes]:
    """A tree with all that a tree may have. 41 files can be read, with i words and i lines each for i < 40."""
    root = tmp_path / os.fsdecode(b"tr\xe9e")
    (root / "sub" / "deep").mkdir(parents=True)
    for i in range(40):
        (root / ("sub" if i % 2 else "sub/deep") / f"{i}.txt").write_bytes(b"w\xff\xfe\n" * i)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe\n[bold]")).write_bytes(b"a name that is not text")
    (root / "sub" / "loop").symlink_to("..")
    (root / "nowhere").symlink_to("/nowhere")
    os.mkfifo(root / "pipe")
    (root / "secret").write_bytes(b"words " * 100)
    (root / "secret").chmod(0)
    (root / "closed").mkdir()
    (root / "closed" / "f").write_bytes(b"words " * 100)
    (root / "closed").chmod(0)
    yield os.fsencode(root)
    (root / "closed").chmod(0o700)  # or nobody can remove it


@pytest.mark.parametrize("sync", ["futex", "semaphore"])
def test_the_ranks_count_what_one_process_counts(tree: bytes, sync: str) -> None:
    done = demo("--nproc", "3", "--rounds", "3", "--sync", sync, "--path", tree)
    assert done.returncode == 0, done.stdout + done.stderr
    words = sum(range(40)) + 6
    counts = ["41", str(words), str(sum(range(40))), str(4 * sum(range(40)) + 23)]
    plain = {first: [cell.replace(",", "") for cell in cells] for first, cells in done.rows.items()}
    assert list(plain) == ["0", "1", "2", "all", "single"]
    assert plain["all"] == plain["single"][1:] == counts
    ranks = [plain[str(rank)] for rank in range(3)]
    assert len({row[0] for row in ranks}) == 3, "three processes"
    for column in range(4):
        assert sum(int(row[1 + column]) for row in ranks) == int(counts[column])
    assert all(len(row) == 8 and min(map(float, row[5:])) >= 0 for row in ranks)
    assert f"sync={sync}" in done.stdout
    assert re.search(r"42 files below .*/tr\\xe9e\n1 directory left out as unreadable", done.stdout)
    assert "1 file left out as unreadable, by all alike" in done.stdout
    assert re.search(r"Speedup: \d+\.\d\d, or \d+\.\d\d with", done.stdout)
    assert "OK: 3 processes counted 41 files" in done.stdout
    assert "counting" not in done.stdout, "nothing moves where nobody looks"
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    assert done.segments == []


def test_an_empty_tree(tmp_path: Path) -> None:
    done = demo("--nproc", "1", "--path", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.rows["all"] == done.rows["single"][1:] == ["0"] * 4
    assert done.segments == []


def test_on_a_terminal_a_bar_shows_the_progress(tree: bytes) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "--nproc", "1", "--path", tree],
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ) as process:  # fmt: skip
        os.close(theirs)
        out = b""
        try:
            while piece := os.read(ours, 1 << 16):
                out += piece
        except OSError:  # EIO: the other end was closed
            pass
        finally:
            os.close(ours)
            process.kill()
    assert process.returncode == 0, out.decode()
    assert b"counting" in out
    assert re.search(rb"4[1-3]/4[1-3]", out), "it ends full"


@pytest.mark.parametrize(("sync", "nproc", "rank"), [("futex", 2, 1), ("semaphore", 1, 0)])
def test_a_rank_that_dies_is_reported_and_nothing_stays(tree: bytes, sync: str, nproc: int, rank: int) -> None:
    done = demo("--nproc", str(nproc), "--sync", sync, "--kill", str(rank), "--path", tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"FAILED: rank {rank} \(pid \d+\) died: SIGKILL; the other ranks were stopped", done.stdout)
    assert re.search(r"had claimed and not finished: \S+\n", done.stdout) or nproc > 1, "alone it claims for certain"
    assert "OK" not in done.stdout
    assert "Traceback" not in done.stderr
    assert done.segments == []


def test_a_wait_that_times_out_is_reported(tmp_path: Path) -> None:
    done = demo("--nproc", "2", "--timeout", "0.000001", "--path", str(tmp_path))
    assert done.returncode == 1
    assert "FAILED: rank" in done.stdout
    assert done.segments == []


def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)  # without a block: takes minutes to count and no room
    with subprocess.Popen(
        [*COMMAND, "--nproc", "2", "--path", str(tmp_path)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            while not Done(0, "", "", process.pid).segments and process.poll() is None:
                time.sleep(0.01)
            time.sleep(0.3)
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    done = Done(process.returncode, out, err, process.pid)
    assert done.returncode == 1
    assert done.stderr.strip() == "Aborted!"
    assert done.segments == []


# -- without processes ------------------------------------------------------------------------------------------------


def report(rank: int, own: Tally, total: Tally) -> Report:
    return Report(rank, 10 + rank, own, total, dict.fromkeys(WAITS, 0.0), 0.0, 1.0)


def test_a_wrong_count_is_a_fault() -> None:
    both = Tally(3, 30, 5, 99, 1)
    reports = [report(0, Tally(2, 10, 5, 40, 0), both), report(1, Tally(1, 20, 0, 59, 1), both)]
    assert _faults(reports, both) == []
    for field in ("files", "words", "lines", "size_bytes", "skipped"):
        wrong = replace(both, **{field: 7})
        (fault,) = _faults(reports, wrong)
        assert f"the ranks counted {both}, the single process {wrong}" in fault
        (fault,) = _faults([reports[0], replace(reports[1], total=wrong)], both)
        assert fault.startswith(f"rank 1 was told that all counted {wrong}")
        assert len(_faults([reports[0], replace(reports[1], own=wrong)], both)) == 3


def test_a_difference_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree changes between the ranks and the single process."""
    both = Tally(1, 1, 1, 1)
    monkeypatch.setattr("shmstore.cli.demo._run", lambda *_: [report(0, both, both)])
    (tmp_path / "f").write_text("two words")
    result = run("demo", "--nproc", "1", "--path", str(tmp_path))
    assert result.exit_code == 1
    assert "FAILED: the ranks counted 1 files, 1 words" in result.output
    assert "the single process 1 files, 2 words" in result.output
    assert "OK" not in result.output


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


@pytest.mark.parametrize(
    "args",
    [["--nproc", "0"], ["--sync", "sleep"], ["--nproc", "2", "--kill", "2"], ["--path", "/none"], ["--path", __file__]],
)
def test_what_is_refused(args: list[str]) -> None:
    result = run("demo", *args)
    assert result.exit_code == 2
    assert "Usage" in result.output
    assert args[-2] in result.output


def test_help_and_version() -> None:
    assert "demo" in run("--help").output
    assert "standard library" in run("demo", "--help").output
    assert run("--version").output.split()[-1] == shmstore.__version__


def test_paths_are_shown_without_what_moves_the_cursor() -> None:
    assert _shown("a/é b\n\x1b[1m".encode() + b"\xff") == "a/é b\\n\\x1b[1m\\xff"
