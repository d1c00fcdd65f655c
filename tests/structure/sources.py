"""What the structure tests read: where the repository is, and C files with their comments blanked out."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "shmstore" / "_core"
C_FILES = sorted([*CORE.glob("*.c"), *CORE.glob("*.h")])

_COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def without_comments(text: str) -> str:
    """``text`` with each comment blanked; line numbers stay, strings stay."""

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        return found if found.startswith('"') else re.sub(r"[^\n]", " ", found)

    return _COMMENT_OR_STRING.sub(blank, text)


def functions(text: str) -> list[tuple[int, str]]:
    """The top-level pieces of C code, each ended by a ``}`` in the first column (or on its own single line)."""
    pieces: list[tuple[int, str]] = []
    start, lines = 0, text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("}") or re.match(r"^\S.*\{.*\}\s*$", line):
            pieces.append((start + 1, "\n".join(lines[start : number + 1])))
            start = number + 1
    pieces.append((start + 1, "\n".join(lines[start:])))
    return pieces


def build_native() -> ModuleType:
    """The script that writes the extension's source, as a module. It is no part of the package."""
    spec = importlib.util.spec_from_file_location("build_native", CORE / "build_native.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
