"""What is timed. `SCENARIOS` is the list, in the order in which they run and are shown."""

from __future__ import annotations

from bench.scenarios.attach import Attach
from bench.scenarios.barriers import Barriers
from bench.scenarios.base import Scenario
from bench.scenarios.busy import Busy
from bench.scenarios.groups import Groups, Jobs
from bench.scenarios.keys import Keys, Memory
from bench.scenarios.processes import Hot, Processes
from bench.scenarios.sizes import Sizes
from bench.scenarios.verbs import Verbs
from bench.scenarios.wire import Release, Traffic

__all__ = ["SCENARIOS"]

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Verbs(),
        Busy(),
        Processes(),
        Hot(),
        Sizes(),
        Barriers(),
        Keys(),
        Memory(),
        Attach(),
        Traffic(),
        Release(),
        Groups(),
        Jobs(),
    )
}
"""Name -> scenario."""
