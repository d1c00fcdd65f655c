"""Every test here has hosts, or is skipped with the reason; no namespace of a cluster outlives its test."""

from __future__ import annotations

from collections.abc import Iterator

import namespaces
import pytest
from cluster import Cluster


@pytest.fixture(autouse=True, scope="session")
def hosts() -> None:
    if namespaces.why_not():
        pytest.skip(f"no hosts of network namespaces here, so that nothing is tested across: {namespaces.why_not()}")


@pytest.fixture(autouse=True)
def none_left(hosts: None) -> Iterator[None]:
    Cluster.made.clear()
    yield
    if Cluster.made:
        assert namespaces.holders(Cluster.made) == [], "namespaces left behind"
