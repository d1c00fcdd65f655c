"""Values from a few bytes to 8 MiB: where copying takes over from everything else."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records import Case, Session, Timing
from bench.scenarios.base import Client, Effort, Job, Scenario
from bench.scenarios.verbs import LOOPS, fill, keys_of

__all__ = ["Sizes"]

KIB = 1 << 10
SIZES = (32, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, KIB * KIB, 8 * KIB * KIB)
QUICK_SIZES = (32, 64 * KIB, 8 * KIB * KIB)
KEYS = 2
ROUND_BYTES = 64 << 20
"""A sample sets no more than that: FileStore keeps all that was ever set."""


class Sizes(Scenario):
    """set and get by the size of the value."""

    name = "sizes"
    text = f"One client, {KEYS} keys in turn, values of 32 bytes to 8 MiB; all on one core. Time of a call."
    axis = "value_bytes"

    def sessions(self, effort: Effort) -> Sequence[Session]:
        """A session for each size."""
        return [
            Session(
                self.name,
                1,
                tuple(
                    Case(verb, {"value_bytes": size}, (verb, "set", "holds"), most=max(1, ROUND_BYTES // size))
                    for verb in ("set", "get")
                ),
                effort.rounds,
                effort.target_s,
                pin="one",
            )
            for size in (QUICK_SIZES if effort.quick else SIZES)
        ]

    def prepare(self, case: Case, client: Client, rank: int, world: int) -> None:
        """Sets the keys."""
        del rank, world
        client.notes["keys"] = keys_of("sizes", KEYS)
        client.notes["value"] = value = bytes(int(case.params["value_bytes"]))
        for key in client.notes["keys"]:
            fill(client.store, [key], value)

    def work(self, client: Client, job: Job) -> Timing:
        """The verb's loop."""
        return LOOPS[job.case.measure](client.store, client.notes["keys"], client.notes["value"], job)
