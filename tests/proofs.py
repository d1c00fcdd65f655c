"""What the tests of death, of fuzzing and of the models have shown: their records, and the table that is made of them.

    python tests/proofs.py run DIRECTORY [--all] [--long] -- COMMAND...    runs it, prints what it recorded
    python tests/proofs.py table DIRECTORY [--all] [--long]                prints what lies in DIRECTORY
    python tests/proofs.py add STATE WHAT [NAME=VALUE...]                  a record, for a Makefile

A record is a line of fields with a tab between them: a state, what it is about, figures.

    ended <tab> crash: storm, futex <tab> kills=300 <tab> answered=51234

What is before the colon is the part, what is behind it the row. Whoever is to record says `began` first and `ended`
with its figures last. The directory is $SHMSTORE_PROOFS; each process appends lines to a file of its own there. Where
that is not set nothing is written, and pytest shows its own records only. In pytest a marker and a fixture
(conftest.py) do all of this, in C `proof` of tests/core/check.h. A test of pytest is a record, too: it `began`, and
`passed`, `failed` or was `skipped`.

    a finding                   failed; began and did not end; a figure of LOSSES that is not 0
    a finding with --all        a row of `required` that is not there
    a finding with --all where  a test that was skipped. Elsewhere a skip is a line of the table, and so is a row
    $CI is set, or with --long  that is missing in a part where something was skipped

`run` begins with an empty directory and without the table of an earlier run, DIRECTORY.txt, so neither is ever taken
for one of this run. It exits as its command does, or with 1 when the table has a finding. A table begins with its date,
the commit, and which form was run. A run within a run leaves the table to the outer one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

VARIABLE: Final = "SHMSTORE_PROOFS"
WITHIN: Final = "SHMSTORE_PROOFS_WITHIN"
"""Set by `run`, to the same: a directory that somebody exported in a shell is no run."""
LONG: Final = bool(os.environ.get("SHMSTORE_LONG"))
"""The long form is asked for, by `make proofs` or by hand."""

PARTS: Final = {
    "core": "a process killed at each of its stores into the segment",
    "life": "processes killed while they open, share and leave a segment by its name",
    "crash": "random kills and two oracles; namespaces, stopped processes, a full memory",
    "process": "how processes begin, go on and end; signals",
    "barrier": "deaths among those who wait at a barrier",
    "fuzz": "segments that hold anything, peers that say anything",
    "model": "every interleaving of the wait, the lock, the barrier and the bell",
}
"""Named as the directories of their tests are, so that what failed or was skipped knows where it belongs."""

BOTH: Final = ("futex", "semaphore")
REQUIRED: Final = [
    *(
        f"{row}, {engine}*"
        for row in (
            "core: set new small",  # one row of each program
            "core: create",
            "core: beside those who wait",
            "core: holders, two parked on the lock",
            "core: repair of a corrupt heap",
            "core: barrier: arrive*",
            "core: two deaths at once",
            "core: processes of many threads",
            "crash: storm",
            "crash: two pid 1*",
            "crash: stopped*",
            "crash: full memory",
            "process: fork, spawn*",
            "process: signals*",
            "process: ends*",
            "barrier: 64 processes*",
        )
        for engine in BOTH
    ),
    "life: create",
    "life: attach",
    "life: close, the last",
    "life: open over what is half made",
    "model: wait, as it is",
    "model: wait, SEMAPHORE",
    "model: lock, as it is",
    "model: barrier, as it is",
    "model: bell, as it is",
    "model: wait, NO_RECHECK",
    "model: wait, SEMAPHORE+NO_RECHECK",
    "model: lock, NO_GENERATION",
    "model: lock, NO_JUDGEMENT",
    "model: barrier, NO_EPOCH",
    "model: bell, NO_RELOOK",
    "model: bell, TWO+NO_MANY",
    "fuzz: fuzz_live*",
    "fuzz: fuzz_attach*",
    "fuzz: fuzz_wire*",
]
"""Patterns of rows, with their columns, that a whole run shows: at least one of each thing that is promised."""
REQUIRED_LONG: Final = [
    "fuzz: fuzz_live, libFuzzer",
    "fuzz: fuzz_attach, libFuzzer",
    "fuzz: fuzz_wire, libFuzzer",
    "fuzz: checks of the core removed",
]
"""The same, only in the long form."""

LOSSES: Final = frozenset({"lost", "applied twice", "hung", "failed", "broken", "deadlocks", "livelocks"})
"""Figures that have to be 0."""
CASES: Final = "cases"
"""A figure that is added up over the records of a row: of tests that show that something holds, and count nothing."""

SIDES: Final = ("engine", "build")
"""Figures that say of what a record is, beside its name."""
TOTAL: Final = "in all"


class Record(NamedTuple):
    """One line."""

    state: str  # began, ended; of a test also passed, failed, skipped
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

    @staticmethod
    def of(line: str) -> Record:
        """What `line` made."""
        state, what, *rest = line.rstrip("\n").split("\t")
        return Record(state, what, dict(field.split("=", 1) for field in rest))


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
        found += map(Record.of, path.read_text(encoding="utf-8").splitlines())
    return found


class Asked(NamedTuple):
    """What a run has to show.

    Attributes:
        rows: patterns of `Record.key`. strict: nothing may be skipped. form: "short" or "long".
    """

    rows: tuple[str, ...] = ()
    strict: bool = False
    form: str = "long" if LONG else "short"


def asked(options: Iterable[str]) -> Asked:
    """What the options of the command line ask for."""
    form = "long" if "--long" in options else Asked().form
    if "--all" not in options:
        return Asked(form=form)
    rows = (*REQUIRED, *(REQUIRED_LONG if form == "long" else ()))
    return Asked(rows, form == "long" or bool(os.environ.get("CI")), form)


def missing(records: Iterable[Record], rows: Iterable[str]) -> list[str]:
    """Those patterns of rows that nothing ended of."""
    there = [", ".join(made.key) for made in records if made.state == "ended"]
    return [row for row in rows if not any(fnmatchcase(key, row) for key in there)]


def excused(records: Iterable[Record], asked: Asked) -> set[str]:
    """The parts whose rows may be missing, since something of them was skipped."""
    return set() if asked.strict else {made.part for made in records if made.state == "skipped"}


def findings(records: Iterable[Record], asked: Asked) -> list[str]:
    """What failed, what began and did not end, what was lost, and what is not there that was asked for."""
    records = list(records)
    over = Counter(made.key for made in records if made.state != "began")
    lines = [f"{made.what}: failed: {made.figures.get('why', '')}" for made in records if made.state == "failed"]
    for key, times in Counter(made.key for made in records if made.state == "began").items():
        if times > over[key]:
            lines.append(f"{', '.join(key)}: began {times} times, ended {over[key]} times; what it printed says why")
    for made in records:
        lost = [f"{name} {value}" for name, value in made.figures.items() if name in LOSSES and value != "0"]
        lines += [f"{', '.join(made.key)}: {', '.join(lost)}"] * bool(lost)
    if asked.strict:
        lines += skips(records)
    may_miss = excused(records, asked)
    absent = [row for row in missing(records, asked.rows) if row.partition(": ")[0] not in may_miss]
    return lines + [f"{row}: nothing of it was run" for row in absent]


def skips(records: Iterable[Record]) -> list[str]:
    """What was skipped, a line for each file and reason."""
    found = Counter(
        (made.what.partition("::")[0], made.figures.get("why", "")) for made in records if made.state == "skipped"
    )
    return [f"{file}: {times} skipped: {why}" for (file, why), times in found.items()]


def head(form: str, command: str = "") -> list[str]:
    """Of when, of what and in which form a table is."""

    def git(*words: str) -> str:
        at = Path(__file__).parent
        done = subprocess.run(["git", "-C", str(at), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD") if shutil.which("git") else ""
    dirty = ", with changes that are not committed" if commit and git("status", "--porcelain") else ""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    text = f"{form} form, {when}, {f'commit {commit}' if commit else 'no commit known'}{dirty}"
    return [text, *([f"of: {command}"] if command else [])]


def shown(figures: Mapping[str, object]) -> list[str]:
    """Each as "name value"."""
    return [f"{name} {_text(value)}" for name, value in figures.items()]


def table(records: Iterable[Record], asked: Asked = Asked(), failed: str = "") -> list[str]:  # noqa: B008 -- frozen
    """The lines of the table, part by part, with what was found at its end. failed: what the run itself has to say."""
    records = list(records)
    may_miss = excused(records, asked)
    lines = []
    for part, about in PARTS.items():
        own = [made for made in records if made.part == part and made.state == "ended"]
        skipped = [made for made in records if made.part == part and made.state == "skipped"]
        if own or skipped:
            lines += ["", f"{part}: {about}"]
        stores = [made for made in own if "stores" in made.figures]
        for build in sorted({made.figures.get("build", "") for made in stores}):
            lines += _matrix([made for made in stores if made.figures.get("build", "") == build])
        plain = _plain([made for made in own if "stores" not in made.figures])
        width = max(map(len, plain), default=0)
        for row, figures in plain.items():
            text = f"  {row:{width}}  {', '.join(shown(figures))}"
            lines += textwrap.wrap(text, 120, subsequent_indent=" " * (width + 4))
        lines += [f"  {line.partition(': ')[2]}" for line in skips(skipped)]
        if part in may_miss:
            rows = [row for row in missing(records, asked.rows) if row.startswith(f"{part}: ")]
            lines += [f"  {row.partition(': ')[2]}  not there" for row in rows]
    found = findings(records, asked) + [failed] * bool(failed)
    return [*lines, "", *(f"FINDING {line}" for line in found), f"findings: {len(found)}"]


def _plain(records: Iterable[Record]) -> dict[str, dict[str, str]]:
    """The figures of each row; a later record of the same row replaces an earlier one, but for the sum of its cases."""
    rows: dict[str, dict[str, str]] = {}
    for made in records:
        row = ", ".join([made.row, *made.key[1:]])
        figures = {name: value for name, value in made.figures.items() if name not in SIDES}
        if CASES in figures:
            figures[CASES] = str(int(figures[CASES]) + int(rows.get(row, {}).get(CASES, 0)))
        rows[row] = figures
    return rows


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


def nested() -> bool:
    """True within a run, which prints the table of all."""
    return bool(os.environ.get(VARIABLE)) and os.environ.get(WITHIN) == os.environ.get(VARIABLE)


def run(directory: Path, command: list[str], asked: Asked) -> int:
    """Runs it with a directory of its own, and prints the table of what it recorded there."""
    if nested():
        return subprocess.run(command, check=False, close_fds=False).returncode
    kept = directory.parent / f"{directory.name}.txt"
    kept.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    at = str(directory.resolve())
    title = head(asked.form, " ".join(command))  # of what is there as it begins
    environment = {**os.environ, VARIABLE: at, WITHIN: at}
    code = subprocess.run(command, check=False, close_fds=False, env=environment).returncode
    failed = f"{' '.join(command)} ended with {code}; what it printed above says why" if code else ""
    lines = title + table(read(directory), asked._replace(rows=()) if code else asked, failed)
    kept.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)
    return code or int(lines[-1] != "findings: 0")


def main(arguments: list[str]) -> int:
    if "--" in arguments and arguments[0] == "run":
        at = arguments.index("--")
        options, command = arguments[1:at], arguments[at + 1 :]
        return run(Path(next(text for text in options if not text.startswith("--"))), command, asked(options))
    if len(arguments) > 1 and arguments[0] == "table":
        lines = table(read(Path(arguments[1])), asked(arguments[2:]))
        print("\n".join(lines))
        return int(lines[-1] != "findings: 0")
    if len(arguments) > 2 and arguments[0] == "add":
        record(arguments[1], arguments[2], **dict(text.split("=", 1) for text in arguments[3:]))
        return 0
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
