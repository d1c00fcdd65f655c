"""Fresh processes here are forked from a stem that has imported torch, which takes two seconds a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Team
from stem import Stem


@pytest.fixture(scope="session")
def torch_stem() -> Iterator[Stem]:
    pytest.importorskip("torch.distributed", reason="these are tests of what torch does with our stores")
    stem = Stem("torch.distributed", "shmstore.torch")
    yield stem
    stem.close()


@pytest.fixture
def team(torch_stem: Stem) -> Iterator[Team]:
    """As everywhere."""
    with Team(80, torch_stem) as team:
        yield team
