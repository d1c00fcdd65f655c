"""Runs one fuzz target under libFuzzer until it has had so many executions, over as many runs as that takes.

    python tests/fuzz/campaign.py BUILD_DIRECTORY NAME RUNS [OPTION OF LIBFUZZER...]

10,000,000 executions take hours, so a campaign may be ended (Ctrl-C, SIGTERM, -max_total_time) and goes on with the
next run: from the inputs that it grew in BUILD_DIRECTORY/corpus-NAME, with the number in BUILD_DIRECTORY/NAME.ledger.
Only executions of the same program count together. A line of the ledger is the digest of the executable without its
debug information, and the executions of one run: a change of the core that reaches the target begins a campaign anew,
and one that does not leaves it as it is. A run with a finding adds nothing.

Exits with 0 when the sum is reached, or when the run had a limit of time and found nothing; with 1 on a finding, whose
input lies in BUILD_DIRECTORY, and on any other end of libFuzzer; with 130 when it was ended before. Needs objcopy.
"""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import proofs

INTERRUPTED: Final = 72  # libFuzzer's exit status after SIGINT or SIGTERM
EXECUTED: Final = re.compile(r"^stat::number_of_executed_units: *(\d+)$", re.MULTILINE)
TAIL_LINES: Final = 60


def digest(program: Path) -> str:
    """Of what runs, without line tables. Sanitizers keep the paths of sources: another checkout has another digest."""
    with tempfile.NamedTemporaryFile() as stripped:
        subprocess.run(["objcopy", "--strip-debug", program, stripped.name], check=True)
        return hashlib.sha256(Path(stripped.name).read_bytes()).hexdigest()[:16]


def summed(ledger: Path, of: str) -> tuple[int, int]:
    """How many executions of that digest there were, in how many runs."""
    lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
    counts = [int(executions) for made, executions in map(str.split, lines) if made == of]
    return sum(counts), len(counts)


def fuzz(build: Path, name: str, runs: int, options: list[str]) -> tuple[int, int]:
    """One run of at most so many executions (-1: no limit); its exit status, and how many there were."""
    log = build / f"{name}.log"
    command = [f"{build}/fuzz_{name}", f"-runs={runs}", "-print_final_stats=1", f"-artifact_prefix={build}/{name}-"]
    with open(log, "wb") as to:
        child = subprocess.Popen([*command, *options, f"{build}/corpus-{name}"], stdout=to, stderr=subprocess.STDOUT)
        try:
            status = child.wait()
        except KeyboardInterrupt:
            child.terminate()
            status = child.wait()
    said = log.read_text(encoding="utf-8", errors="replace")
    if status not in (0, INTERRUPTED):
        print("\n".join(said.splitlines()[-TAIL_LINES:]))
        return status, 0
    executed = EXECUTED.search(said)
    return status, int(executed[1]) if executed else 0


def main(arguments: list[str]) -> int:
    if len(arguments) < 3:
        sys.exit(__doc__)
    build, name, aim, options = Path(arguments[0]), arguments[1], int(arguments[2]), arguments[3:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ledger, row = build / f"{name}.ledger", f"fuzz: fuzz_{name}, libFuzzer"
    proofs.record("began", row)
    program = digest(build / f"fuzz_{name}")
    before, times = summed(ledger, program)
    status, executions = 0, 0
    if aim < 0 or before < aim:
        status, executions = fuzz(build, name, aim if aim < 0 else aim - before, options)
        if status not in (0, INTERRUPTED):
            print(f"fuzz_{name} ended with {status}, as said above; the input of a finding is {build}/{name}-*")
            return 1
        with open(ledger, "a", encoding="utf-8") as to:
            to.write(f"{program} {executions}\n")
        times += 1
    done = before + executions
    print(f"fuzz_{name}: no finding in {done:,} executions of {program}, {times} runs; aim {aim:,}", flush=True)
    if status == INTERRUPTED:
        return 130
    proofs.record("ended", row, executions=done, runs=times, program=program)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
