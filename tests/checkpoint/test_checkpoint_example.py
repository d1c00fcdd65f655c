"""docs/examples/checkpoint.py: whole checkpoints, and what is left when a rank is killed in the middle of one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "checkpoint.py"
LENGTH = 10_000


def run(folder: Path, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), "--folder", str(folder), "--name", name, "--length", str(LENGTH), *more]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command, capture_output=True, text=True, timeout=80, check=False, env={**os.environ, "PYTHONPATH": path}
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_checkpoints_of_all(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, name, "--nproc", "3", "--steps", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the checkpoint of step 3 is whole" in done.stdout
    assert names(tmp_path) == {"manifest.json", *(f"step-3.part-{rank}" for rank in range(3))}


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_rank_leaves_the_one_before_whole_and_the_error_names_it(tmp_path: Path, name: str, rank: int) -> None:
    done = run(tmp_path, name, "--nproc", "3", "--steps", "2", "--kill", str(rank))
    assert done.returncode == 1, done.stdout + done.stderr
    codes = [str(code) for code in (3, 3, 3)]
    codes[rank] = "-9"
    assert f"exit codes: {' '.join(codes)}" in done.stdout, done.stdout + done.stderr
    assert "the checkpoint of step 1 is whole" in done.stdout
    told = re.findall(
        rf"rank (\d): no checkpoint of step 2, for want of rank {rank}: .*rank {rank} \(pid \d+.*died", done.stdout
    )
    assert sorted(told) == [str(other) for other in range(3) if other != rank]
    assert json.loads((tmp_path / "manifest.json").read_text())["step"] == 1
    assert {f"step-1.part-{i}" for i in range(3)} <= names(tmp_path)
    assert not (tmp_path / f"step-2.part-{rank}").exists()
