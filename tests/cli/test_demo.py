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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pytest.importorskip("click", reason="the command line needs the extra cli")
pytest.importorskip("rich", reason="the command line needs the extra cli")

from click.testing import CliRunner, Result
from harness import Me, Team

import shmstore
from shmstore import Peer, ShmStore
from shmstore.cli import launch
from shmstore.cli.count import WAITS, Plan, Report
from shmstore.cli.demo import _faults, _obituary, _shown
from shmstore.cli.group import Notice
from shmstore.cli.launch import Death, Ranks
from shmstore.cli.main import main
from shmstore.cli.tally import Tally

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


def demo(*args: str | bytes, meanwhile: Callable[[int], None] = lambda _: None) -> Done:
    with subprocess.Popen(
        [*COMMAND, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=obey_modes,
    ) as process:  # fmt: skip
        try:
            meanwhile(process.pid)
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


# -- deaths -----------------------------------------------------------------------------------------------------------


def small(root: Path, files: int) -> str:
    """A tree of that many files, with one word each."""
    for i in range(files):
        (root / f"{i}").write_text("word\n")
    return str(root)


def huge(root: Path) -> None:
    """A file that takes a second to count, and no room."""
    with (root / "huge").open("wb") as file:
        file.truncate(1 << 30)


def peers_of(launcher: int) -> list[Peer]:
    """The ranks of a demo that runs, and were seen; none while there is no segment."""
    for name in os.listdir("/dev/shm"):
        if f"demo-{launcher}-" in name:
            with ShmStore(name.removeprefix("shmstore."), create=False) as store:
                return [peer for peer in store.peers() if peer.rank is not None]
    return []


def check_deaths(done: Done, nproc: int, dead: set[int], files: int) -> None:
    """The demo ended well although these ranks died, and said so."""
    assert done.returncode == 0, done.stdout + done.stderr
    deaths = dict(re.findall(r"^rank (\d+) \(pid (\d+)\) died: SIGKILL", done.stdout, re.MULTILINE))
    assert set(map(int, deaths)) == dead
    assert len(done.rows) == nproc + 2
    for rank, pid in deaths.items():
        assert done.rows[rank][0] == pid
        assert done.rows[rank][-1] == "died"
    assert done.rows["all"] == done.rows["single"][1:]
    assert sum(int(done.rows[str(rank)][1]) for rank in range(nproc)) == files
    assert f"OK: {nproc - len(dead)} of {nproc} processes counted {files} file" in done.stdout
    assert done.stderr == ""
    assert done.segments == []


@pytest.mark.parametrize("files", [1, 200])
@pytest.mark.parametrize(("sync", "rank"), [("futex", 0), ("semaphore", 1), ("futex", 2), ("semaphore", 0)])
def test_one_rank_is_killed_and_the_others_finish_its_work(tmp_path: Path, sync: str, rank: int, files: int) -> None:
    done = demo("--nproc", "3", "--sync", sync, "--kill", str(rank), "--path", small(tmp_path, files))
    check_deaths(done, 3, {rank}, files)
    assert "  2 of 2 survivors noticed, each at its next wait; in ms after the launcher saw the end" in done.stdout
    survivors = {str(each) for each in range(3) if each != rank}
    assert set(re.findall(r"^    rank (\d) [+-]\d+\.\d (?:in|at) the", done.stdout, re.MULTILINE)) == survivors
    (taken,) = re.findall(r"^  taken over from it: (\d) files?$", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^    rank \d counted \d+$", done.stdout, re.MULTILINE)) == int(taken) <= 1


def test_a_second_rank_is_killed_from_outside(tmp_path: Path) -> None:
    """Rank 0 dies by the option, in the third of four rounds; as soon as that is seen, somebody kills rank 2."""
    huge(tmp_path)  # sorted last: the last round takes long enough

    def kill(launcher: int) -> None:
        states: dict[int | None, Peer] = {}
        while 0 not in states or states[0].state != "dead":
            states = {peer.rank: peer for peer in peers_of(launcher)}
        os.kill(states[2].pid, signal.SIGKILL)

    done = demo("--nproc", "4", "--kill", "0", "--path", small(tmp_path, 300), meanwhile=kill)
    check_deaths(done, 4, {0, 2}, 301)


def test_a_rank_is_killed_from_outside_without_the_option(tmp_path: Path) -> None:
    """In the middle of a file that takes long enough."""
    huge(tmp_path)

    def kill(launcher: int) -> None:
        holder = None
        while holder is None:
            for name in os.listdir("/dev/shm"):
                if f"demo-{launcher}-" in name:
                    with ShmStore(name.removeprefix("shmstore."), create=False) as store:
                        holder = store.get("round/0/claim/0", 30)
        os.kill(int(holder.split()[1].rstrip(b":")), signal.SIGKILL)

    done = demo("--nproc", "2", "--rounds", "1", "--path", str(tmp_path), meanwhile=kill)
    dead = {rank for rank in range(2) if done.rows[str(rank)][-1] == "died"}
    check_deaths(done, 2, dead, 1)
    assert "  taken over from it: 1 file\n" in done.stdout


@pytest.mark.parametrize("sync", ["futex", "semaphore"])
def test_nobody_is_left(tmp_path: Path, sync: str) -> None:
    done = demo("--nproc", "1", "--sync", sync, "--kill", "0", "--path", small(tmp_path, 8))
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^rank 0 \(pid \d+\) died: SIGKILL", done.stdout, re.MULTILINE)
    assert "FAILED: no rank is left to finish the work" in done.stdout
    assert "OK" not in done.stdout
    assert done.stderr == ""
    assert done.segments == []


def test_a_rank_that_ends_before_it_joined_stops_all(name: str, team: Team) -> None:
    """The others would never learn of that from the store."""
    reports, deaths, faults = team.start(launched, name).result()
    assert (reports, deaths) == ([], [])
    assert re.match(r"rank \d \(pid \d+\) ended before it joined the others: exit code 0; ", faults[0])


def launched(_me: Me, name: str) -> tuple[list[Report], list[Death], list[str]]:
    launch.count.live = print  # type: ignore[assignment]  # what a rank does
    with ShmStore(name, create=True) as store, Ranks(Plan(name, b"/", 2, 1, 30.0)) as ranks:
        outcome = ranks.collect(store)
    return outcome.reports, outcome.deaths, outcome.faults


def test_an_obituary_names_some_of_many_survivors() -> None:
    death = Death(3, 13, "SIGKILL", 100.0)
    reports = [
        replace(
            report(rank, Tally(), ()),
            noticed=(Notice(3, 13, 100.0 + (rank - 1) / 1000, "in the exchange"),),
            taken=((3, 1), (2, 0)) if rank == 4 else (),
        )
        for rank in range(20)
    ]
    lines = _obituary(death, reports, [b"a", b"b\n"]).splitlines()
    assert lines[:4] == [
        "rank 3 (pid 13) died: SIGKILL. The launcher told nobody.",
        "  20 of 20 survivors noticed, each at its next wait; in ms after the launcher saw the end (-: before):",
        "    rank 0 -1.0 in the exchange",
        "    rank 1 +0.0 in the exchange",
    ]
    assert lines[-4:] == [
        "    rank 15 +14.0 in the exchange",
        "    and 4 more, the last +18.0",
        "  taken over from it: 1 file",
        "    rank 4 counted b\\n",
    ]
    lines = _obituary(replace(death, rank=5), reports, []).splitlines()
    assert lines[1:] == ["  no survivor noticed: nobody had to wait for it any more", "  taken over from it: 0 files"]


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_wait_that_times_out_is_reported(tmp_path: Path) -> None:
    done = demo("--nproc", "2", "--timeout", "0.000001", "--path", str(tmp_path))
    assert done.returncode == 1
    assert "FAILED: rank" in done.stdout
    assert done.segments == []


def heed_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so does all that it starts: this suite, maybe."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)  # without a block: takes minutes to count and no room
    with subprocess.Popen(
        [*COMMAND, "--nproc", "2", "--path", str(tmp_path)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=heed_ctrl_c,
    ) as process:  # fmt: skip
        try:
            while not Done(0, "", "", process.pid).segments and process.poll() is None:
                time.sleep(0.01)
            time.sleep(0.3)
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its ranks, too
    done = Done(process.returncode, out, err, process.pid)
    assert done.returncode == 1
    assert done.stderr.strip() == "Aborted!"
    assert done.segments == []


# -- without processes ------------------------------------------------------------------------------------------------


def report(rank: int, own: Tally, everyone: tuple[Tally, ...]) -> Report:
    return Report(rank, 10 + rank, own, everyone, dict.fromkeys(WAITS, 0.0), 0.0, 1.0)


def test_a_wrong_count_is_a_fault() -> None:
    both = Tally(3, 30, 5, 99, 1)
    everyone = (Tally(2, 10, 5, 40, 0), Tally(1, 20, 0, 59, 1))
    reports = [report(rank, own, everyone) for rank, own in enumerate(everyone)]
    assert _faults(reports, both) == []
    for field in ("files", "words", "lines", "size_bytes", "skipped"):
        wrong = replace(both, **{field: 7})
        (fault,) = _faults(reports, wrong)
        assert f"the ranks counted {both}, the single process {wrong}" in fault
        (fault,) = _faults([reports[0], replace(reports[1], everyone=(Tally(), everyone[1]))], both)
        assert fault == f"rank 1 knows that all counted {everyone[1]}, and rank 0 that {both}"
        (fault,) = _faults([reports[0], replace(reports[1], own=wrong)], both)
        assert fault == f"rank 1 counted {wrong}, and in its store it is {everyone[1]}"


def test_a_difference_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree changes between the ranks and the single process."""
    one = Tally(1, 1, 1, 1)
    monkeypatch.setattr("shmstore.cli.demo._run", lambda *_: launch.Outcome([report(0, one, (one,))]))
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
