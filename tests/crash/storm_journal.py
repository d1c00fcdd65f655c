"""The journal of a storm, and what it says about the segment: the oracle that lives outside of it.

A worker writes one line to its own file, by one write(), before each verb and one after it:

    B <seq> <time> <verb> <key> <argument>        about to do it
    D <seq> <time> <result>                       did it, and got that

What a SIGKILL leaves is a line cut short (as good as not written) or a B without its D: the verb happened wholly or not
at all, at some moment between the B's time and the death. `check` takes all operations of a round and what the segment
holds at its end, and says what cannot be:

    n/…     add(key, 1)        the answers are distinct; the count is theirs, and at most one more an unanswered add
    a/…     add(key, n)        the sum is that of the answered, and of some of the unanswered
    s/… own/…  set, multi_set, delete_key, get   every value read, the last one too, is whole and was not yet replaced
    log/…   append             an answered piece is there once, an unanswered at most once, and no other; in order
    q/…     push, pop          an answered item is popped once or still there; one can be lost to a killed pop; in order
    claim/… compare_set        one winner, whom everybody was told
    cell/…  compare_set        each number was put there by one
    b/…     barrier            as many arrivals as barriers were entered
    sig/…   set, wait          a wait that began after the set was answered sees it
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

FOREVER: Final = 1 << 62
MISSING: Final = b"-"
BUSY: Final = b"busy"
"""A verb whose short timeout passed on a lock that a living process held: nothing has happened, nothing was learnt."""


class Op(NamedTuple):
    """One operation. Times are nanoseconds of CLOCK_MONOTONIC; `end` of an unanswered one is its worker's death."""

    tag: bytes  # worker:seq, unique; what it writes carries it
    start: int
    end: int
    verb: bytes
    key: bytes
    arg: bytes
    result: bytes | None  # None: its worker was killed in the middle

    @property
    def worker(self) -> int:
        return int(self.tag.split(b":")[0])

    @property
    def seq(self) -> int:
        return int(self.tag.split(b":")[1])


class Holdings(NamedTuple):
    """What the segment holds at the end: values by key, items by queue."""

    values: dict[bytes, bytes]
    queues: dict[bytes, list[bytes]]


# -- values that show whether they are whole --------------------------------------------------------------------------


def payload(tag: bytes, size: int) -> bytes:
    """At least the tag; of that size if it is larger."""
    head = tag + b"|"
    return (head * (size // len(head) + 1))[: max(size, len(head))]


def tag_of(value: bytes) -> bytes:
    """The tag of a payload, or b"torn" when it is not one."""
    tag = value[: value.find(b"|")] if b"|" in value else b""
    return tag if tag and value == payload(tag, len(value)) else b"torn"


# -- reading ----------------------------------------------------------------------------------------------------------


def read(directory: Path, deaths: dict[int, int]) -> tuple[list[Op], list[str]]:
    """All operations of the workers' files, and what workers that failed had to say."""
    ops: list[Op] = []
    failures: list[str] = []
    for entry in os.scandir(directory):
        worker = int(entry.name)
        lines = Path(entry.path).read_bytes().split(b"\n")[:-1]  # what is behind the last newline was cut short
        begun: list[bytes] = []
        for line in lines:
            kind, *rest = line.split(b" ")
            if kind == b"B":
                begun = rest
            elif kind == b"D":
                ops += _expanded(worker, begun, int(rest[1]), rest[2])
                begun = []
            else:
                failures.append(f"worker {worker}: {bytes.fromhex(rest[0].decode()).decode()}")
                begun = []
        if begun:
            ops += _expanded(worker, begun, deaths.get(worker, FOREVER), None)
    return ops, failures


def _expanded(worker: int, begun: list[bytes], end: int, result: bytes | None) -> Iterator[Op]:
    """A multi_set is a set of each of its keys, in the same span of time."""
    seq, start, verb, keys, arg = begun
    for key in keys.split(b","):
        yield Op(b"%d:%s" % (worker, seq), int(start), end, verb, key, arg, result)


# -- checking ---------------------------------------------------------------------------------------------------------


def check(ops: Iterable[Op], final: Holdings) -> list[str]:
    """One line for each thing that cannot be; [] when all of it can."""
    of: dict[bytes, list[Op]] = defaultdict(list)
    for op in ops:
        of[op.key].append(op)
    bad = [f"{key!r} is in the segment, and nobody made it" for key in {*final.values, *final.queues} - of.keys()]
    for key, group in of.items():
        family = key.split(b"/")[0]
        if family == b"q":
            found = _queue(group, final.queues.get(key, []))
        elif family in CHECKS:
            found = CHECKS[family](group, final.values.get(key))
        else:
            continue
        bad += [f"{key.decode()}: {line}" for line in found]
    return bad


def _number(value: bytes | None) -> int:
    return int(value.split(b" ")[0]) if value is not None else 0


def _out_of_order(items: list[tuple[int, int, int]]) -> Iterator[str]:
    """(start, end, place): what ended before another began has the lower place."""
    by_end = sorted((end, place) for _, end, place in items)
    ends = [end for end, _ in by_end]
    highest = [0]
    for _, place in by_end:
        highest.append(max(highest[-1], place))
    for start, _, place in items:
        before = highest[bisect_left(ends, start)]
        if before > place:
            yield f"place {place} was taken after place {before} had been answered"


def _counted(ops: list[Op], value: bytes | None) -> Iterator[str]:
    """Answers are 1, 2, 3, …; holes belong to the killed."""
    answered = [(op.start, op.end, int(op.result)) for op in ops if op.result is not None]
    pending = sum(op.result is None for op in ops)
    yield from _numbers(Counter(number for _, _, number in answered), _number(value), pending)
    yield from _out_of_order(answered)


def _numbers(answers: Counter[int], total: int, pending: int) -> Iterator[str]:
    twice = [number for number, times in answers.items() if times > 1]
    if twice:
        yield f"answered twice: {twice[:5]}"
    beyond = [number for number in answers if not 1 <= number <= total]
    if beyond:
        yield f"{len(beyond)} answered and lost: {beyond[:5]}, it counts to {total}"
    if total - len(answers) > pending:
        yield f"it counts to {total}: {len(answers)} answered, {pending} killed, the rest was applied twice"


def _summed(ops: list[Op], value: bytes | None) -> Iterator[str]:
    rest = _number(value) - sum(int(op.arg) for op in ops if op.result is not None)
    reachable = 1  # bit i: some of the unanswered make up i
    for op in ops:
        if op.result is None:
            reachable |= reachable << int(op.arg)
    if rest < 0 or not reachable >> rest & 1:
        yield f"the sum is off by {rest}: no choice of what was killed makes that up"


def _register(ops: list[Op], value: bytes | None) -> Iterator[str]:
    """Reads, the one at the end too, see a write that may have been the last one before them."""
    writes = {op.tag: op for op in ops if op.verb in (b"set", b"mset")}
    erasures = sorted(
        (op.start, op.end) for op in ops if op.verb == b"del" and op.result != b"0"
    )  # a delete_key that said False wrote nothing
    erasures.insert(0, (-1, -1))  # before all, the key is not there
    answered = sorted(
        (op.end, op.start)
        for op in ops
        if op.result is not None and (op.verb in (b"set", b"mset") or (op.verb == b"del" and op.result == b"1"))
    )
    ends = [end for end, _ in answered]
    newest = [-2]  # the latest start among the answered writes, in the order of their ends
    for _, start in answered:
        newest.append(max(newest[-1], start))
    starts = [start for start, _ in erasures]
    last_end = []
    for _, end in erasures:
        last_end.append(max(end, last_end[-1]) if last_end else end)

    def admissible(tag: bytes, start: int, end: int) -> str | None:
        replaced = newest[bisect_left(ends, start)]  # a write that began then was answered before this read began
        if tag == MISSING:
            gone = last_end[bisect_left(starts, end) - 1]
            return None if gone >= replaced else "it is not there, though it was set and not deleted since"
        write = writes.get(tag)
        if write is None or write.start > end:
            return f"holds {tag!r}, which nobody had written" if tag != b"torn" else "holds a torn value"
        return None if write.end >= replaced else f"holds {tag!r}, which had been replaced"

    for op in ops:
        if op.verb == b"get" and op.result not in (None, BUSY):
            assert op.result is not None
            wrong = admissible(op.result, op.start, op.end)
            if wrong:
                yield f"read by {op.tag.decode()}: {wrong}"
    wrong = admissible(MISSING if value is None else tag_of(value), FOREVER + 1, FOREVER + 2)
    if wrong:
        yield f"at the end: {wrong}"


PIECE: Final = re.compile(rb"<(\d+:\d+)\.*>")


def _appended(ops: list[Op], value: bytes | None) -> Iterator[str]:
    value = value or b""
    found = [(match.group(1), match.end() - match.start()) for match in PIECE.finditer(value)]
    if sum(size for _, size in found) != len(value):
        yield f"{len(value)} bytes, of which {sum(size for _, size in found)} are whole pieces"
    places = {tag: place for place, (tag, _) in enumerate(found, 1)}
    if len(places) != len(found):
        yield f"{len(found) - len(places)} pieces are there twice"
    unknown = places.keys() - {op.tag for op in ops}
    if unknown:
        yield f"{len(unknown)} pieces of nobody: {sorted(unknown)[:5]}"
    lost = [op.tag for op in ops if op.result is not None and op.tag not in places]
    if lost:
        yield f"{len(lost)} answered pieces are lost: {lost[:5]}"
    yield from _out_of_order([(op.start, op.end, places[op.tag]) for op in ops if op.tag in places])


def _queue(ops: list[Op], left: list[bytes]) -> Iterator[str]:
    pushes = {op.tag: op for op in ops if op.verb == b"push"}
    pops = [op for op in ops if op.verb == b"pop" and op.result not in (None, MISSING)]
    killed_pops = sum(op.verb == b"pop" and op.result is None for op in ops)
    out = Counter(op.result for op in pops if op.result is not None)
    out.update(tag_of(item) for item in left)
    twice = [tag for tag, times in out.items() if times > 1]
    if twice:
        yield f"items delivered twice: {twice[:5]}"
    unknown = out.keys() - pushes.keys()
    if unknown:
        yield f"items of nobody: {sorted(unknown)[:5]}"
    lost = [tag for tag, op in pushes.items() if op.result is not None and tag not in out]
    if len(lost) > killed_pops:
        yield f"{len(lost)} answered items are lost, {killed_pops} pops were killed: {lost[:5]}"
    early = [op.tag for op in pops if op.result in pushes and pushes[op.result].start > op.end]  # type: ignore[index]
    if early:
        yield f"popped before they were pushed: {early[:5]}"
    yield from _queue_order(pops, [tag_of(item) for item in left])


def _queue_order(pops: list[Op], left: list[bytes]) -> Iterator[str]:
    """What one popper got of one pusher, and what is left of one, comes in the order it was pushed."""
    seen: dict[tuple[int, bytes], int] = {}
    ordered = [(op.worker, op.result) for op in sorted(pops, key=lambda op: op.start)]
    for popper, tag in [*ordered, *((-1, tag) for tag in left)]:
        if tag is None or b":" not in tag:
            continue
        pusher, seq = tag.split(b":")
        if seen.get((popper, pusher), -1) > int(seq):
            yield f"{tag!r} came out after a later item of the same pusher"
        seen[popper, pusher] = int(seq)


def _claimed(ops: list[Op], value: bytes | None) -> Iterator[str]:
    told = {op.result for op in ops if op.result is not None}
    if len(told) > 1:
        yield f"several winners: {sorted(told)[:5]}"  # type: ignore[type-var]
    if told and value not in told:
        yield f"{told} won, and it holds {value!r}"
    if value is not None and value not in {op.tag for op in ops}:
        yield f"claimed by nobody: {value!r}"


def _swapped(ops: list[Op], value: bytes | None) -> Iterator[str]:
    """compare_set from each number to the next: arg is the number, result 1 when it was put there."""
    total = _number(value)
    won = Counter(int(op.arg) for op in ops if op.result == b"1")
    yield from _numbers(won, total, FOREVER)
    killed = {int(op.arg) for op in ops if op.result is None}
    holes = [number for number in range(1, total + 1) if number not in won and number not in killed]
    if holes:
        yield f"numbers that nobody put there: {holes[:5]}"


def _arrived(ops: list[Op], value: bytes | None) -> Iterator[str]:
    """A barrier that times out on the lock may not have arrived: its result is `busy`."""
    sure = sum(op.result in (b"passed", b"late") for op in ops)
    if not sure <= _number(value) <= len(ops):
        yield f"{_number(value)} arrivals, of {sure} answered and {len(ops) - sure} killed"


def _signalled(ops: list[Op], value: bytes | None) -> Iterator[str]:
    sets = [op for op in ops if op.verb == b"set"]
    answered = min((op.end for op in sets if op.result is not None), default=FOREVER)
    begun = min((op.start for op in sets), default=FOREVER)
    for op in ops:
        if op.verb == b"wait" and op.result == b"late" and answered < op.start:
            yield f"{op.tag!r} waited in vain for what was there"
        if op.verb == b"wait" and op.result == b"there" and begun > op.end:
            yield f"{op.tag!r} saw what nobody had set"
    if value is None and answered < FOREVER:
        yield "set, and not there at the end"


CHECKS: Final = {
    b"n": _counted,
    b"a": _summed,
    b"s": _register,
    b"own": _register,
    b"log": _appended,
    b"claim": _claimed,
    b"cell": _swapped,
    b"b": _arrived,
    b"sig": _signalled,
}
