"""What every test gets: the helpers on the path, a time limit, and a check that nothing was left behind.

With `--numprocesses` (pytest-xdist) each process that runs tests has a /dev/shm of its own, where it may mount one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# `harness` and `workers` are imported by name, also by spawned children, under every pytest import mode.
sys.path.insert(0, str(Path(__file__).parent))

import proofs
from harness import Team
from stem import Stem

# torch's TCPStore asks for the name of each peer, also where that is 127.0.0.1, and glibc waits 5 s for each answer of
# a name server that got lost: here for one, once. It reads this when a process first looks a name up, and not again.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

SHM = Path("/dev/shm")
LIMIT_S = 90
SLOW_S = 0.02
CLONE_NEWNS = 0x00020000
MS_REC_PRIVATE = 0x4000 | 0x40000
RECORDS = pytest.StashKey[list[proofs.Record]]()
OUTCOME = pytest.StashKey[tuple[str, str]]()  # of a test: what became of it so far, and why


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaks: the test may leave things behind (say why)")
    config.addinivalue_line("markers", "shows(row): passed, the test is a case of that row of the table (proofs.py)")
    config.stash[RECORDS] = []
    if hasattr(config, "workerinput"):
        own_shm()


def own_shm() -> None:
    """From here on this thread and all that it starts see a /dev/shm that other tests are not in.

    Without the rights for it they share one, as other programs do: no test counts on being alone there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None):
        return
    if libc.mount(b"tmpfs", bytes(SHM), b"tmpfs", 0, b"mode=1777"):
        raise OSError(ctypes.get_errno(), f"mount at {SHM}: {os.strerror(ctypes.get_errno())}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LIMIT_S))


def pytest_collection_finish() -> None:
    """Thousands of collected items need no look at each of the collections below: they stay."""
    gc.collect()
    gc.freeze()


def shm_entries() -> set[str]:
    """The segments in /dev/shm that this run made: each name a test gives carries the run's pid (`name`, below).

    Others' segments come and go meanwhile; the lock file of an owner, .shmstore.lock.<uid>, stays by design.
    """
    mine = re.compile(rf"shmstore\..*\b{os.getpid()}\b")
    return {name for name in os.listdir(SHM) if mine.match(name)}


def fds() -> dict[int, str]:
    out = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            out[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of the listing itself
            continue
    return out


def children() -> set[int]:
    """Of all threads of this process, also those that have ended and were not reaped."""
    found: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone, and its children are another's
            found.update(map(int, Path(f"/proc/self/task/{thread}/children").read_text().split()))
    return found


def collect() -> None:
    """Before a test. A collection that takes long looks at much that stays: half a million objects and 100 ms, after an
    import of torch. No later one need look at them again.
    """
    start = time.perf_counter()
    gc.collect()
    if time.perf_counter() - start > SLOW_S:
        gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    collect()
    entries, descriptors, threads, processes = shm_entries(), fds(), set(threading.enumerate()), children()
    yield
    if request.node.get_closest_marker("leaks"):
        return
    gc.collect()
    end = time.monotonic() + 3
    for thread in set(threading.enumerate()) - threads:
        thread.join(max(0.0, end - time.monotonic()))
    assert not set(threading.enumerate()) - threads, "threads left behind"
    assert not shm_entries() - entries, "segments left behind"
    after = fds()
    new = {fd: target for fd, target in after.items() if fd not in descriptors}
    assert not new, "descriptors left behind"
    assert not children() - processes, "children left behind"


@pytest.fixture
def name() -> str:
    """A segment name of this test's own."""
    return f"t-{os.getpid()}-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def path(name: str) -> Iterator[Path]:
    """Where the segment of that name is; removed at the end where a test leaves it on purpose."""
    path = SHM / f"shmstore.{name}"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def team() -> Iterator[Team]:
    """Processes of the test's own; one that hangs is told before pytest's limit."""
    with Team(80) as team:
        yield team


@pytest.fixture(scope="session")
def stem() -> Iterator[Stem]:
    """What forks fresh processes, for all tests of the run that ask for it."""
    stem = Stem()
    yield stem
    stem.close()


# -- what tests have shown, in figures --------------------------------------------------------------------------------


def is_shown(item: pytest.Item) -> bool:
    """True for a test that the table knows: it takes `proof`, or is marked `shows`."""
    return "proof" in getattr(item, "fixturenames", ()) or item.get_closest_marker("shows") is not None


def keep(item: pytest.Item, state: str, what: str = "", **figures: object) -> None:
    """A record of the test, or of what it has shown."""
    what = what or f"{item.path.parent.name}: {item.path.name}::{item.name}"
    item.config.stash[RECORDS].append(proofs.record(state, what, **figures))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if is_shown(item):
        keep(item, "began")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.outcome != "passed" and item.stash.get(OUTCOME, ("", ""))[0] != "failed":
        why = str(report.longrepr[2]) if report.skipped and isinstance(report.longrepr, tuple) else "see its report"
        item.stash[OUTCOME] = (report.outcome, why.removeprefix("Skipped: "))
    if report.when == "teardown" and is_shown(item):
        state, why = item.stash.get(OUTCOME, ("passed", ""))
        marker = item.get_closest_marker("shows")
        if marker is not None and state == "passed":
            given = getattr(item, "callspec", None)
            engines = [value for value in given.params.values() if value in proofs.BOTH] if given else []
            keep(item, "ended", *marker.args, **({"engine": engines[0]} if engines else {}), **{proofs.CASES: 1})
        keep(item, state, **({"why": why} if why else {}))
    return report


@pytest.fixture
def proof(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """proof("life: create by name", kills=40, overtaken=7): figures of this test, for the table that the run ends with.

    The first argument is a part of `proofs.PARTS` and a row of it, the others are the figures: int, str, or a float,
    which is shown with one decimal. To be called once or more, after what they are about has been found to be so; or
    before that, where the figures say it (`proofs.LOSSES`). A test that took this and fails, is skipped, or does not
    come to its end is shown as that. `proofs.LONG` says that the long form is asked for.
    """
    shown = 0

    def proof(what: str, **figures: object) -> None:
        nonlocal shown
        keep(request.node, "ended", what, **figures)
        shown += 1

    yield proof
    if OUTCOME not in request.node.stash:
        assert shown, "it took `proof`, passed and showed nothing: let it call proof(...) with what it found"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["records"] = [one.line() for one in session.config.stash[RECORDS]]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The records of one of several processes, to the one that speaks for all of them."""
    lines = getattr(node, "workeroutput", {}).get("records", [])
    node.config.stash[RECORDS] += map(proofs.Record.of, lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[RECORDS] and not proofs.nested():  # else whoever runs this prints a table of all
        terminalreporter.section("what was shown")
        for line in proofs.head(proofs.Asked().form) + proofs.table(config.stash[RECORDS]):
            terminalreporter.write_line(line)
