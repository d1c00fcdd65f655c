"""The table of what was shown: it shows what was recorded, and a finding for what was not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import proofs
import pytest
from proofs import Record, findings, record, table


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
    assert findings(c_records(began + "futex", ended + "futex"), ()) == []
    (line,) = findings(c_records(began + "futex", began + "semaphore", ended + "futex", ended + "futex"), ())
    assert "core: set new, semaphore, plain: began 1 times, ended 0 times" in line
    assert table(c_records(began + "futex"))[-1] == "findings: 1"


def test_what_failed_and_what_is_missing_are_findings() -> None:
    records = [
        Record("failed", "life: test_kill", {"why": "so"}),
        Record("skipped", "model: test_x", {"why": "no spin"}),
    ]
    assert findings(records, ()) == ["life: test_kill: failed: so"]
    missing = findings(records, proofs.PARTS)[1:]
    assert [line.split(":")[0] for line in missing] == [part for part in proofs.PARTS if part not in ("life", "model")]
    assert any("model" in line or "test_x  skipped: no spin" in line for line in table(records))


RECORDS = "import proofs; proofs.record('ended', 'life: create', kills=7)"


@pytest.mark.parametrize(
    ("code", "options", "ends", "says"),
    [
        (RECORDS, [], 0, "findings: 0"),
        (RECORDS, ["--all"], 1, "FINDING core: nothing of it was run"),
        (RECORDS + "; raise SystemExit(3)", [], 3, "ended with 3"),
        ("import proofs; proofs.record('began', 'life: create')", [], 1, "life: create: began 1 times"),
    ],
)
def test_a_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
    options: list[str],
    ends: int,
    says: str,
) -> None:
    """It begins with nothing of an earlier run, and ends as its command or its table does."""
    monkeypatch.delenv(proofs.VARIABLE, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(proofs.__file__).parent))
    (tmp_path / "records").mkdir()
    (tmp_path / "records/1").write_text("ended\tlife: of an earlier run\tkills=1\n")
    command = ["run", str(tmp_path / "records"), *options, "--", sys.executable, "-c", code]
    assert proofs.main(command) == ends
    said = capsys.readouterr().out
    assert says in said
    assert "earlier" not in said
    assert (tmp_path / "records.txt").read_text() == said


def test_a_run_within_a_run_leaves_the_table_to_the_outer_one(
    at: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(proofs.__file__).parent))
    assert proofs.main(["run", str(at / "inner"), "--", sys.executable, "-c", RECORDS]) == 0
    assert capsys.readouterr().out == ""
    assert not (at / "inner").exists()
    assert [made.what for made in proofs.read(at)] == ["life: create"]
