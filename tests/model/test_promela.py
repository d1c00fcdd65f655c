"""The models in docs/model, searched by spin to the last state: they hold, and each mutant of theirs fails."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "docs" / "model"

HOLDS = [("wait", []), ("wait", ["SEMAPHORE"]), ("lock", []), ("barrier", [])]
FAILS = [
    ("wait", ["NO_RECHECK"]),
    ("wait", ["NO_SLICE"]),
    ("wait", ["LATE_ARM"]),
    ("wait", ["SEMAPHORE", "NO_RECHECK"]),
    ("wait", ["SEMAPHORE", "NO_SLICE"]),
    ("wait", ["SEMAPHORE", "LATE_ARM"]),
    ("lock", ["NO_GENERATION"]),
    ("lock", ["BLIND_SEIZE"]),
    ("barrier", ["NO_HELP"]),
    ("barrier", ["LATE_ARM"]),
    ("barrier", ["NO_SLICE"]),
    ("barrier", ["LOOK_FIRST"]),
    ("barrier", ["NO_EPOCH"]),
]


def title(case: object) -> str:
    return case if isinstance(case, str) else "+".join(case) or "as it is"  # type: ignore[arg-type]


def search(model: str, defines: list[str], at: Path) -> tuple[int, int, str]:
    """Errors and states that a full search found, and what spin said of the first error."""
    for tool in ("spin", "cc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=at, capture_output=True, text=True, timeout=300, check=True)
        return done.stdout

    shutil.copy(MODELS / f"{model}.pml", at)
    run("spin", "-a", *(f"-D{name}" for name in defines), f"{model}.pml")
    run("cc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c")
    out = run("./pan", "-m100000")
    errors, states = re.search(r"errors: (\d+)", out), re.search(r"(\d+) states, stored", out)
    assert errors is not None and states is not None, out
    assert "max search depth too small" not in out
    first = re.search(r"^pan:1: (.*)", out, re.MULTILINE)
    return int(errors[1]), int(states[1]), first[1] if first else ""


@pytest.mark.parametrize(("model", "defines"), HOLDS, ids=title)
def test_model_holds(model: str, defines: list[str], tmp_path: Path, proof: Callable[..., None]) -> None:
    errors, states, first = search(model, defines, tmp_path)
    assert errors == 0, first
    assert states > 10_000, "a search of next to nothing"
    proof(f"model: {model}, {title(defines)}", states=states, errors=errors)


@pytest.mark.parametrize(("model", "defines"), FAILS, ids=title)
def test_mutant_fails(model: str, defines: list[str], tmp_path: Path, proof: Callable[..., None]) -> None:
    errors, states, first = search(model, defines, tmp_path)
    assert errors > 0
    assert "invalid end state" in first or "assertion violated" in first
    proof(f"model: {model}, {title(defines)}", states=states, **{"fails, as it must:": first})


def test_every_mutant_of_the_models_is_here() -> None:
    for model in ("wait", "lock", "barrier"):
        text = (MODELS / f"{model}.pml").read_text()
        named = set(re.findall(r"^ \*   -D(\w+)", text, re.MULTILINE))
        used = {name for case, names in HOLDS + FAILS if case == model for name in names}
        assert named == used
