"""Fresh processes here are forked from a stem: an interpreter's start is what spawn and forkserver test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Team
from stem import Stem


@pytest.fixture
def team(stem: Stem) -> Iterator[Team]:
    """As everywhere."""
    with Team(80, stem) as team:
        yield team
