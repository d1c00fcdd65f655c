"""What the tests of death, of fuzzing and of the models have shown: their records, and the table that is made of them.

    python tests/proofs.py run DIRECTORY [--all] -- COMMAND...     empties DIRECTORY, runs it, prints what it recorded
    python tests/proofs.py table DIRECTORY [--all]                 prints what lies in DIRECTORY
    python tests/proofs.py add STATE WHAT [NAME=VALUE...]          a record, for a Makefile

A record is a line of fields with a tab between them: a state, what it is about, figures.

    ended <tab> crash: storm, futex <tab> kills=300 <tab> answered=51234

Whoever is to record says `began` first and `ended` with its figures last: what began and did not end is shown as a
finding. What is before the colon is the part, what is behind it the row. The directory is $SHMSTORE_PROOFS; each
process appends lines to a file of its own there. Where that is not set nothing is written, and pytest shows its own
records only. `run` begins with an empty directory, so a record of an earlier run is never shown as one of this run. It
exits as its command does, or with 1 when the table has a finding; `--all` also makes one of each part that is missing.
In pytest the fixture `proof` (conftest.py) does all of this; in C `proof` of tests/core/check.h.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

VARIABLE: Final = "SHMSTORE_PROOFS"
LONG: Final = bool(os.environ.get("SHMSTORE_LONG"))
"""The long form is asked for, by `make proofs` or by hand."""

PARTS: Final = {
    "core": "a process killed at each of its stores into the segment",
    "life": "processes killed while they open, share and leave a segment by its name",
    "crash": "random verbs and random kills; two oracles",
    "barrier": "deaths among those who wait at a barrier",
    "fuzz": "segments that hold anything",
    "model": "every interleaving of the wait and of the lock",
}
"""Named as the directories of their tests are, so that what failed or was skipped knows where it belongs."""


SIDES: Final = ("engine", "build")
"""Figures that say of what a record is, beside its name."""
TOTAL: Final = "in all"


class Record(NamedTuple):
    """One line."""

    state: str  # began, ended, failed, skipped
    what: str
    figures: dict[str, str]

    @property
    def part(self) -> str:
        return self.what.partition(": ")[0]

    @property
    def row(self) -> str:
        return self.what.partition(": ")[2]

    @property
    def column(self) -> str:
        return ", ".join(self.figures[name] for name in SIDES if name in self.figures)

    @property
    def key(self) -> tuple[str, ...]:
        return (self.what, self.column) if self.column else (self.what,)

    def line(self) -> str:
        fields = [self.state, self.what, *(f"{name}={value}" for name, value in self.figures.items())]
        text = "\t".join(fields)
        if len(fields) != text.count("\t") + 1 or "\n" in text:
            raise ValueError(f"a record is one line, with tabs between its fields only: {text!r}")
        return text + "\n"


def record(state: str, what: str, **figures: object) -> Record:
    """Appends a line to the file of this process, where a directory is named."""
    made = Record(state, what, {name: _text(value) for name, value in figures.items()})
    if made.part not in PARTS or not made.row:
        raise ValueError(f"a record is about 'PART: ROW', with a part of {list(PARTS)}: {what!r}")
    line = made.line()
    directory = os.environ.get(VARIABLE)
    if directory:
        with open(Path(directory) / f"{os.getpid()}", "a", encoding="utf-8") as file:
            file.write(line)
    return made


def _text(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


# -- the table --------------------------------------------------------------------------------------------------------


def read(directory: Path) -> list[Record]:
    """All records that lie there."""
    found = []
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        for line in path.read_text(encoding="utf-8").splitlines():
            state, what, *rest = line.split("\t")
            found.append(Record(state, what, dict(field.split("=", 1) for field in rest)))
    return found


def findings(records: Iterable[Record], parts: Iterable[str]) -> list[str]:
    """What failed, what began and did not end, and which of these parts have nothing to show."""
    records = list(records)
    ended = Counter(made.key for made in records if made.state == "ended")
    lines = [f"{made.what}: failed: {made.figures.get('why', '')}" for made in records if made.state == "failed"]
    for key, times in Counter(made.key for made in records if made.state == "began").items():
        if times > ended[key]:
            lines.append(f"{', '.join(key)}: began {times} times, ended {ended[key]} times; what it printed says why")
    there = {made.part for made in records}
    return lines + [f"{part}: nothing of it was run" for part in parts if part not in there]


def shown(figures: Mapping[str, object]) -> list[str]:
    """Each as "name value"."""
    return [f"{name} {_text(value)}" for name, value in figures.items()]


def table(records: Iterable[Record], parts: Iterable[str] = (), failed: str = "") -> list[str]:
    """The lines of the table, part by part, with what was found at its end. failed: what the run itself has to say."""
    records = list(records)
    lines = []
    for part, about in PARTS.items():
        own = [made for made in records if made.part == part and made.state == "ended"]
        skipped = [made for made in records if made.part == part and made.state == "skipped"]
        if own or skipped:
            lines += ["", f"{part}: {about}"]
        stores = [made for made in own if "stores" in made.figures]
        for build in sorted({made.figures.get("build", "") for made in stores}):
            lines += _matrix([made for made in stores if made.figures.get("build", "") == build])
        plain = {", ".join([made.row, *made.key[1:]]): made for made in own if "stores" not in made.figures}
        width = max(map(len, plain), default=0)
        for row, made in plain.items():
            figures = {name: value for name, value in made.figures.items() if name not in SIDES}
            text = f"  {row:{width}}  {', '.join(shown(figures))}"
            lines += textwrap.wrap(text, 120, subsequent_indent=" " * (width + 4))
        lines += [f"  {made.row}  skipped: {made.figures.get('why', '')}" for made in skipped]
    found = findings(records, parts) + [failed] * bool(failed)
    return [*lines, "", *(f"FINDING {line}" for line in found), f"findings: {len(found)}"]


def _matrix(records: list[Record]) -> list[str]:
    """Rows of paths, a column for each engine and build; figures of the same cell are added up."""
    if not records:
        return []
    columns = sorted({made.column for made in records})
    names = list(dict.fromkeys(name for made in records for name in made.figures if name not in SIDES))
    cells: dict[str, dict[str, Counter[str]]] = {}
    for made in records:
        for row in (made.row, TOTAL):
            cell = cells.setdefault(row, {}).setdefault(made.column, Counter())
            cell.update({name: int(made.figures[name]) for name in names if name in made.figures})
    cells[TOTAL] = cells.pop(TOTAL)
    wide = {name: max(len(_cell(cells[TOTAL], column, name)) for column in columns) + 1 for name in names}
    rows = [[f"  {', '.join(names)}", *columns]]
    for row, of in cells.items():
        texts = ([_cell(of, column, name).rjust(wide[name]) for name in names] for column in columns)
        rows.append([f"  {row}", *map("".join, texts)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns) + 1)]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(of: Mapping[str, Counter[str]], column: str, name: str) -> str:
    return str(of[column][name]) if column in of and name in of[column] else ""


# -- the command line -------------------------------------------------------------------------------------------------


def run(directory: Path, command: list[str], parts: Iterable[str]) -> int:
    """Runs it with a directory of its own, and prints the table of what it recorded there."""
    if os.environ.get(VARIABLE):  # within another run, which prints the table of all
        return subprocess.run(command, check=False, close_fds=False).returncode
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    environment = {**os.environ, VARIABLE: str(directory.resolve())}
    code = subprocess.run(command, check=False, close_fds=False, env=environment).returncode
    failed = f"{' '.join(command)} ended with {code}; what it printed above says why" if code else ""
    lines = table(read(directory), () if code else parts, failed)
    (directory.parent / f"{directory.name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)
    return code or int(lines[-1] != "findings: 0")


def main(arguments: list[str]) -> int:
    if "--" in arguments and arguments[0] == "run":
        at = arguments.index("--")
        options, command = arguments[1:at], arguments[at + 1 :]
        parts = PARTS if "--all" in options else ()
        return run(Path(next(text for text in options if text != "--all")), command, parts)
    if len(arguments) > 1 and arguments[0] == "table":
        lines = table(read(Path(arguments[1])), PARTS if "--all" in arguments else ())
        print("\n".join(lines))
        return int(lines[-1] != "findings: 0")
    if len(arguments) > 2 and arguments[0] == "add":
        record(arguments[1], arguments[2], **dict(text.split("=", 1) for text in arguments[3:]))
        return 0
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
