"""connect: stores by URL, and what is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from harness import Me, Team

import shmstore
from shmstore import HashStore, SegmentNotFoundError, ShmStore, TCPStore, TCPStoreServer
from shmstore._job import Job, job_of
from shmstore._names import listed

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "my job/7",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "MASTER_PORT": "29500",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "4",
}
SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the launcher's part of the environment, and nothing else of it."""
    for variable in ("SHMSTORE_JOB", *TORCHRUN, *SLURM, "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(variable, raising=False)

    def put(**variables: str) -> None:
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)

    return put


# -- stores -----------------------------------------------------------------------------------------------------------


def test_a_segment(name: str) -> None:
    url = f"shm://{name}?rank=1&timeout=2.5&capacity=2097152&sync=semaphore&watch_peers=true&mode=0600"
    with shmstore.connect(url) as store, ShmStore(name, create=False) as other:
        assert isinstance(store, ShmStore)
        assert (store.name, store.rank, store.timeout, store._watch) == (name, 1, timedelta(seconds=2.5), True)
        store.set("k", "v")
        assert other.get("k") == b"v"
        with pytest.raises(shmstore.SegmentInvalidError, match="semaphore"):
            ShmStore(name, sync="futex")
        with pytest.raises(shmstore.SegmentExistsError):
            shmstore.connect(f"shm://{name}?create=true")


def test_names_are_percent_decoded(name: str) -> None:
    with shmstore.connect(f"shm://{name}%20%23%3F%C3%BC") as store:
        assert store.name == f"{name} #?ü"


def test_options_as_arguments(name: str) -> None:
    with pytest.raises(SegmentNotFoundError):
        shmstore.connect(f"shm://{name}", create=False)
    with shmstore.connect(f"shm://{name}?rank=0", world_size=1, timeout=timedelta(seconds=3)) as store:
        assert (store.rank, store.timeout) == (0, timedelta(seconds=3))


def test_a_hash_store_is_a_new_one_each_time() -> None:
    with shmstore.connect("hash://?timeout=inf", rank=0, world_size=4) as one, shmstore.connect("hash://") as two:
        assert isinstance(one, HashStore)
        assert (one.timeout, two.timeout) == (timedelta.max, timedelta(seconds=300))
        one.set("k", "")
        assert two.check(["k"]) is False


def test_rank_0_hosts_a_tcp_store() -> None:
    with shmstore.connect("tcp://127.0.0.1:0", rank=0) as zero:
        assert isinstance(zero, TCPStore)
        with shmstore.connect(f"tcp://127.0.0.1:{zero.port}?timeout=20", rank=1) as one:
            one.set("k", "v")
            assert zero.get("k") == b"v"


def test_a_tcp_store_at_a_server() -> None:
    with HashStore() as keys, TCPStoreServer(keys, "::1") as server:
        with shmstore.connect(f"tcp://[::1]:{server.port}?is_master=false", rank=0) as store:
            store.set("k", "v")
            assert store.get("k") == b"v"
        assert keys.get("k") == b"v"


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "begins with shm://"),
        ("shm:job", "begins with shm://"),
        ("http://h:1", "begins with shm://"),
        ("SHM://job", "begins with shm://"),
        ("shm://job#part", "write %23"),
        ("shm://job?kapacity=1", "no option 'kapacity'; it has capacity"),
        ("shm://job?rank", "rank needs a value"),
        ("shm://job?rank=0&rank=1", "rank is there twice"),
        ("shm://job?rank=zero", "rank: must be a whole number"),
        ("shm://job?rank=-1", "rank must be 0 to"),
        ("shm://job?rank=2&world_size=2", "rank must be 0 to 1"),
        ("shm://job?timeout=soon", "timeout: must be seconds"),
        ("shm://job?timeout=nan", "timeout: must be seconds"),
        ("shm://job?timeout=-1", "must not be negative|not negative"),
        ("shm://job?persist=maybe", "persist: must be true or false"),
        ("shm://job?mode=rw", "mode: must be octal"),
        ("shm://job?mode=0777", "mode must be 0o600"),
        ("shm://job?sync=spin", "sync must be one of"),
        ("shm://job?capacity=1", "capacity must be"),
        ("shm://a/b", "no slash"),
        ("shm://a%00b", "no NUL"),
        ("hash://name", "has no name"),
        ("hash://?rank=4&world_size=2", "rank must be"),
        ("tcp://", "tcp://HOST:PORT"),
        ("tcp://host", "tcp://HOST:PORT"),
        ("tcp://host:port", "tcp://HOST:PORT"),
        ("tcp://host:70000", "tcp://HOST:PORT"),
        ("tcp://[::1:3", "tcp://HOST:PORT"),
        ("tcp://user@host:1", "tcp://HOST:PORT"),
        ("tcp://host:1/path", "tcp://HOST:PORT"),
        ("tcp://host:1?capacity=3", "no option 'capacity'"),
    ],
)
def test_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shmstore.connect(url)


@pytest.mark.parametrize("url", [None, 1, b"shm://job"], ids=repr)
def test_no_url(url: Any) -> None:
    with pytest.raises(TypeError, match="must be str"):
        shmstore.connect(url)


def test_an_option_given_twice() -> None:
    with pytest.raises(ValueError, match="has rank already"):
        shmstore.connect("shm://job?rank=1", rank=1)


# -- without a name ---------------------------------------------------------------------------------------------------


def test_the_environment_has_the_name(environ: Any, name: str) -> None:
    environ(SHMSTORE_JOB=name, RANK="1", WORLD_SIZE="2")
    with shmstore.connect("shm://?timeout=5") as store:
        assert (store.name, store.rank) == (name, 1)
    with shmstore.connect("shm://", rank=0) as store:
        assert store.rank == 0


def test_jobs_of_launchers() -> None:
    before = tuple(f"torchrun.my%20job%2F7.29500.{i}" for i in range(2))
    assert job_of(TORCHRUN) == Job("torchrun.my%20job%2F7.29500.2", 3, 4, before)
    agents = {**TORCHRUN, "SHMSTORE_JOB": "given", "LOCAL_WORLD_SIZE": "2", "SHMSTORE_JOB_PORT": "29500"}
    assert job_of(agents) == Job("given", 3, 4)
    assert job_of({**TORCHRUN, **SLURM}) == job_of(TORCHRUN)
    assert job_of(SLURM) == Job("slurm.77.0.0", 1, 2)
    again = job_of({**SLURM, "SLURM_RESTART_COUNT": "1", "SLURM_STEP_NUM_TASKS": "8"})
    assert again == Job("slurm.77.0.1", 1, 8, ("slurm.77.0.0",))


def test_the_name_of_another_job_does_not_count() -> None:
    """What a worker starts has its variables, and so has a worker that an old forkserver forks."""
    inherited = {"SHMSTORE_JOB": "outer", "SHMSTORE_JOB_PORT": "41000"}
    assert job_of({**inherited, **TORCHRUN}).name == job_of(TORCHRUN).name
    assert job_of({**TORCHRUN, "SHMSTORE_JOB": "by hand"}).name == job_of(TORCHRUN).name


def test_what_attempts_before_left_is_removed(environ: Any, name: str, team: Team) -> None:
    environ(**{**TORCHRUN, "TORCHELASTIC_RUN_ID": name, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
    for attempt in (0, 1):
        child = team.start(_stays, f"torchrun.{name}.29500.{attempt}")
        child.hear()
        child.kill()
    with shmstore.connect("shm://") as store:
        assert (store.name, store.rank) == (f"torchrun.{name}.29500.2", 0)  # type: ignore[attr-defined]
        assert [one for one in listed() if name in one] == [f"torchrun.{name}.29500.2"]


def _stays(me: Me, name: str) -> None:
    store = ShmStore(name)
    me.say(store.name)
    me.hear()


def test_an_attempt_has_a_name_of_its_own() -> None:
    names = {job_of({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": str(n)}).name for n in range(3)}
    names |= {job_of({**SLURM, "SLURM_RESTART_COUNT": str(n)}).name for n in range(3)}
    assert len(names) == 6


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "the environment speaks of no job"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "the environment speaks of no job"),
        ({"SHMSTORE_JOB": "j", "RANK": "0"}, "WORLD_SIZE is not in the environment"),
        ({"SHMSTORE_JOB": "j", "RANK": "x", "WORLD_SIZE": "1"}, "RANK must be a number"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}, "reaches the processes of one host"),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "2"}, "the Slurm step has 2 nodes"),
        ({"SLURM_JOB_ID": "1"}, "SLURM_NTASKS|SLURM_PROCID"),
    ],
)
def test_no_job(variables: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        job_of(variables)
