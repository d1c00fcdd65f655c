"""The table of what was shown: it shows what was recorded, and a finding for what was not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import proofs
import pytest
from proofs import Asked, Record, findings, record, table


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the records of this test go."""
    monkeypatch.setenv(proofs.VARIABLE, str(tmp_path))
    return tmp_path


def test_what_is_recorded_is_read_again(at: Path) -> None:
    made = [
        record("began", "crash: storm, futex"),
        record("ended", "crash: storm, futex", kills=3, ms=1.25, seed="a b"),
    ]
    assert proofs.read(at) == made
    assert made[1] == Record("ended", "crash: storm, futex", {"kills": "3", "ms": "1.2", "seed": "a b"})


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(proofs.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    record("ended", "life: create", kills=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["create", "death: create", "life: ", "life: two\nlines", "life: a\ttab"])
def test_what_cannot_be_a_record(at: Path, what: str) -> None:
    with pytest.raises(ValueError):
        record("ended", what)
    assert list(at.iterdir()) == []


def c_records(*lines: str) -> list[Record]:
    """As the C programs write them."""
    made = [line.split("\t") for line in lines]
    return [Record(state, what, dict(field.split("=", 1) for field in rest)) for state, what, *rest in made]


def test_stores_become_columns_and_are_added_up() -> None:
    lines = table(
        c_records(
            "ended\tcore: set new\tbuild=plain\tengine=futex\tstores=56\tkills=70\tsurvived=70\tin repair=14",
            "ended\tcore: create\tbuild=plain\tengine=futex\tstores=8\tkills=8\tsurvived=8",
            "ended\tcore: create\tbuild=plain\tengine=futex\tstores=9\tkills=9\tsurvived=9",
            "ended\tcore: create\tbuild=plain\tengine=semaphore\tstores=8\tkills=3\tsurvived=3",
            "ended\tcore: grow\tbuild=sanitized\tengine=semaphore\tstores=7\tkills=2\tsurvived=2",
        )
    )
    heads = [line.split() for line in lines if "stores, kills" in line]
    assert heads[0][-4:] == ["futex,", "plain", "semaphore,", "plain"]
    assert heads[1][-2:] == ["semaphore,", "sanitized"]
    lines = lines[: next(i for i, line in enumerate(lines) if "sanitized" in line)]  # each build has rows of its own
    rows = {line.strip().split("  ")[0]: line.split() for line in lines}
    assert rows["set new"][2:] == ["56", "70", "70", "14"]
    assert rows["create"][1:] == ["17", "17", "17", "8", "3", "3"]
    assert rows["in all"][2:] == ["73", "87", "87", "14", "8", "3", "3"]


def test_what_began_and_did_not_end_is_a_finding() -> None:
    began = "began\tcore: set new\tbuild=plain\tengine="
    ended = "ended\tcore: set new\tbuild=plain\tstores=1\tengine="
    assert findings(c_records(began + "futex", ended + "futex"), Asked()) == []
    (line,) = findings(c_records(began + "futex", began + "semaphore", ended + "futex", ended + "futex"), Asked())
    assert "core: set new, semaphore, plain: began 1 times, ended 0 times" in line
    assert table(c_records(began + "futex"))[-1] == "findings: 1"


def test_what_failed_and_what_was_lost_are_findings() -> None:
    failed = Record("failed", "life: test_kill", {"why": "so"})
    assert findings([failed], Asked()) == ["life: test_kill: failed: so"]
    assert findings([Record("began", failed.what, {}), failed], Asked()) == ["life: test_kill: failed: so"]
    storm = Record("ended", "crash: storm, futex", {"kills": "3", "lost": "1", "hung": "0"})
    assert findings([storm], Asked()) == ["crash: storm, futex: lost 1"]


SKIPPED = Record("skipped", "crash: test_namespaces.py::test_x", {"why": "uid 5 is not root"})
ROWS = ("crash: storm, futex*", "crash: storm, semaphore*", "life: create")


def test_a_row_that_is_missing_is_a_finding() -> None:
    """Of a part that is there, too, and of one engine where the other is there."""
    records = [Record("ended", "crash: storm, futex", {}), Record("began", "life: create", {})]
    lines = findings(records, Asked(ROWS))[1:]
    assert lines == [
        "crash: storm, semaphore*: nothing of it was run",
        "life: create: nothing of it was run",
    ]


def test_a_skip_is_a_finding_where_nothing_may_be_skipped() -> None:
    records = [SKIPPED, SKIPPED._replace(what=SKIPPED.what + "_too"), Record("ended", "life: create", {})]
    assert findings(records, Asked(ROWS)) == []
    lines = table(records, Asked(ROWS))
    assert "  test_namespaces.py: 2 skipped: uid 5 is not root" in lines
    assert "  storm, futex*  not there" in lines
    strict = findings(records, Asked(ROWS, strict=True))
    assert strict[0] == "crash: test_namespaces.py: 2 skipped: uid 5 is not root"
    assert [line.partition(": nothing")[0] for line in strict[1:]] == list(ROWS[:2])


@pytest.mark.parametrize(
    ("options", "ci", "strict", "long"),
    [
        ([], "true", False, False),
        (["--all"], "", False, False),
        (["--all"], "true", True, False),
        (["--all", "--long"], "", True, True),
    ],
)
def test_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, options: list[str], ci: str, strict: bool, long: bool
) -> None:
    monkeypatch.setenv("CI", ci)
    asked = proofs.asked(options)
    assert asked.strict is strict
    assert set(proofs.REQUIRED) <= set(asked.rows) or "--all" not in options
    assert (set(proofs.REQUIRED_LONG) <= set(asked.rows)) is long


def test_each_part_has_rows_that_it_must_show() -> None:
    assert {row.partition(": ")[0] for row in proofs.REQUIRED} == set(proofs.PARTS)


def test_cases_of_a_row_are_added_up() -> None:
    case = Record("ended", "process: signals", {"engine": "futex", "cases": "1"})
    other = Record("ended", "process: signals", {"engine": "semaphore", "cases": "1"})
    assert [line for line in table([case, case, other]) if "cases" in line] == [
        "  signals, futex      cases 2",
        "  signals, semaphore  cases 1",
    ]


# -- a run ------------------------------------------------------------------------------------------------------------

RECORDS = "import proofs; proofs.record('ended', 'life: create', kills=7)"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs may put their records; this test is in none."""
    for variable in (proofs.VARIABLE, proofs.WITHIN, "CI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(proofs.__file__).parent))
    return tmp_path


def run(at: Path, code: str, *options: str) -> int:
    return proofs.main(["run", str(at), *options, "--", sys.executable, "-c", code])


@pytest.mark.parametrize(
    ("code", "options", "ends", "says"),
    [
        (RECORDS, [], 0, "findings: 0"),
        (RECORDS, ["--all"], 1, f"FINDING {proofs.REQUIRED[0]}: nothing of it was run"),
        (RECORDS + "; raise SystemExit(3)", [], 3, "ended with 3"),
        ("import proofs; proofs.record('began', 'life: create')", [], 1, "life: create: began 1 times"),
        ("", ["--all"], 1, "nothing of it was run"),
    ],
)
def test_a_run(
    runs: Path, capsys: pytest.CaptureFixture[str], code: str, options: list[str], ends: int, says: str
) -> None:
    """It begins with nothing of an earlier run, and ends as its command or its table does."""
    (runs / "records").mkdir()
    (runs / "records/1").write_text("ended\tlife: of an earlier run\tkills=1\n")
    assert run(runs / "records", code, *options) == ends
    said = capsys.readouterr().out
    assert says in said
    assert "earlier" not in said
    assert (runs / "records.txt").read_text() == said


def test_a_table_says_when_of_what_and_in_which_form(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    today = time.strftime("%Y-%m-%d", time.gmtime())
    run(runs / "records", RECORDS, "--long")
    head = capsys.readouterr().out.splitlines()
    commit = "(no commit known|commit [0-9a-f]{12}(, with .*)?)"
    assert re.fullmatch(rf"long form, {today} \d\d:\d\d:\d\d UTC, {commit}", head[0])
    assert head[1].startswith("of: ")
    assert "proofs.record" in head[1]


def test_an_interrupted_run_leaves_no_table(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an earlier one either."""
    assert run(runs / "records", RECORDS) == 0
    assert (runs / "records.txt").exists()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    monkeypatch.setattr(proofs, "head", lambda *_: [])
    with pytest.raises(KeyboardInterrupt):
        run(runs / "records", RECORDS)
    assert not (runs / "records.txt").exists()


def test_a_run_within_a_run_leaves_the_table_to_the_outer_one(
    at: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(proofs.__file__).parent))
    monkeypatch.setenv(proofs.WITHIN, str(at))
    assert run(at / "inner", RECORDS) == 0
    assert capsys.readouterr().out == ""
    assert not (at / "inner").exists()
    assert [made.what for made in proofs.read(at)] == ["life: create"]


def test_a_directory_that_somebody_exported_is_no_run(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "exported").mkdir()
    monkeypatch.setenv(proofs.VARIABLE, str(runs / "exported"))
    assert run(runs / "records", RECORDS, "--all") == 1
    assert "FINDING" in capsys.readouterr().out
    assert list((runs / "exported").iterdir()) == []


# -- in pytest --------------------------------------------------------------------------------------------------------

TESTS = """
import pytest

def test_shown(proof):
    proof("life: create", kills=1)

def test_not_shown(proof):
    pass

def test_skipped(proof):
    pytest.skip("no reason")

@pytest.mark.shows("life: cases")
@pytest.mark.parametrize("sync", ["futex", "semaphore", "other"])
def test_case(sync):
    pass

@pytest.mark.shows("life: broken cases")
def test_broken_case():
    assert False

@pytest.fixture
def broken_later():
    yield
    assert False

@pytest.mark.shows("life: broken later")
def test_broken_later(broken_later):
    pass

def test_not_known():
    pass

def test_dies(proof):
    import os
    os._exit(9)
"""


def test_tests_of_pytest_are_records(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that takes `proof` or is marked began, and what it ended as is there; who took the process along began."""
    tests = runs / "life"
    tests.mkdir()
    (tests / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (tests / "test_it.py").write_text(TESTS)
    (runs / "records").mkdir()
    environment = {**os.environ, proofs.VARIABLE: str(runs / "records")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(runs), str(tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 9, done.stdout + done.stderr
    records = proofs.read(runs / "records")

    def of(state: str) -> list[str]:
        return sorted(made.what.removeprefix("life: test_it.py::test_") for made in records if made.state == state)

    cases = [f"case[{sync}]" for sync in ("futex", "other", "semaphore")]
    all_of_them = ["broken_case", "broken_later", *cases, "dies", "not_shown", "shown", "skipped"]
    assert of("began") == all_of_them
    assert of("passed") == [*cases, "shown"]
    assert of("failed") == ["broken_case", "broken_later", "not_shown"]
    assert of("skipped") == ["skipped"]
    assert [made.figures for made in records if made.what == "life: cases"] == [
        {"engine": "futex", "cases": "1"},
        {"engine": "semaphore", "cases": "1"},
        {"cases": "1"},
    ]
    (line,) = [line for line in findings(records, Asked()) if "failed" not in line]
    assert "test_dies: began 1 times, ended 0 times" in line
