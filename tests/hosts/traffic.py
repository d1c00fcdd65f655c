"""What passes the wire at a barrier and at a synchronize, and how long the last one to come waits: flat, and hybrid.

    python tests/hosts/traffic.py                                          # 1, 2, 4 and 8 nodes of 8 ranks: a minute
    python tests/hosts/traffic.py --nodes 2 --ranks 2 --rounds 3           # a quick look
    python tests/hosts/traffic.py --json traffic.json --plot traffic.svg
    python tests/hosts/traffic.py --show traffic.json                      # what was measured before

Each node is a host of a cluster (cluster.py), the server has a host of its own, and all connections go through a relay
that delays each direction and counts. In a round all ranks but one arrive; when nothing passes the relay any more, the
last one does. From its arrival to the last release it takes so many round trips, of two delays each. Who is last goes
round: the last rank, the first, one in the middle. Messages are requests and answers of the protocol; a write is what
was sent at once, which may be several of them. Both, and bytes, are those of a round.

All processes share this machine's cores, and go before its others where they may (SCHED_RR): the relay and the server
first, as they would be other machines; then the ranks that meet; last those that have been released. A process of the
lowest class (SCHED_IDLE) runs on each core, so that no core has fallen asleep when a message comes: on a virtual
machine that costs as much as all the rest. What the processes themselves take beside the round trips is shown as "no
delay": the same time with a relay that sends on at once. Where that is much, a longer delay (--delay-ms 10) says how
many round trips there are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

sys.path.insert(1, str(Path(__file__).parents[1]))  # harness
sys.path.insert(2, str(Path(__file__).parents[2]))  # bench

import namespaces
import residents
from cluster import Address, Cluster, Process, Rank, Relay

import shmstore
from bench.hogs import hogs
from shmstore import TCPStore, elastic

PATIENCE_S: Final = 60.0
QUIET_S: Final = 0.02
WARM: Final = 6
"""Rounds before it counts: a forked process copies a page of its parent's when it first writes to it."""
MEETS: Final = 2
"""The priority of a rank that meets; the server and the relay go before it, as they would be other machines."""

# -- what is measured -------------------------------------------------------------------------------------------------


def flat(stack: ExitStack, rank: Rank, address: Address) -> Any:
    """Each rank asks the server for itself."""
    return stack.enter_context(TCPStore(*address, timeout=PATIENCE_S))


def hybrid(stack: ExitStack, rank: Rank, address: Address) -> Any:
    """Memory inside the node, the server across nodes."""
    return stack.enter_context(residents.hybrid(rank, address, PATIENCE_S))


STORES: Final[dict[str, Callable[[ExitStack, Rank, Address], Any]]] = {"flat": flat, "hybrid": hybrid}
Meet = Callable[[str], Any]
"""One meeting of all ranks, under a name that no other had."""


def ways(store: Any, rank: Rank, data: bytes) -> dict[str, Meet]:
    """All that is measured, by name."""
    number, world = rank.number, rank.world
    reused = shmstore.Barrier(store, "reused", world, number, timeout=PATIENCE_S)
    return {
        "elastic.barrier": lambda key: elastic.barrier(store, world, key, PATIENCE_S, rank=number),
        "elastic.synchronize": lambda key: elastic.synchronize(store, data, number, world, key, PATIENCE_S),
        "Store.barrier": lambda key: store.barrier(key, world),
        "Barrier.wait": lambda _key: reused.wait(),
    }


WAYS: Final = ("elastic.barrier", "elastic.synchronize", "Store.barrier", "Barrier.wait")


def member(me: Any, rank: Rank, kind: str, address: Address, size: int) -> None:
    """A rank: meets as it is told, until it is killed; says when it came and when it left."""
    namespaces.before_others(MEETS)
    forward, back = namespaces.turn(MEETS), namespaces.turn(MEETS - 1)
    with ExitStack() as stack:
        meet = ways(STORES[kind](stack, rank, address), rank, b"%d" % rank.number * size)
        me.ready()
        while True:
            way, key = me.hear()
            forward()
            me.say("coming")
            came = monotonic()
            meet[way](key)
            left = monotonic()
            back()  # those who are still to be released go before what it says
            me.say((came, left))


# -- the measurement --------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """Of one store, one way and one size: per round, and the round trips of each round."""

    store: str
    way: str
    nodes: int
    per_node: int
    rounds: int
    messages: float
    writes: float
    bytes: float
    ops: dict[str, float]
    round_trips: list[float]
    own_ms: float
    """The same time without any delay: what the processes and the relay need on this machine."""
    late_us: float
    """The 99th percentile of what the relay added to a delay."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node

    @property
    def median(self) -> float:
        return statistics.median(self.round_trips)


@dataclass(frozen=True)
class Plan:
    nodes: Sequence[int]
    per_node: int
    rounds: int
    delay_s: float
    size: int
    ways: Sequence[str]


def measure(kind: str, nodes: int, plan: Plan) -> list[Row]:
    """A cluster of that many nodes, all ways on it."""
    with Cluster(nodes + 1, budget=300) as cluster:
        *hosts, host = cluster.hosts
        relay = cluster.relay(cluster.serve(host, before_others=True).address, plan.delay_s)
        ranks = cluster.start_ranks(plan.per_node, member, kind, relay.address, plan.size, hosts=hosts)
        cluster.go()
        return [measure_way(kind, way, nodes, plan, relay, ranks) for way in plan.ways]


def measure_way(kind: str, way: str, nodes: int, plan: Plan, relay: Relay, ranks: Sequence[Process]) -> Row:
    world = len(ranks)
    lasts = [world - 1, 0, world // 2]
    for i in range(WARM):
        one_round(way, f"warm{i}", relay, ranks, lasts[i % 3])
    relay.quiet(QUIET_S)
    relay.reset()
    spans = [one_round(way, f"round{i}", relay, ranks, lasts[i % 3]) for i in range(plan.rounds)]
    relay.quiet(QUIET_S)  # what was said behind the release counts too
    counts = relay.counts()
    total, n = counts.total, plan.rounds
    assert total.unread == 0, "not all was of the protocol"
    late = sorted(counts.late_us) or [0.0]
    relay.delay(0.0)
    own = [one_round(way, f"own{i}", relay, ranks, lasts[i % 3]) for i in range(max(3, plan.rounds // 3))]
    relay.quiet(QUIET_S)
    relay.delay(plan.delay_s)
    return Row(
        store=kind,
        way=way,
        nodes=nodes,
        per_node=plan.per_node,
        rounds=n,
        messages=total.messages / n,
        writes=total.writes / n,
        bytes=total.bytes / n,
        ops={op: count / n for op, count in Counter(total.ops).most_common()},
        round_trips=[span / (2 * plan.delay_s) for span in spans],
        own_ms=statistics.median(own) * 1e3,
        late_us=late[int(len(late) * 0.99)],
    )


def one_round(way: str, key: str, relay: Relay, ranks: Sequence[Process], last: int) -> float:
    """Seconds from the last arrival to the last release."""
    early = [rank for i, rank in enumerate(ranks) if i != last]
    for some in (early, [ranks[last]]):
        for rank in some:
            rank.say((way, f"{way}/{key}"))
        for rank in some:
            assert rank.hear() == "coming"
        if some is early:
            relay.quiet(QUIET_S)
    spans = [rank.hear() for rank in ranks]
    came = [came for came, _ in spans]
    assert max(came) == came[last], "who was to be last was not"
    return float(max(left for _, left in spans) - came[last])


# -- what is shown ----------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    head = f"{'':20} {'':7} {'nodes':>5} {'ranks':>5} {'messages':>9} {'writes':>8} {'bytes':>10}"
    lines = [f"{head}   {'round trips':<22}  no delay", f"{'':72}{'median (least to most)':<22}        ms"]
    for row in sorted(rows, key=lambda row: (WAYS.index(row.way), row.nodes, row.store)):
        trips = f"{row.median:6.2f} ({min(row.round_trips):.2f} to {max(row.round_trips):.2f})"
        lines.append(
            f"{row.way:20} {row.store:7} {row.nodes:5} {row.ranks:5} {row.messages:9.1f} {row.writes:8.1f} "
            f"{row.bytes:10.0f}   {trips:<22}  {row.own_ms:8.2f}"
        )
    return "\n".join(lines)


def save(plan: Plan, rows: Sequence[Row], path: Path) -> None:
    path.write_text(json.dumps({"plan": asdict(plan), "rows": [asdict(row) for row in rows]}, indent=1))


def draw(rows: Sequence[Row], path: Path) -> None:
    """A column for each way; above it messages, below it round trips, by the number of nodes."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    shown = [way for way in WAYS if any(row.way == way for row in rows)]
    figure, panels = plt.subplots(2, len(shown), figsize=(4 * len(shown), 7), squeeze=False, sharex=True)
    for column, way in zip(panels.T, shown, strict=True):
        for kind in STORES:
            mine = [row for row in rows if (row.way, row.store) == (way, kind)]
            if mine:
                nodes = [row.nodes for row in mine]
                column[0].plot(nodes, [row.messages for row in mine], "o-", label=kind)
                column[1].plot(nodes, [row.median for row in mine], "o-", label=kind)
        column[0].set_title(way)
        column[0].set_yscale("symlog")
        column[1].set_xlabel(f"nodes of {rows[0].per_node} ranks")
        column[1].set_ylim(bottom=0)
        column[0].legend()
    panels[0][0].set_ylabel("messages on the wire")
    panels[1][0].set_ylabel("round trips, last arrival to last release")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--ranks", type=int, default=8, help="on each node")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--delay-ms", type=float, default=1.0, help="one way")
    parser.add_argument("--bytes", type=int, default=32, help="about so many digits a rank in a synchronize")
    parser.add_argument("--stores", nargs="+", choices=list(STORES), default=list(STORES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="its suffix is the format")
    parser.add_argument("--show", type=Path, help="measures nothing: the table, and plot, of such a JSON file")
    asked = parser.parse_args()
    rows = [Row(**row) for row in json.loads(asked.show.read_text())["rows"]] if asked.show else run(asked)
    print(table(rows))
    if asked.plot:
        draw(rows, asked.plot)


def run(asked: argparse.Namespace) -> list[Row]:
    if namespaces.why_not():
        sys.exit(f"no hosts of network namespaces here: {namespaces.why_not()}")
    plan = Plan(asked.nodes, asked.ranks, asked.rounds, asked.delay_ms / 1e3, asked.bytes, asked.ways)
    rows: list[Row] = []
    with hogs(sorted(os.sched_getaffinity(0))) as busy:
        for pid in busy:
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        for kind in asked.stores:
            for nodes in plan.nodes:
                rows += measure(kind, nodes, plan)
                print(f"{kind}, {nodes} nodes: measured", file=sys.stderr)
    if asked.json:
        save(plan, rows, asked.json)
    return rows


if __name__ == "__main__":
    main()
