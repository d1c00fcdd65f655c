"""What torch's client said when it was recorded, as inputs for libFuzzer to begin with.

    python tests/fuzz/wire_seeds.py DIRECTORY

One file for each case of tests/wire/golden, and one for all that each recording has, one after the other. The first
byte of an input is flags (fuzz_wire.c): these greet by themselves, and are cut into pieces of all sizes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "wire"))
from golden_files import GOLDEN, read

HELLO = bytes.fromhex("00cef7853c")
GREETS = 224
LONGEST = 4096


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.exit(__doc__)
    to = Path(arguments[0])
    to.mkdir(parents=True, exist_ok=True)
    for recording in sorted(path.stem for path in GOLDEN.glob("*.txt")):
        said = [case.said("client") for case in read(recording)]
        if recording.startswith("talk"):  # one connection: the first case alone has the greeting
            said = [data if data.startswith(HELLO) else HELLO + data for data in said]
            said.append(b"".join(data.removeprefix(HELLO) if i else data for i, data in enumerate(said)))
        for i, data in enumerate(said):
            if len(data) < LONGEST:
                (to / f"{recording}-{i:03}").write_bytes(bytes([GREETS + i % 32]) + data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
