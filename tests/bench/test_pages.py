"""Memory of a forked process's own: written to, it costs no faults."""

from __future__ import annotations

import resource

import pytest
from harness import Me, Team

from bench.pages import make_own

SIZE, PAGE = 8 << 20, 4096


def _faults(me: Me, memory: bytearray, own: bool) -> int:
    if own:
        make_own()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for at in range(0, SIZE, PAGE):
        memory[at] += 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.parametrize("own", [False, True])
def test_a_fork_shares_what_is_not_made_its_own(team: Team, own: bool) -> None:
    memory = bytearray(b"x" * SIZE)
    faults = team.start(_faults, memory, own, how="fork").result()
    assert faults < SIZE // PAGE // 8 if own else faults > SIZE // PAGE // 8
