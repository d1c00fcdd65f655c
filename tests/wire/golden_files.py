"""Reads the files of golden/, whose notation `record_golden.py` explains."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
NONCE = b"\x01\x02\x03\x04"


@dataclass
class Case:
    """One case: its name, the call, what another client did, the turns of both sides, and the call's result."""

    name: str
    call: str = ""
    beside: str = ""
    result: str = ""
    turns: list[tuple[str, bytes]] = field(default_factory=list)
    end: str = ""  # "server closes", "server silent", "client closes"

    def said(self, who: str) -> bytes:
        """All that one side said."""
        return b"".join(data for side, data in self.turns if side == who)


def bytes_of(text: str) -> bytes:
    """Bytes from their notation."""
    data = b""
    for word in text.replace("<nonce>", NONCE.hex()).split():
        unit, _, times = word.partition("*")
        data += bytes.fromhex(unit) * int(times or 1)
    return data


def read(name: str) -> list[Case]:
    """The cases of a file, in their order."""
    cases: list[Case] = []
    for line in (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        word, _, rest = line.partition(" ")
        if word == "==":
            cases.append(Case(rest))
        elif word in ("call", "beside", "result"):
            setattr(cases[-1], word, rest.strip())
        elif rest in ("closes", "silent"):
            cases[-1].end = line
        elif word and word != "#":
            cases[-1].turns.append((word, bytes_of(rest)))
    return cases
