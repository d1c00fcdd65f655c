"""The measurement of traffic, small: what it counts is what flat stores say, message by message."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import traffic

PLAN = traffic.Plan(
    nodes=[1, 2], per_node=2, rounds=3, delay_s=0.001, size=10, ways=["elastic.barrier", "Store.barrier"]
)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, int], traffic.Row]:
    return {(row.way, row.nodes): row for nodes in PLAN.nodes for row in traffic.measure("flat", nodes, PLAN)}


@pytest.mark.parametrize("nodes", PLAN.nodes)
def test_a_flat_barrier_is_messages_of_each_rank(rows: dict[tuple[str, int], traffic.Row], nodes: int) -> None:
    ranks = nodes * PLAN.per_node
    opcode = rows["Store.barrier", nodes]
    assert opcode.ops == {"BARRIER": ranks}
    assert opcode.messages == opcode.writes == 2 * ranks
    assert min(opcode.round_trips) >= 1
    elastic = rows["elastic.barrier", nodes]
    assert elastic.ops["ADD"] == ranks
    assert elastic.ops["SET"] == 1
    assert elastic.messages >= 4 * ranks
    assert min(elastic.round_trips) >= 2


def test_a_hybrid_barrier_is_one_write_of_each_node_and_its_answer() -> None:
    """Its decision goes with its wait, where the server holds it; and the second arrival is a write of its own."""
    row = traffic.measure("hybrid", 2, replace(PLAN, ways=["Barrier.wait"]))[0]
    assert row.ops["HOLD"] == row.ops["WAIT"] == 2
    assert 4 <= row.ops["COMPARE_SET"] <= 6  # a leader asks, and decides; who comes before it has heard asks, too
    # The leader's, the last arriver's; the answers: the state, the release, and from the third epoch on a deletion's.
    assert 2 * 4 < row.writes <= 2 * 5
    assert min(row.round_trips) >= 1


def test_what_was_measured_can_be_shown(rows: dict[tuple[str, int], traffic.Row], tmp_path: Path) -> None:
    file, plot = tmp_path / "traffic.json", tmp_path / "traffic.svg"
    traffic.save(PLAN, list(rows.values()), file)
    command = [sys.executable, traffic.__file__, "--show", str(file)]
    if find_spec("matplotlib") is not None:  # another process: it keeps its fonts open
        command += ["--plot", str(plot)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].split()[:4] == ["elastic.barrier", "flat", "1", "2"]
    assert plot.exists() == ("--plot" in command)
