"""Our server, asked by hand what torch's libuv server was asked (golden/raw-libuv.txt): its answers, byte for byte, or
the difference, which docs/server.md gives its reason for.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from golden_files import NONCE, Case, read

from shmstore import HashStore, TCPStoreServer
from shmstore.testing.contract import Later

DOCS = Path(__file__).parents[2] / "docs" / "server.md"
CLOSES = (b"", "server closes")
CASES = read("raw-libuv")
DIFFERENT = {
    "no VALIDATE: PING first": CLOSES,
    "no VALIDATE: SET first": CLOSES,
    "another magic first": CLOSES,
    "VALIDATE again": (NONCE, ""),
    "two WAITs, and the same connection sets": CLOSES,
    "two WAITs for a queue, one QUEUE_PUSH": CLOSES,
    "BARRIER twice by one connection": CLOSES,
    "WAIT, and a COMPARE_SET that creates nothing": (b"\x01" + bytes(7) + b"x" + NONCE, ""),
    "WAIT, and a COMPARE_SET that creates": (b"\x01" + bytes(7) + b"1" + b"\0" + NONCE, ""),
    "an empty key": CLOSES,
    "a key of 8192 bytes": CLOSES,
    "APPEND beyond 8 MiB": CLOSES,
}
"""What our server says instead, and whether it ends the connection."""


@pytest.fixture
def port() -> Iterator[int]:
    with HashStore() as store, TCPStoreServer(store) as server:
        yield server.port


def heard(port: int, said: bytes) -> tuple[bytes, str]:
    """What the server answers, up to the answer of the PING that comes last, or to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:

        def write() -> None:
            with suppress(OSError):  # it may have been closed by then
                sock.sendall(said)

        writer, answer, end = Later(write), b"", ""
        while not answer.endswith(NONCE) and not end:
            try:
                data = sock.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            answer += data
            end = "" if data else "server closes"
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        writer.result()
    return answer, end


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_answers_as_torchs_server_does(port: int, case: Case) -> None:
    theirs = case.said("server"), case.end
    ours = heard(port, case.said("client"))
    assert ours == DIFFERENT.get(case.name, theirs)
    assert (ours != theirs) == (case.name in DIFFERENT)


def test_each_difference_is_in_the_docs() -> None:
    assert not DIFFERENT.keys() - {case.name for case in CASES}
    _, _, section = DOCS.read_text(encoding="utf-8").partition("\n## Differences from torch's server\n")
    assert [name for name in DIFFERENT if f"| {name} |" not in section] == []
