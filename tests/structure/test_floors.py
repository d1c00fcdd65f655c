"""Imports and includes go downward only: the floors of the package, and those of the core."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
from sources import C_FILES, ROOT

# A file of the core stands on the floor of its stem. A file that fits none is a sign to think again.
FLOORS = {
    0: {"sst", "atomics", "fault", "errors", "clock"},
    1: {"layout", "view", "wire", "sends"},
    2: {"park", "park_futex", "park_sem", "park_sem_none", "liveness", "waiter"},
    3: {"lock"},
    4: {"segment", "views", "peers"},
    5: {"heap"},
    6: {"table", "event", "queue"},
    7: {"verify", "recover"},
    8: {"guard"},
    9: {"ops", "ops_many", "ops_queue", "ops_wait", "ops_barrier", "attach", "ranks", "proof", "breaks"}
    | {"barrier", "barrier_open", "barrier_seats", "barrier_wait"}
    | {"server", "loop", "accept", "stream", "conn", "answers", "wants", "bell"},
    10: {"doors"},
}
FLOOR_OF = {stem: floor for floor, stems in FLOORS.items() for stem in stems}


def test_every_c_file_has_a_floor() -> None:
    assert not {path.name for path in C_FILES if path.stem not in FLOOR_OF}


@pytest.mark.parametrize("path", C_FILES, ids=lambda path: path.name)
def test_includes_go_downward(path) -> None:
    upward = [
        name
        for name in re.findall(r'^\s*#\s*include\s*"(\w+)\.h"', path.read_text(encoding="utf-8"), re.MULTILINE)
        if FLOOR_OF.get(name, 99) > FLOOR_OF[path.stem]
    ]
    assert not upward, f"{path.name} (C{FLOOR_OF[path.stem]}) includes from above"


def test_only_the_doors_know_python() -> None:
    assert [path.name for path in C_FILES if "Python.h" in path.read_text(encoding="utf-8")] == ["doors.c"]


def test_imports_go_downward() -> None:
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_top_imports_public_names() -> None:
    """``from shmstore import X`` runs all floors; the linter cannot tell it from an import of the extension."""
    package = ROOT / "shmstore"
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in package.glob("*.py")
        if path.name != "__init__.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and node.module == "shmstore" and {a.name for a in node.names} - modules)
        or (isinstance(node, ast.Import) and "shmstore" in {a.name for a in node.names})
    ]
    assert not found
