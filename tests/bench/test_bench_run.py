"""Real sessions, small ones: rivals that are there, missing, unable, dying, and brought by somebody else."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import main
from bench.groups import Start, failed, until_up
from bench.hogs import hogs
from bench.host import allowed_cpus, cpus_for
from bench.launch import run
from bench.meetings import WARM, again, at_keys, result, warm
from bench.records import Case, Result, Sample, Timing, read, write
from bench.rivals import Place, everyone
from bench.rivals.given import Given
from bench.rivals.groups import FAILED, UP, Group, quiet_port
from bench.rivals.limits import HOGS, PARKS, SKEW, WAY, FutexBarrier, PingPong
from bench.rivals.mpi import Mpi
from bench.rivals.ours import Anonymous, Named
from bench.rivals.redis_unix import Redis
from bench.rivals.standard import MpBarrier
from bench.rivals.wire import Wire
from bench.scenarios import SCENARIOS
from bench.scenarios.base import Effort
from bench.scenarios.wire import BY, LOCAL

TINY = Effort(quick=True, rounds=2, target_s=0.001)
FULL = Effort(quick=False, rounds=2, target_s=0.001)


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
        ["barriers", "--processes", "3"],
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


@pytest.mark.parametrize("hogged", [False, True])
def test_barriers_and_programs(hogged: bool) -> None:
    session = next(each for each in SCENARIOS["barriers"].sessions(TINY) if each.hogs == hogged)
    session = dataclasses.replace(session, rounds=2)
    rows = run(session, [Named("semaphore"), Anonymous(), MpBarrier(), FutexBarrier(), PingPong()], allowed_cpus())
    by = {(row.rival, row.params[WAY], row.measure): row for row in rows}
    for ours in ("shmstore semaphore", "shmstore HashStore"):
        assert {row.why for row in rows if row.rival == ours} == {""}
        assert {len(row.samples) for row in rows if row.rival == ours} == {2}
    for pattern in {case.measure for case in session.cases}:
        assert len(by["multiprocessing.Barrier", "Barrier", pattern].samples) == 2
        assert by["multiprocessing.Barrier", PARKS, pattern].why == "always sleeps in a semaphore"
        assert by["limit: futex barrier (C)", "elastic", pattern].why == "is a barrier and no store"
        if shutil.which("cc"):
            assert len(by["limit: futex barrier (C)", "Barrier", pattern].samples) == 2
            assert len(by["limit: futex barrier (C)", PARKS, pattern].samples) == 2
    if shutil.which("cc") and not hogged:
        assert len(by["limit: cache line, there and back (C)", "Barrier", "back to back"].samples) == 2


def test_a_store_without_a_reusable_barrier_says_so() -> None:
    case = next(case for case in SCENARIOS["barriers"].sessions(TINY)[0].cases if case.params[WAY] == "Barrier")
    assert Redis().cannot(case, 2) == "has no barrier that serves again"
    assert Named("futex").cannot(case, 2) is None


def test_the_barrier_is_timed_with_ranks() -> None:
    rival = Named("futex")
    with rival.host(Place(f"bench-test-{os.getpid()}", Path(), 2), None) as address:
        store = rival.open(address, None, 1, 2)
        assert [peer.rank for peer in store.peers() if peer.rank is not None] == [1]
        store.close()


@pytest.mark.skipif(Mpi().missing() is not None, reason="no MPI")
def test_one_mpi_job_serves_a_session(tmp_path: Path) -> None:
    session = SCENARIOS["barriers"].sessions(TINY)[0]
    spread = next(case for case in session.cases if case.params[SKEW])
    with Mpi().started(session, allowed_cpus(), tmp_path) as run_:
        assert run_(session.cases[0], 3).value > 0
        assert run_(spread, 2).value > 0


@pytest.mark.skipif(Mpi().missing() is not None, reason="no MPI")
def test_an_mpi_job_that_does_not_start_says_why(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("bench.rivals.mpi.OPEN_MPI", ("--no-such-option",))
    session = SCENARIOS["barriers"].sessions(TINY)[0]
    with pytest.raises(RuntimeError, match="mpirun started 0 of 2 ranks"), Mpi().started(session, [0], tmp_path):
        pass


def test_each_core_has_its_hog_at_our_priority() -> None:
    cores = allowed_cpus()
    with hogs(cores) as pids:
        assert [os.sched_getaffinity(pid) for pid in pids] == [{core} for core in cores]
        assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids} == {os.getpriority(os.PRIO_PROCESS, 0)}
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_memory_is_of_each_rival_alone() -> None:
    session = SCENARIOS["memory"].sessions(TINY)[0]
    rows = run(session, [Anonymous()], allowed_cpus())
    assert [len(row.samples) for row in rows] == [1]
    assert rows[0].samples[0] > 32  # a key's value at least
    assert rows[0].unit == "B"


@pytest.mark.parametrize("server", ["shmstore", "libuv"])
def test_servers_on_the_wire(server: str) -> None:
    rival = Wire("shmstore", server)
    if rival.missing():
        pytest.skip(str(rival.missing()))
    for session in (SCENARIOS["wire"].sessions(TINY)[1], SCENARIOS["release"].sessions(TINY)[0]):
        for row in run(session, [rival], allowed_cpus()):
            if server != "shmstore" and row.params.get(BY) == LOCAL:
                assert row.why == "its keys are reached over the wire only"
            else:
                assert (row.why, len(row.samples)) == ("", 2)
                assert all(sample > 0 for sample in row.samples)


def test_a_quantile_is_of_the_calls_of_all() -> None:
    (wire,) = [SCENARIOS["wire"]]
    timings = [Timing((0, 10), (3, 14), 0.5), Timing((0, 20), (9, 25), 0.5)]
    assert wire.sample(4, timings).value == 4e-9  # of 3 4 5 9
    assert wire.sample(4, [dataclasses.replace(each, value=0.99) for each in timings]).value == 9e-9
    assert wire.sample(4, [dataclasses.replace(each, value=None) for each in timings]).value == 25e-9 / 8


def test_servers_have_scenarios_of_their_own() -> None:
    kinds = {rival.name: rival.kind for rival in everyone()}
    assert {name for name, kind in kinds.items() if kind == "wire"} == {n for n in kinds if n.endswith(" server")}
    done = CliRunner().invoke(main, ["wire", "--quick", "--rival", "HashStore"])
    assert done.exit_code != 0
    assert "none of the rivals" in done.output


def test_the_aims_of_the_wire() -> None:
    aims = SCENARIOS["wire"].aims(FULL)
    assert {aim.place for aim in aims} == {"1 process", "4 processes", "16 processes", "64 processes"}
    assert {(aim.place, aim.at_least) for aim in aims if aim.at_most is None} == {
        ("1 process", 1.0), ("4 processes", 1.2), ("16 processes", 1.2), ("64 processes", 1.2),
    }  # fmt: skip
    assert {(aim.of[1], aim.at_most) for aim in aims if aim.at_most is not None} == {
        ("get, median", 1.1), ("get, p99", 0.0),
    }  # fmt: skip
    assert [aim.at_most for aim in SCENARIOS["release"].aims(FULL)] == [1.5]


needs_torch = pytest.mark.skipif(Group("env").missing() is not None, reason="no torch")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes stay on the memory that they share with this one: here it is not their time that counts."""
    monkeypatch.setattr("bench.groups.make_own", lambda: None)


@needs_torch
@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("way", ["env", "agent", "shm", "file"])
def test_a_group_of_new_processes_in_each_round(way: str) -> None:
    (session,) = SCENARIOS["group"].sessions(TINY)
    params = {"processes": 2}
    session = dataclasses.replace(
        session, processes=2, rounds=2, cases=(dataclasses.replace(session.cases[0], params=params),)
    )
    (row,) = run(session, [Group(way)], allowed_cpus())
    assert (row.why, len(row.samples), row.operations) == ("", 2, 1)
    assert all(0 < sample < 60 for sample in row.samples)
    assert not [left for left in os.listdir("/dev/shm") if left.startswith(("bench-", "shmstore.bench-"))]


@needs_torch
@pytest.mark.usefixtures("shared")
def test_jobs_that_get_into_each_others_way_are_counted() -> None:
    (session,) = SCENARIOS["jobs"].sessions(TINY)
    params = {"jobs": 2, "processes": 4, "limit_s": 1}
    cases = tuple(dataclasses.replace(case, params=params) for case in session.cases)
    session = dataclasses.replace(session, processes=4, rounds=1, cases=cases)
    by = {(row.rival, row.measure): row for row in run(session, [Group("env"), Group("shm")], allowed_cpus())}
    assert by[Group("shm").name, FAILED].samples == (0.0,)
    assert by[Group("shm").name, UP].samples[0] > 0
    assert by[Group("env").name, FAILED].samples[0] >= 1  # one of two has the port, and may have the other's process
    assert by[Group("env").name, FAILED].unit == "n"


def test_jobs_that_failed_have_no_part_in_the_time() -> None:
    starts = [
        Start((Timing((5,), (30,)), Timing((10,), (40,)))),
        Start(why="port taken"),
        Start((Timing((8,), (25,)),)),
    ]
    assert until_up(starts).value == 35e-9
    assert failed(starts).value == 1
    with pytest.raises(RuntimeError, match="no job came up: port taken"):
        until_up(starts[1:2])


@needs_torch
def test_groups_have_scenarios_of_their_own() -> None:
    here = {rival.name for rival in everyone() if rival.kind == "group"}
    assert here == {Group(way).name for way in ("env", "picked", "agent", "shm", "file")}
    (case,) = SCENARIOS["group"].sessions(TINY)[0].cases
    assert "one job only" in Group("picked").cannot(case, 8)
    assert Group("picked").cannot(SCENARIOS["jobs"].sessions(TINY)[0].cases[0], 8) is None


def test_a_quiet_port_is_none_of_the_kernels() -> None:
    assert 10_000 <= quiet_port() < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def test_the_aims_of_the_groups() -> None:
    aims = SCENARIOS["group"].aims(FULL)
    assert [(aim.place, aim.at_most) for aim in aims if aim.at_most] == [("8 processes", 1.1), ("16 processes", 1.1)]
    assert {(aim.of[0], aim.to[0]) for aim in aims if aim.at_most} == {(Group("shm").name, Group("env").name)}
    (bound,) = SCENARIOS["jobs"].bounds(FULL)
    assert (bound.of[0], bound.of[1], bound.at_most) == (Group("shm").name, FAILED, 0)
    (session,) = SCENARIOS["jobs"].sessions(FULL)
    assert session.processes == 40
    assert (FAILED, bound.of[2]) in [(case.measure, case.params) for case in session.cases]


def test_a_barrier_is_timed_from_the_last_arrival_to_the_last_departure() -> None:
    timings = [Timing((0, 100), (50, 190)), Timing((30, 120), (60, 180))]
    assert result(timings, 2, 2000) == Sample(50e-9, 190e-9)  # the median of 30 and 70


def test_back_to_back_a_barrier_is_timed_in_whole_periods() -> None:
    timings = [Timing((0,), (190,)), Timing((30,), (180,))]
    assert result(timings, 2, 0) == Sample(80e-9, 190e-9)


@pytest.mark.parametrize("count", [1, 5, 100])
@pytest.mark.parametrize("skew_us", [0, 1])
def test_the_warm_up_is_not_timed(count: int, skew_us: int) -> None:
    met: list[str] = []
    keys = [str(i) for i in range(warm(count) + count)]
    by_key = at_keys(met.append, keys, count, skew_us, 0, 2)
    assert met == keys
    assert len(by_key.enter) == len(by_key.leave) == (count if skew_us else 1)
    met.clear()
    reused = again(lambda: met.append(""), count, skew_us, 0, 2)
    assert len(met) == count + min(count, WARM)
    assert len(reused.enter) == len(by_key.enter)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_are_well_formed(name: str, quick: bool) -> None:
    effort = Effort(quick=quick, rounds=3, target_s=0.01)
    sessions = SCENARIOS[name].sessions(effort)
    cases = [(case.measure, sorted(case.params.items())) for session in sessions for case in session.cases]
    assert len(cases) == len({str(case) for case in cases})
    assert not SCENARIOS[name].axis or all(SCENARIOS[name].axis in dict(params) for _, params in cases)
    for aim in SCENARIOS[name].aims(effort):
        together = [{(c.measure, str(sorted(c.params.items()))) for c in session.cases} for session in sessions]
        ends = {(measure, str(sorted(params.items()))) for _, measure, params in (aim.of, aim.to)}
        assert any(ends <= each for each in together)  # of one session: rounds are pairs
        assert {aim.of[0], aim.to[0]} <= {rival.name for rival in everyone()}
    for bound in SCENARIOS[name].bounds(effort):
        assert (bound.of[1], sorted(bound.of[2].items())) in cases
        assert bound.of[0] in {rival.name for rival in everyone()}
    for contrast in SCENARIOS[name].contrasts(effort):
        for measure, params in (contrast.of, contrast.to):
            assert (measure, sorted(params.items())) in cases


def test_rivals_have_names_of_their_own() -> None:
    names = [rival.name for rival in everyone()]
    assert len(names) == len(set(names))
    assert names[:2] == ["shmstore futex", "shmstore semaphore"]


def test_the_cache_line_has_two_sides() -> None:
    def case(skew: int, **more: str) -> Case:
        return Case("own", {SKEW: skew, **more}, ("reusable",))

    assert PingPong().cannot(case(0), 2) is None
    assert PingPong().cannot(case(0), 4)
    assert PingPong().cannot(case(2000), 2)
    assert PingPong().cannot(case(0, **{HOGS: "one a core"}), 2)


def test_where_processes_run() -> None:
    assert cpus_for("one", [0, 1, 2], 0) == {2} == cpus_for("one", [0, 1, 2], None)
    assert [cpus_for("spread", [4, 6], i) for i in range(3)] == [{4}, {6}, {4}]
    assert cpus_for("spread", [4, 6], None) == {4, 6} == cpus_for("free", [4, 6], 1)


def test_the_aims_of_the_barriers() -> None:
    aims = SCENARIOS["barriers"].aims(FULL)

    def least(pattern: str, against: str, way: str) -> dict[int, float]:
        return {
            int(aim.to[2]["processes"]): aim.at_least
            for aim in aims
            if (aim.to[1], aim.to[0], aim.to[2][WAY]) == (pattern, against, way)
        }

    worlds = (2, 4, 8, 16, 32, 64)
    limit = FutexBarrier().name
    assert {(aim.of[0], aim.of[2][WAY]) for aim in aims} == {("shmstore futex", "Barrier")}
    assert least("back to back", limit, "Barrier") == {4: 0.35, 8: 0.35, 16: 0.3, 32: 0.3, 64: 0.3}
    assert least("back to back", "multiprocessing.Barrier", "Barrier") == dict.fromkeys(worlds, 10)
    assert least("beside hogs", "shmstore futex", PARKS) == dict.fromkeys(worlds, 0.5)
    assert least("beside hogs", limit, PARKS) == dict.fromkeys(worlds, 0)
