"""Places in a piece of work: `at_place` does something at the n-th of them, so that a test can visit each.

    LOOKS            where the interpreter looks for signals: a handler runs, and may raise, nowhere else. That is on
                     entering a Python function, on jumping back, and after a call of C
    lines_of(...)    before each line of those modules
    opcodes_of(...)  before each instruction of those modules, so between two calls within a line too

`LOOKS` are places in any function; the modules' own are in what they define.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import CodeType, FrameType, ModuleType
from typing import Any, Literal


@dataclass(frozen=True)
class Places:
    """Which they are: of the events that the interpreter traces in `inside`, those that are one."""

    event: Literal["line", "opcode"]
    inside: Callable[[CodeType], bool]
    is_one: Callable[[FrameType], bool]


def at_place(n: int, places: Places, work: Callable[[], object], act: Callable[[FrameType], object]) -> bool:
    """Runs work() and act() at the n-th place, the first of which is 0; False when work() ended before that."""
    left = n

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if event == "call":
            if not places.inside(frame.f_code):
                return None
            frame.f_trace_opcodes = places.event == "opcode"
            frame.f_trace_lines = places.event == "line"
        elif event == places.event and left >= 0 and places.is_one(frame):
            left -= 1
            if left < 0:
                sys.settrace(None)
                act(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return left < 0


# -- lines and instructions -------------------------------------------------------------------------------------------


def _of(event: Literal["line", "opcode"], modules: tuple[ModuleType, ...]) -> Places:
    files = {module.__file__ for module in modules}
    return Places(event, lambda code: code.co_filename in files, lambda _frame: True)


def lines_of(*modules: ModuleType) -> Places:
    return _of("line", modules)


def opcodes_of(*modules: ModuleType) -> Places:
    return _of("opcode", modules)


# -- looks for signals ------------------------------------------------------------------------------------------------

_LOOKING = ("RESUME", "JUMP_BACKWARD", "CALL", "CALL_FUNCTION_EX", "CALL_KW")
_known: dict[CodeType, set[int]] = {}


def _looks_of(code: CodeType) -> set[int]:
    """The offsets of the instructions right before which the interpreter looks for signals.

    What is raised there belongs to the instruction before: where the two stand under different handlers (`return f()`
    as the last line of a `try`) raising at this one would be a place that does not exist.
    """
    if code not in _known:
        entries = dis._parse_exception_table(code)  # type: ignore[attr-defined]

        def handlers(offset: int) -> list[int]:
            return [entry.target for entry in entries if entry.start <= offset < entry.end]

        steps = list(dis.get_instructions(code))
        _known[code] = {
            this.offset
            for before, this in pairwise(steps)
            if before.opname in _LOOKING and handlers(before.offset) == handlers(this.offset)
        }
    return _known[code]


LOOKS = Places("opcode", lambda _code: True, lambda frame: frame.f_lasti in _looks_of(frame.f_code))
