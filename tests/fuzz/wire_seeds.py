"""What torch's client said when it was recorded, and what ours says beyond that, as inputs for libFuzzer to begin with.

    python tests/fuzz/wire_seeds.py DIRECTORY

One file for each case of tests/wire/golden, and one for all that each recording has, one after the other. The first
byte of an input is flags (fuzz_wire.c): these greet by themselves, and are cut into pieces of all sizes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "wire"))
from golden_files import GOLDEN, read

from shmstore.tcp.codec import Op, encode

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
        write(to, recording, said)
    write(to, "hold", held())
    return 0


def write(to: Path, name: str, said: list[bytes]) -> None:
    for i, data in enumerate(said):
        if len(data) < LONGEST:
            (to / f"{name}-{i:03}").write_bytes(bytes([GREETS + i % 32]) + data)


def held() -> list[bytes]:
    """HOLD, which torch's client does not know: behind a wait that is over, one that is taken back, one in another."""
    ask, wait = encode(Op.GET, b"/a"), encode(Op.WAIT, [b"/a", b"/b"])
    hold = encode(Op.HOLD, encode(Op.COMPARE_SET, b"/b", b"", b"x") + encode(Op.MULTI_GET, [b"/a", b"/b"]))
    sets = encode(Op.MULTI_SET, [(b"/a", b"1"), (b"/b", b"2")])
    inner = encode(Op.HOLD, wait + hold)
    ends = [b"", encode(Op.CANCEL_WAIT), ask, encode(Op.CANCEL_WAIT) + ask]
    begins = [wait + hold, sets + wait + hold, hold, wait + inner]
    return [HELLO + begin + end for begin in begins for end in ends]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
