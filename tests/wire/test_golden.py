"""The codec against what torch's client and servers have said: the same frames, and the same bytes again."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from golden_files import GOLDEN, NONCE, Case, read

from shmstore.tcp.codec import (
    HELLO,
    FrameError,
    Incoming,
    Op,
    Request,
    encode,
    encode_reply,
    reply_parser,
    request_parser,
)

TALKS = [(kind, case) for kind in ("libuv", "legacy") for case in read(f"talk-{kind}")]
RAWS = [(kind, case) for kind in ("libuv", "legacy") for case in read(f"raw-{kind}")]
MALFORMED = {
    "another magic first",
    "VALIDATE with another magic",
    "opcode 19",
    "opcode 255",
    "a key of 8193 bytes",
    "a value of 8 MiB and one",
    "CHECK of 131073 keys",
    "a length of 2**63",
    "a count of 2**64 - 1",
}


def named(param: Any) -> str:
    return param if isinstance(param, str) else param.name.replace(" ", "_")


def requests_of(data: bytes) -> list[Request]:
    incoming = Incoming()
    requests = incoming.feed(data)
    assert not incoming.torn
    return requests


def answered(case: Case, client: str, server: str) -> list[tuple[Request, Any]]:
    """The requests with their answers, read from the server's bytes as they came; no bytes are left."""
    open_: list[Request] = []
    pairs: list[tuple[Request, Any]] = []
    for side, data in case.turns:
        if side == client:
            open_ += [r for r in requests_of(data) if reply_parser(r.op, r.fields) is not None]
            continue
        if side != server:
            continue
        rest = data
        while rest:
            # A wait that is taken back is answered by its CANCEL_WAIT alone.
            if (
                open_[0].op in (Op.WAIT, Op.BARRIER)
                and [r.op for r in open_[1:2]] == [Op.CANCEL_WAIT]
                and rest == b"\1"
            ):
                open_.pop(0)
            request = open_.pop(0)
            parsers = iter([reply_parser(request.op, request.fields)])
            incoming = Incoming(lambda parsers=parsers: next(parsers, None))  # type: ignore[misc]
            (answer,) = incoming.feed(rest)
            assert encode_reply(request.op, answer) == rest[: len(rest) - len(incoming.rest)]
            pairs.append((request, answer))
            rest = bytes(incoming.rest)
    return pairs


@pytest.mark.parametrize(("kind", "case"), TALKS, ids=named)
def test_what_torchs_client_says_is_read_and_written_alike(kind: str, case: Case) -> None:
    for client in ("client", "client2"):
        said = case.said(client)
        requests = requests_of(said)
        assert b"".join(encode(r.op, *r.fields) for r in requests) == said
        for request in requests:
            assert [type(f) for f in request.fields] == [type(f) for f in requests_of(encode(*flat(request)))[0].fields]


def flat(request: Request) -> tuple[Any, ...]:
    return (request.op, *request.fields)


@pytest.mark.parametrize(("kind", "case"), TALKS, ids=named)
def test_what_torchs_server_answers_is_read_and_written_alike(kind: str, case: Case) -> None:
    for client, server in (("client", "server"), ("client2", "server2")):
        pairs = answered(case, client, server)
        if pairs and client == "client" and not case.name.startswith("connect"):
            assert means(case, *pairs[-1]), (case.result, pairs[-1])


def means(case: Case, request: Request, answer: Any) -> bool:
    """Whether the last answer is what the call gave."""
    result = case.result
    if case.name == "multi_get of none":
        return request == Request(Op.WAIT, ([],))  # the answer to the MULTI_GET has no bytes
    if request.op in (Op.WAIT, Op.BARRIER):
        return result == "None" and answer == 0
    if request.op is Op.CANCEL_WAIT:
        return result == "DistStoreError" and answer == 1
    if request.op is Op.QUEUE_POP:
        return result == ("QueueEmptyError" if answer[0] == 0 else repr(answer[1]))
    if request.op is Op.CHECK:
        return result == repr(answer == 0)
    if request.op is Op.DELETE_KEY:
        return result == repr(answer == 1)
    if request.op is Op.LIST_KEYS:
        return sorted(key[1:].decode() for key in answer if key.startswith(b"/")) == ast.literal_eval(result)
    return result in (repr(answer), str(len(answer)) if isinstance(answer, bytes) else "")


def test_every_operation_has_been_recorded() -> None:
    ops = {r.op for kind, case in TALKS if kind == "libuv" for r in requests_of(case.said("client"))}
    assert ops == set(Op) - {Op.HOLD}  # which is ours alone
    answers = {r.op for kind, case in TALKS if kind == "libuv" for r, _ in answered(case, "client", "server")}
    assert answers == {op for op in Op if reply_parser(op, ([],)) is not None}


def test_the_handshake() -> None:
    connects = [case for _, case in TALKS if case.name == "connect"]
    assert [case.said("client") for case in connects] == [HELLO + encode(Op.PING, 0x04030201)] * 2
    assert [case.said("server") for case in connects] == [NONCE] * 2


def test_workers_are_counted_under_a_key_without_a_slash() -> None:
    for kind in ("libuv", "legacy"):
        (waiting,) = [c for k, c in TALKS if k == kind and c.name == "connect with a world, waiting"]
        assert requests_of(waiting.said("client"))[2:] == [Request(Op.ADD, (b"init/", 1))]
        for name in ("connect with a world, waiting for none", "connect without a world, waiting"):
            (case,) = [c for k, c in TALKS if k == kind and c.name == name]
            assert len(requests_of(case.said("client"))) == 2


@pytest.mark.parametrize(("kind", "case"), RAWS, ids=named)
def test_requests_by_hand(kind: str, case: Case) -> None:
    """What torch's libuv server refuses for its form, the parser refuses, and nothing else."""
    incoming = Incoming(request_parser)
    if case.name not in MALFORMED:
        said = case.said("client")
        assert b"".join(encode(r.op, *r.fields) for r in incoming.feed(said)) == said
        return
    assert kind == "legacy" or case.end
    with pytest.raises(FrameError):
        incoming.feed(case.said("client"))


def test_torch_still_speaks_so(tmp_path: Path) -> None:
    """The installed torch, against the files: other bytes need other files, and a look at what has changed."""
    torch = pytest.importorskip("torch", reason="records it anew")
    here = Path(__file__).parent
    head = (GOLDEN / "talk-libuv.txt").read_text(encoding="utf-8").splitlines()[0]
    if f"torch {torch.__version__.partition('+')[0]}," not in head:
        pytest.skip(f"another release has been recorded: {head}")
    subprocess.run(
        [sys.executable, str(here / "record_golden.py"), str(tmp_path), "talk"],
        check=True,
        timeout=80,
        env=os.environ | {"TORCH_CPP_LOG_LEVEL": "FATAL"},
        stdout=subprocess.DEVNULL,
    )
    for name in ("talk-libuv.txt", "talk-legacy.txt"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (GOLDEN / name).read_text(encoding="utf-8")
