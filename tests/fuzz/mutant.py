"""Removes one check from a copy of the core and shows that the fuzz targets' short form finds it.

    python tests/fuzz/mutant.py BUILD_DIRECTORY [NAME...]

Each mutant is the core with one bound, or one budget of steps, taken out. It counts as found when a target ends with a
signal, a sanitizer's report, or no end within ten seconds. First the copy is run unchanged: it must pass. The text of
a check that is no longer in its file fails the run: then this list is behind the core. Needs CMake, Ninja and gcc.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("fuzz_live", "fuzz_attach", "fuzz_wire")
RUNS, LIMIT_S = 8000, 120


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    file: str
    check: str
    without: str


# What tells the two walks of recover.c apart.
SIFTED = "        if (SST_TAG_STATE(ld32(&b->tag)) == SST_BLOCK_USED)\n"
SETTLED = "        if (SST_TAG_STATE(ld32(&b->tag)) == SST_BLOCK_USED) {"

MUTANTS = (
    Mutant(
        "payload-limit",
        "view.h",
        "        sst_look(s);\n        if (at + need > sst_limit(s))\n            return NULL;",
        "        sst_look(s);",
    ),
    Mutant("payload-first", "view.h", "    if (ref < s->blocks)\n        return NULL;\n", ""),
    Mutant("find-steps", "table.c", "if (e == NULL || steps-- == 0)", "if (e == NULL)"),
    Mutant(
        "value-length",
        "table.c",
        "sst_payload(s, ld32(&e->value[SST_WORD_SEL(w)]), v->len)",
        "sst_payload(s, ld32(&e->value[SST_WORD_SEL(w)]), 1)",
    ),
    Mutant(
        "room-limit",
        "table.c",
        "return sst_payload(s, ref, sst_heap_room(cls)) ? sst_heap_room(cls) : 0;",
        "return sst_heap_room(cls);",
    ),
    Mutant("item-length", "queue.c", "sizeof(sst_item) + (uint64_t)*len", "sizeof(sst_item)"),
    Mutant("repair-budget", "recover.c", "if (b == NULL || t->left-- == 0)", "if (b == NULL)"),
    Mutant("record-class", "heap.c", "cls >= SST_CLASSES || ld32(&heap->stripe)", "ld32(&heap->stripe)"),
    Mutant("record-stripe", "heap.c", "ld32(&heap->stripe) >= SST_STRIPES ||", ""),
    Mutant(
        "sift-steps",
        "recover.c",
        " || steps-- == 0)\n            return SST_ECORRUPT;\n" + SIFTED,
        ")\n            return SST_ECORRUPT;\n" + SIFTED,
    ),
    Mutant(
        "settle-steps",
        "recover.c",
        " || steps-- == 0)\n            return SST_ECORRUPT;\n" + SETTLED,
        ")\n            return SST_ECORRUPT;\n" + SETTLED,
    ),
    Mutant("list-steps", "ops_many.c", "if (e == NULL || steps-- == 0)", "if (e == NULL)"),
    Mutant("slot-stripe", "attach.c", " || stripe == 0 || stripe > SST_AT_REUSABLE", " || stripe == 0"),
    Mutant(
        "arrivals-ahead",
        "barrier_wait.c",
        "return ld64_acquire(&p->state) == st ? SST_ECORRUPT : SST_EAGAIN;",
        "return SST_EAGAIN;",
    ),
    Mutant("key-length", "verify.c", "klen > SST_KEY_MAX || ", ""),
    Mutant("file-length", "segment.c", "    if (bytes < size)\n        return SST_ETRUNC;\n", ""),
    Mutant("wire-opcode", "wire.c", "    else if (f->op >= SST_OP_HOLD)\n        return SST_EINVAL;\n", ""),
    Mutant("wire-length", "wire.c", "v > (kind == 'k' ? SST_WIRE_KEY_MAX : (uint64_t)SST_VALUE_MAX) || ", ""),
    Mutant(
        "wire-whole", "wire.c", "        if (n < f->need)\n            return SST_EAGAIN;\n    } else", "    } else"
    ),
    Mutant("say-room", "conn.c", " || !sst_buf_room(c->server, out, n)", ""),
    Mutant("list-room", "answers.c", " || !sst_buf_room(c->server, list, 8 + len)", ""),
)


def copy_sources(to: Path) -> None:
    for part in ("shmstore/_core", "tests/fuzz"):
        shutil.copytree(ROOT / part, to / part, dirs_exist_ok=True, copy_function=shutil.copy)  # of now: rebuilt
    (to / "tests/core").mkdir(parents=True, exist_ok=True)  # of the tests' own directory the header alone
    shutil.copy(ROOT / "tests/core/check.h", to / "tests/core")


def build(to: Path) -> None:
    command = ["cmake", "--build", str(to / "build"), "--target", *TARGETS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)


def configure(to: Path) -> None:
    options = ("-DSST_EXTENSION=OFF", "-DSST_TESTS=ON", "-DSST_WERROR=OFF", "-DSST_SANITIZE=address,undefined")
    command = ["cmake", "-S", str(to / "shmstore/_core"), "-B", str(to / "build"), "-G", "Ninja", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def end_of(to: Path, target: str) -> str:
    """How the target failed, in a line; empty when it passed."""
    command = [str(to / "build" / target), "--runs", str(RUNS)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return ""  # it goes on, and on that counts nobody: each execution has its own ten seconds
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    at = next((line for line in lines if "input" in line), lines[-1] if lines else "")
    why = next((line for line in lines if "ERROR" in line or "runtime error" in line), f"status {done.returncode}")
    return f"{why.strip()[:90]} | {at.split(':')[0][:80]}"


def show(to: Path, mutant: Mutant) -> bool:
    path = to / "shmstore/_core" / mutant.file
    text = path.read_text(encoding="utf-8")
    times = text.count(mutant.check)
    if times != 1:
        sys.exit(f"{mutant.name}: {mutant.file} has the check {times} times, not once: {mutant.check!r}")
    path.write_text(text.replace(mutant.check, mutant.without), encoding="utf-8")
    try:
        build(to)
        start = time.monotonic()
        ends = {target: end_of(to, target) for target in TARGETS}
    finally:
        path.write_text(text, encoding="utf-8")
    for target, end in ends.items():
        print(f"{mutant.name:14} {target:11} {'found: ' + end if end else 'not found'}", flush=True)
    print(f"{mutant.name:14} {time.monotonic() - start:.1f} s", flush=True)
    return any(ends.values())


def main(arguments: list[str]) -> int:
    if not arguments:
        sys.exit(__doc__)
    to, names = Path(arguments[0]), arguments[1:]
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    copy_sources(to)
    configure(to)
    build(to)
    for target in TARGETS:
        end = end_of(to, target)
        if end:
            sys.exit(f"{target} fails without a mutant: {end}")
    found = sum(show(to, mutant) for mutant in chosen)
    print(f"mutants: {found} of {len(chosen)} found")
    return 0 if chosen and found == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
