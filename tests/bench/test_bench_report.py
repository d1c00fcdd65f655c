"""Records, tables, comparisons and charts, all from made-up results."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from bench.cli import main
from bench.compare import compare
from bench.records import Aim, Bound, Contrast, Result, Row, read, write
from bench.report import place, quantity, show
from bench.scenarios import SCENARIOS

US = 1e-6


def row(rival: str, measure: str, samples, **more) -> Row:
    return Row(
        **{
            "scenario": "verbs",
            "measure": measure,
            "params": {"processes": 1},
            "unit": "s",
            "rival": rival,
            "samples": tuple(samples),
            "at_s": tuple(float(i) for i in range(len(samples))),
            "operations": 10,
            **more,
        }
    )


RESULT = Result(
    host={
        "cpu": "Abacus",
        "cpus": 2,
        "cpus_used": [0, 1],
        "kernel": "Linux 6",
        "python": "3.11",
        "load_1min_before": 0.5,
    },
    reference="ours",
    missing={"theirs": "the program their-server is not installed"},
    rows=(
        row("ours", "get", [1 * US, 1 * US, 1 * US]),
        row("other", "get", [50 * US, 51 * US, 52 * US]),
        row("mute", "get", [], why="cannot get anything"),
        row("ours", "set", [2 * US, 2 * US, 2 * US]),
        row("other", "set", [4 * US, 6 * US, 8 * US]),
        row("mute", "set", [3 * US, 3 * US, 3 * US]),
    ),
    contrasts=(Contrast("verbs", "set / get", ("set", {"processes": 1}), ("get", {"processes": 1})),),
    texts={"verbs": "What is timed."},
)


def shown(result: Result, **more) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        show(result, console, **more)
    return capture.get()


def test_a_result_survives_json(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.json"
    write(RESULT, path)
    assert read(path) == RESULT


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write(RESULT, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="another format"):
        read(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "rows": [{}], "contrasts": []}'])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a result"):
        read(path)


def test_a_table_has_medians_spreads_and_ratios() -> None:
    text = shown(RESULT)
    assert "1.00 µs (1.00–1.00)" in text
    assert "~6.00 µs (5.00–7.00)" in text
    assert "× 51.0 (50.5–51.5)" in text
    assert "× 3.00 (2.50–3.50)" in text


def test_ratios_are_to_whom_one_asks_for() -> None:
    assert "× 0.0196 (0.0194–0.0198)" in shown(RESULT, against="other")


def test_nobody_is_left_out_silently() -> None:
    text = shown(RESULT)
    assert "missing: theirs: the program their-server is not installed" in text
    assert "mute (get): cannot get anything" in text


def test_contrasts_are_within_a_rival() -> None:
    assert "set / get: ours × 2.00 (2.00–2.00); other" in shown(RESULT)


WAYS = dataclasses.replace(
    RESULT,
    contrasts=(),
    texts={},
    rows=tuple(
        row(rival, "back to back", samples, scenario="barriers", params={"processes": 4, "way": way})
        for rival, way, samples in (
            ("ours", "Barrier", [4 * US, 4 * US, 8 * US]),
            ("limit", "Barrier", [2 * US, 2 * US, 2 * US]),
            ("ours", "elastic", [40 * US, 40 * US, 40 * US]),
            ("limit", "elastic", []),
        )
    ),
)


def aim(at_least: float, *, to: str = "limit", place: str = "4 processes") -> Aim:
    params = {"processes": 4, "way": "Barrier"}
    return Aim("barriers", f"{to}", place, at_least, ("ours", "back to back", params), (to, "back to back", params))


def test_the_ways_of_a_rival_have_a_line_each() -> None:
    text = shown(WAYS)
    for label, cell in (("ours: Barrier", "4.00 µs"), ("ours: elastic", "× 10.0"), ("limit ", "× 0.50")):
        assert any(label in line for line in text.splitlines()), label
        assert cell in text
    assert "× is to ours: Barrier" in text
    assert "limit: " not in text  # it has one way only
    assert "× 2.00" in shown(WAYS, against="limit")
    assert "× 0.10" in shown(WAYS, against="ours: elastic")


def test_aims_say_what_was_reached() -> None:
    aims = (aim(0.5), aim(0.6, place="8 processes"), aim(1, to="nobody"))
    text = shown(dataclasses.replace(WAYS, aims=aims))
    reached = "× 0.50 (0.38–0.50)"  # a speed, of the same rounds
    assert f"speed, limit: 4 processes {reached}, aim × 0.5: met; 8 processes {reached}, aim × 0.6: missed" in text
    assert "speed, nobody: 4 processes not measured, aim × 1\n" in text
    assert "aims of this run: 1 met, 1 missed, 1 not measured" in text


def test_an_aim_may_be_of_time() -> None:
    aims = tuple(dataclasses.replace(aim(0), place=str(most), at_most=most) for most in (2.5, 1.5, 0.0))
    text = shown(dataclasses.replace(WAYS, aims=aims))
    taken = "× 2.00 (2.00–3.00)"
    assert (
        f"time, limit: 2.5 {taken}, aim at most × 2.5: met; 1.5 {taken}, aim at most × 1.5: missed; 0.0 {taken}\n"
        in text
    )
    assert "aims of this run: 1 met, 1 missed, 0 not measured" in text


def test_a_scenario_may_have_a_reference_of_its_own() -> None:
    server = SCENARIOS["wire"].reference
    rows = [row(name, "add", [took * US] * 3, scenario="wire") for name, took in (("fast", 2), (server, 4))]
    result = dataclasses.replace(RESULT, contrasts=(), rows=(*RESULT.rows, *rows))
    text = shown(result)
    assert f"× is to {server}" in text
    assert "× 0.50" in text
    assert "× 2.00" in shown(result, against="fast")


def test_a_ratio_without_an_aim_is_not_judged() -> None:
    text = shown(dataclasses.replace(WAYS, aims=(aim(0),)))
    assert "speed, limit: 4 processes × 0.50 (0.38–0.50)\n" in text
    assert "aims of this run" not in text


def test_aims_survive_json_and_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = dataclasses.replace(WAYS, aims=(aim(0.5),))
    write(result, path)
    assert read(path) == result
    found = json.loads(path.read_text())
    del found["aims"]
    path.write_text(json.dumps(found))
    assert read(path).aims == ()


COUNTED = dataclasses.replace(
    RESULT,
    contrasts=(),
    texts={},
    rows=tuple(
        row(rival, "failed jobs", samples, scenario="jobs", params={"processes": 40}, unit="n")
        for rival, samples in (("ours", [0, 0, 0, 0]), ("theirs", [0, 0, 0, 1]), ("fixed", [19, 20, 19, 19]))
    ),
)


def bound(rival: str) -> Bound:
    return Bound("jobs", f"{rival}, failed", (rival, "failed jobs", {"processes": 40}), 0.0)


def test_counts_have_a_mean_and_no_ratio() -> None:
    text = shown(COUNTED)
    for cell in ("0 (0–0)", "0.25 (0–1)", "19.2 (19–20)"):  # what happens in one round of four is seen
        assert f" {cell} " in text
    assert "of counts: the mean of the rounds (least–most)" in text
    assert not re.search(r"× \d", text)
    assert "of counts" not in shown(RESULT)


def test_a_bound_is_for_every_round() -> None:
    text = shown(dataclasses.replace(COUNTED, bounds=tuple(map(bound, ("ours", "theirs", "nobody")))))
    assert "ours, failed: 0 at most in 4 rounds, aim at most 0: met\n" in text
    assert "theirs, failed: 1 at most in 4 rounds, aim at most 0: missed\n" in text
    assert "nobody, failed: not measured, aim at most 0\n" in text
    assert "aims of this run: 1 met, 1 missed, 1 not measured" in text


def test_bounds_survive_json_and_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = dataclasses.replace(COUNTED, bounds=(bound("ours"),))
    write(result, path)
    assert read(path) == result
    found = json.loads(path.read_text())
    del found["bounds"]
    path.write_text(json.dumps(found))
    assert read(path).bounds == ()


def test_markdown_is_one_line_a_rival() -> None:
    lines = [line for line in shown(RESULT, markdown=True).splitlines() if line.startswith("| other")]
    assert len(lines) == 1
    assert "51.0 µs (50.5–51.5) × 51.0" in lines[0]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (123e-9, "s", "123 ns"),
        (0.9996e-6, "s", "1.00 µs"),
        (1.5e-3, "s", "1.50 ms"),
        (2.0, "s", "2.00 s"),
        (140.2, "B", "140 B"),
        (20480.0, "B", "20.0 KiB"),
        (0.0, "n", "0"),
        (19.25, "n", "19.2"),
    ],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_places() -> None:
    assert place("value_bytes", 65536) == "64 KiB"
    assert place("value_bytes", 32) == "32 B"
    assert place("processes", 4) == "4 processes"


def compared(*results: Result) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        compare({chr(ord("a") + i): result for i, result in enumerate(results)}, console)
    return capture.get()


def test_compare_shows_what_changed_and_on_what_machine() -> None:
    twice = tuple(
        dataclasses.replace(r, samples=tuple(2 * s for s in r.samples)) if r.rival == "ours" else r for r in RESULT.rows
    )
    after = dataclasses.replace(RESULT, host={**RESULT.host, "kernel": "Linux 7"}, rows=twice)
    text = compared(RESULT, after)
    assert "kernel: Linux 6 → Linux 7" in text
    assert "cpu:" not in text
    ours = next(line for line in text.splitlines() if "get" in line and "ours" in line)
    assert "1.00 µs" in ours
    assert "2.00 µs" in ours
    assert "* 2.00" in ours
    other = next(line for line in text.splitlines() if "get" in line and "other" in line)
    assert "51 → 25.5" in other
    assert "*" not in other


def test_compare_keeps_what_only_one_has() -> None:
    text = compared(RESULT, dataclasses.replace(RESULT, rows=RESULT.rows[:1]))
    line = next(line for line in text.splitlines() if "other" in line and "set" in line)
    assert "6.00 µs" in line
    assert "—" in line


def test_charts_are_drawn_from_the_file_alone(tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    rows = [row("ours", "get", [1 * US, 2 * US], scenario="keys", params={"keys": n}) for n in (10, 100)]
    rows += COUNTED.rows  # a count may be 0, and no logarithm
    write(dataclasses.replace(RESULT, rows=(*RESULT.rows, *rows)), tmp_path / "result.json")
    # Another process: matplotlib keeps its fonts open.
    command = [
        sys.executable,
        "-m",
        "bench",
        "--show",
        str(tmp_path / "result.json"),
        "--plots",
        str(tmp_path / "charts"),
    ]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, timeout=60)
    files = sorted((tmp_path / "charts").iterdir())
    assert [file.name for file in files] == ["jobs.svg", "keys.svg", "verbs.svg"]
    assert all(file.read_text().startswith("<?xml") for file in files)


def test_without_matplotlib_charts_are_refused_with_the_extra_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write(RESULT, tmp_path / "result.json")
    words = ["--show", str(tmp_path / "result.json"), "--plots", str(tmp_path / "charts")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "install the extra 'bench'" in done.output
