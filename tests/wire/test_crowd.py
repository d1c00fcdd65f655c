"""Hundreds of connections, waiters and parties at one server; with SHMSTORE_LONG=1 thousands, as crowd.py says."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import proofs
import pytest
from crowd import SPARE, Size, open_files

ROOT = Path(__file__).parents[2]
SIZE = Size() if proofs.LONG else Size(idle=500, waiters=100, parties=100)


def crowd(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.wire.crowd", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=80, check=False)


def test_a_crowd() -> None:
    why = open_files(SIZE.all + SPARE)
    if why is not None:
        pytest.skip(why)
    done = crowd(*(word for name, count in asdict(SIZE).items() for word in (f"--{name}", str(count))))
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(rf"{SIZE.idle} connections from 4 processes: (\d+) bytes each", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) < 8192
    assert done.stdout.endswith("all have left\n")
    print(done.stdout)


def test_too_few_open_files_are_told_before() -> None:
    done = crowd("--idle", "100000000")
    assert done.returncode == 1
    assert re.search(r"needs 100002100 open files, and the hard limit is \d+\. Raise it", done.stderr)
    assert not done.stdout
