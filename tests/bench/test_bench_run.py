"""Real sessions, small ones: rivals that are there, missing, unable, dying, and brought by somebody else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import main
from bench.host import allowed_cpus, cpus_for
from bench.launch import run
from bench.records import Case, Result, Sample, Timing, read, write
from bench.rivals import everyone
from bench.rivals.given import Given
from bench.rivals.limits import SKEW, FutexBarrier, PingPong
from bench.rivals.ours import Anonymous, Named
from bench.rivals.redis_unix import Redis
from bench.scenarios import SCENARIOS
from bench.scenarios.barriers import result as barrier_result
from bench.scenarios.base import Effort

TINY = Effort(quick=True, rounds=2, target_s=0.001)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> tuple[Result, str]:
    """One run of the command line: a scenario against HashStore, a store of somebody else's and one that is missing."""
    out = tmp_path_factory.mktemp("bench") / "out.json"
    words = ["verbs", "--quick", "--rounds", "3", "--rival", "shmstore HashStore", "--json", str(out)]
    stores = ["--store", "bench_stores:Plain", "--store", "no_such_module:make"]
    done = CliRunner().invoke(main, [*words, *stores], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return read(out), done.output


def test_each_verb_of_each_rival_has_its_samples(bench) -> None:
    result, _ = bench
    for verb in ("set", "get", "add", "check"):
        rows = {row.rival: row for row in result.rows if row.measure == verb}
        assert len(rows["shmstore HashStore"].samples) == 3
        assert all(sample > 0 for sample in rows["shmstore HashStore"].samples)
        if verb != "add":
            assert len(rows["bench_stores:Plain"].samples) == 3


def test_rounds_of_a_run_alternate(bench) -> None:
    result, _ = bench
    moments = sorted((at, row.measure, row.rival) for row in result.rows for at in row.at_s)
    order = [(measure, rival) for _, measure, rival in moments]
    assert len(order) == 3 * 9
    assert order == order[:9] * 3


def test_a_verb_that_is_not_there_is_said_to_be_missing(bench) -> None:
    result, text = bench
    (row,) = [row for row in result.rows if (row.rival, row.measure) == ("bench_stores:Plain", "add")]
    assert "has no add" in row.why
    assert "bench_stores:Plain (add)" in text


def test_a_rival_that_is_not_installed_is_named(bench) -> None:
    result, text = bench
    why = "the Python package no_such_module is not installed"
    assert result.missing == {"no_such_module:make": why}
    assert f"missing: no_such_module:make: {why}" in text


def test_the_machine_is_stamped(bench) -> None:
    result, _ = bench
    assert {"host", "kernel", "python", "cpus", "cpus_used", "packages", "load_1min_before", "command"} <= set(
        result.host
    )
    assert "shmstore" in result.host["packages"]


def test_show_and_compare_read_the_file(bench, tmp_path: Path) -> None:
    names = [str(tmp_path / f"{name}.json") for name in "ab"]
    for name in names:
        write(bench[0], Path(name))
    runner = CliRunner()
    assert "shmstore HashStore" in runner.invoke(main, ["--show", names[0]], catch_exceptions=False).output
    assert "1.00" in runner.invoke(main, ["--compare", *names], catch_exceptions=False).output


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["--store", "ftp://x"],
        ["--store", "nothing"],
        ["--compare", "a.json"],
        ["--cpus", "9999"],
        ["--show", "/nonexistent.json"],
        ["--rival", "nobody"],
    ],
)
def test_wrong_words_are_refused(words: list[str]) -> None:
    done = CliRunner().invoke(main, words)
    assert done.exit_code != 0
    assert "Traceback" not in done.output


def test_a_program_that_is_not_installed_is_named(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(Redis, "modules", ())
    assert Redis().missing() == "the program redis-server is not installed"
    assert FutexBarrier().missing() == "no C compiler: cc is not installed"


def test_one_that_dies_takes_nobody_with_it() -> None:
    (session,) = SCENARIOS["verbs"].sessions(TINY)
    rows = run(session, [Anonymous(), Given("bench_stores:Deadly")], allowed_cpus())
    by = {(row.rival, row.measure): row for row in rows}
    assert by["bench_stores:Deadly", "get"].why == "rank 0 died: SIGKILL"
    assert len(by["shmstore HashStore", "get"].samples) == 2


def test_processes_that_do_not_share_are_found_out() -> None:
    session = SCENARIOS["hot"].sessions(TINY)[0]
    rivals = [Named("futex"), Given("bench_stores:Plain"), Given("bench_stores:shared"), Given("shm://?sync=semaphore")]
    rows = run(session, rivals, allowed_cpus())
    assert {row.why for row in rows if row.rival == "bench_stores:Plain"} == {"another process does not see its keys"}
    for name in ("shmstore futex", "bench_stores:shared", "shm://?sync=semaphore"):
        assert {len(row.samples) for row in rows if row.rival == name} == {2}, name


def test_barriers_and_programs() -> None:
    session = SCENARIOS["barriers"].sessions(TINY)[0]
    rows = run(session, [Named("semaphore"), FutexBarrier(), PingPong()], allowed_cpus())
    by = {(row.rival, row.measure): row for row in rows}
    assert {len(row.samples) for row in rows if row.rival == "shmstore semaphore"} == {2}
    assert by["limit: futex barrier (C)", "elastic, skewed"].why == "is a barrier and no store"
    if shutil.which("cc"):
        assert len(by["limit: futex barrier (C)", "own, skewed"].samples) == 2
        assert len(by["limit: cache line, there and back (C)", "own, back to back"].samples) == 2


def test_memory_is_of_each_rival_alone() -> None:
    session = SCENARIOS["memory"].sessions(TINY)[0]
    rows = run(session, [Anonymous()], allowed_cpus())
    assert [len(row.samples) for row in rows] == [1]
    assert rows[0].samples[0] > 32  # a key's value at least
    assert rows[0].unit == "B"


def test_a_barrier_is_timed_from_the_last_arrival_to_the_last_departure() -> None:
    timings = [Timing((0, 100), (50, 190)), Timing((30, 120), (60, 180))]
    assert barrier_result(timings, 2000) == Sample(50e-9, 190e-9)  # the median of 30 and 70
    assert barrier_result(timings, 0) == Sample(95e-9, 190e-9)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_are_well_formed(name: str, quick: bool) -> None:
    effort = Effort(quick=quick, rounds=3, target_s=0.01)
    sessions = SCENARIOS[name].sessions(effort)
    cases = [(case.measure, sorted(case.params.items())) for session in sessions for case in session.cases]
    assert len(cases) == len({str(case) for case in cases})
    assert not SCENARIOS[name].axis or all(SCENARIOS[name].axis in dict(params) for _, params in cases)
    for contrast in SCENARIOS[name].contrasts(effort):
        for measure, params in (contrast.of, contrast.to):
            assert (measure, sorted(params.items())) in cases


def test_rivals_have_names_of_their_own() -> None:
    names = [rival.name for rival in everyone()]
    assert len(names) == len(set(names))
    assert names[:2] == ["shmstore futex", "shmstore semaphore"]


def test_the_cache_line_has_two_sides() -> None:
    def case(skew: int) -> Case:
        return Case("own", {SKEW: skew}, ("barrier",))

    assert PingPong().cannot(case(0), 2) is None
    assert PingPong().cannot(case(0), 4)
    assert PingPong().cannot(case(2000), 2)


def test_where_processes_run() -> None:
    assert cpus_for("one", [0, 1, 2], 0) == {2} == cpus_for("one", [0, 1, 2], None)
    assert [cpus_for("spread", [4, 6], i) for i in range(3)] == [{4}, {6}, {4}]
    assert cpus_for("spread", [4, 6], None) == {4, 6} == cpus_for("free", [4, 6], 1)
