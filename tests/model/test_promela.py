"""The models in docs/model, searched by spin to the last state: they hold, and each mutant of theirs fails.

Two searches each. The first finds states that must not be: a broken assertion, an end in which somebody still waits (a
deadlock). The second finds runs that go on for ever without progress (a livelock), which the first cannot see.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

MODELS = Path(__file__).parents[2] / "docs" / "model"

HOLDS = [
    ("wait", []),
    ("wait", ["SEMAPHORE"]),
    ("lock", []),
    ("lock", ["LAZY"]),
    ("barrier", []),
    ("barrier", ["EARLY"]),
    ("bell", []),
    ("bell", ["TWO"]),
]
FAILS = [
    ("wait", ["NO_RECHECK"], "invalid end state"),
    ("wait", ["NO_SLICE"], "invalid end state"),
    ("wait", ["LATE_ARM"], "invalid end state"),
    ("wait", ["NO_COUNT"], "invalid end state"),
    ("wait", ["SEMAPHORE", "NO_RECHECK"], "invalid end state"),
    ("wait", ["SEMAPHORE", "NO_SLICE"], "invalid end state"),
    ("wait", ["SEMAPHORE", "LATE_ARM"], "invalid end state"),
    ("wait", ["SEMAPHORE", "NO_COUNT"], "invalid end state"),
    ("lock", ["NO_GENERATION"], "assertion violated"),
    ("lock", ["BLIND_SEIZE"], "assertion violated"),
    ("lock", ["NO_JUDGEMENT"], "invalid end state"),
    ("lock", ["NO_TAKEOVER"], "invalid end state"),
    ("lock", ["NO_SEIZE"], "non-progress cycle"),
    ("barrier", ["NO_HELP"], "invalid end state"),
    ("barrier", ["LATE_ARM"], "invalid end state"),
    ("barrier", ["NO_SLICE"], "invalid end state"),
    ("barrier", ["LOOK_FIRST"], "invalid end state"),
    ("barrier", ["NO_EPOCH"], "assertion violated"),
    ("barrier", ["NO_BREAK"], "invalid end state"),
    ("barrier", ["EARLY", "CAME_FIRST"], "assertion violated"),
    ("bell", ["NO_RELOOK"], "invalid end state"),
    ("bell", ["BLIND_PARK"], "invalid end state"),
    ("bell", ["TWO", "NO_MANY"], "invalid end state"),
    ("bell", ["NO_SCAN"], "invalid end state"),
    ("bell", ["TOLD_LATE"], "invalid end state"),
    ("bell", ["NO_NUDGE"], "invalid end state"),
    ("bell", ["SHY_NUDGE"], "invalid end state"),
    ("bell", ["NO_SLICE"], "invalid end state"),
]
SEARCHES = {"states": (["-DSAFETY"], []), "cycles": (["-DNP", "-DNOFAIR"], ["-l"])}
TOOLS = ("spin", "cc")


def title(case: object) -> str:
    return case if isinstance(case, str) else "+".join(case) or "as it is"  # type: ignore[arg-type]


class Found(NamedTuple):
    """By one search: errors, states that it stored, and what spin said of the first error."""

    errors: int
    states: int
    first: str


class Search(NamedTuple):
    """One of them, of a model with these names defined."""

    model: str
    defines: tuple[str, ...]
    kind: str
    optimise: str
    slots: str  # 2 to that, of the table of states

    def run(self) -> Found:
        """To its end, or its first error."""
        compiled, asked = SEARCHES[self.kind]
        with tempfile.TemporaryDirectory(prefix="model-") as at:

            def run(*command: str) -> str:
                done = subprocess.run(command, cwd=at, capture_output=True, text=True, timeout=300, check=True)
                return done.stdout

            shutil.copy(MODELS / f"{self.model}.pml", at)
            run("spin", "-a", *(f"-D{name}" for name in self.defines), f"{self.model}.pml")
            run("cc", self.optimise, "-w", *compiled, "-o", "pan", "pan.c")
            out = run("./pan", "-m100000", self.slots, *asked)
        errors, states = re.search(r"errors: (\d+)", out), re.search(r"(\d+) states, stored", out)
        assert errors is not None and states is not None, out
        assert "max search depth too small" not in out
        first = re.search(r"^pan:1: (.*)", out, re.MULTILINE)
        return Found(int(errors[1]), int(states[1]), first[1] if first else "")


def searches(model: str, defines: list[str], how: str = "") -> list[Search]:
    """Both of a model that holds; of a mutant the one that finds it, most of which end sooner than a compiler would."""
    kinds = ["states", "cycles"] if not how else ["cycles" if how == "non-progress cycle" else "states"]
    speed = ("-O0", "-w18") if how else ("-Og", "-w24")
    return [Search(model, tuple(defines), kind, *speed) for kind in kinds]


Finder = Callable[..., list[Found]]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Iterator[Finder]:
    """found(model, defines[, how]): what its searches found. Those of all tests that are to be run are made one after
    the other, as many at a time as there are cores; a test waits for its own.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed, so that the models of the protocols are not searched")
    # In processes, so that no test sees another's pipes and children.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("fork")) as pool:
        made = {}
        for item in request.session.items:
            if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec"):
                for one in searches(**item.callspec.params):
                    made[one] = pool.submit(one.run)
        yield lambda *case: [made[one].result() for one in searches(*case)]
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("model", "defines"), HOLDS, ids=title)
def test_model_holds(model: str, defines: list[str], found: Finder, proof: Callable[..., None]) -> None:
    states, cycles = found(model, defines)
    assert states.errors == 0, states.first
    assert cycles.errors == 0, cycles.first
    assert 10_000 < states.states < cycles.states, "a search of next to nothing"
    proof(f"model: {model}, {title(defines)}", states=states.states, deadlocks=states.errors, livelocks=cycles.errors)


@pytest.mark.parametrize(("model", "defines", "how"), FAILS, ids=title)
def test_mutant_fails(model: str, defines: list[str], how: str, found: Finder, proof: Callable[..., None]) -> None:
    (mutant,) = found(model, defines, how)
    assert mutant.errors > 0
    assert how in mutant.first
    proof(f"model: {model}, {title(defines)}", states=mutant.states, **{"fails, as it must:": mutant.first})


def test_every_mutant_of_the_models_is_here() -> None:
    for model in ("wait", "lock", "barrier", "bell"):
        text = (MODELS / f"{model}.pml").read_text()
        named = set(re.findall(r"^ \*   -D(\w+)", text, re.MULTILINE))
        cases = HOLDS + [(case, names) for case, names, _ in FAILS]
        used = {name for case, names in cases if case == model for name in names}
        assert named == used
