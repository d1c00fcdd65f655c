"""The life of a segment by its name, killed at every step: opening, sharing, leaving, removing.

A step is a line of the life cycle's modules, executed. A victim does a scenario's work and is stopped right before its
n-th step, for n = 0, 1, 2, … until it comes through:

    killed      it raises SIGKILL on itself
    amid        it stops itself; another process opens the name, to the end or until it is refused the lock file;
                then the victim is killed
    overtaken   the same, but then the victim goes on, and must come through, into the same segment if it opened one

After each of them: whoever opened, and those who open now, are through at once, long before any timeout; have a segment
that works and is the same one for all who live; find of what was there before what they should. `verify` is clean,
alive are exactly those who live, each rank is its owner's and the victim's its next one's. A process that held the
segment all the while still has it, by its name and with its contents. When all have closed nothing is left.

Short form: each second line; `amid` and `overtaken` where a scenario is `raced`. SHMSTORE_LONG=1: each instruction,
so between two calls of one line too, and all three in all scenarios. Left out in both: what happens inside one call of
C (`tests/core` kills at each store there), two deaths or two openers at the same time, forks, and stores without a
name, of which a death leaves nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from harness import Team
from kill_scenarios import SCENARIOS
from kills import BUDGET_S, LONG, MODES, sweep
from stem import Stem

WORKERS = min(4, len(os.sched_getaffinity(0)))
EACH = 1 if LONG else 2
"""From one step that is died at to the next."""
LEAST = 80 // EACH
"""Steps of the shortest scenario: a tracer that sees fewer is broken."""


@pytest.mark.timeout(BUDGET_S + 10)
@pytest.mark.parametrize("title", SCENARIOS)
def test_whoever_dies_at_any_step_the_others_go_on(
    title: str, name: str, stem: Stem, proof: Callable[..., None]
) -> None:
    scenario = SCENARIOS[title]
    modes = list(MODES if LONG or scenario.raced else MODES[:1])
    with Team(BUDGET_S, stem) as team:
        for first in range(WORKERS):
            team.start(sweep, title, modes, name, first * EACH, WORKERS * EACH)
        shown = list(zip(*team.results(), strict=True))
    for mode, parts in zip(modes, shown, strict=True):
        steps = sum(part.killed + part.overtaken for part in parts)
        assert steps >= LEAST, f"{title}, {mode}: {steps} steps only"
        missing = scenario.passes - set().union(*(part.passed for part in parts))
        assert not missing, f"{title}, {mode}: no step was in {sorted(missing)}"
    parts = [part for mode in shown for part in mode]
    kills = sum(part.killed for part in parts)
    overtaken = sum(part.overtaken for part in parts)
    slowest_ms = max(part.slowest_s for part in parts) * 1000
    went_on = sum(part.went_on for part in parts)
    proof(f"life: {title}", kills=kills, overtaken=overtaken, **{"others went on": went_on, "slowest ms": slowest_ms})
