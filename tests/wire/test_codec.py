"""The codec by itself: round trips through any tearing and merging, limits, and bytes that are no frames."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.tcp.codec import (
    ANSWER,
    HELLO,
    MAGIC,
    PIECE,
    REPLIES,
    REQUESTS,
    FrameError,
    Incoming,
    Limits,
    Op,
    Parser,
    Request,
    encode,
    encode_reply,
    reply_parser,
    request_parser,
    split,
)

BLOB = st.binary(max_size=40)
KEYS = st.lists(BLOB, max_size=4)
I64 = st.integers(-(2**63), 2**63 - 1)
U32 = st.integers(0, 2**32 - 1)
COUNT = st.integers(0, 2**63 - 1)
FIELDS: dict[Op, tuple[st.SearchStrategy[Any], ...]] = {
    Op.VALIDATE: (st.just(MAGIC),),
    Op.SET: (BLOB, BLOB),
    Op.COMPARE_SET: (BLOB, BLOB, BLOB),
    Op.GET: (BLOB,),
    Op.ADD: (BLOB, I64),
    Op.CHECK: (KEYS,),
    Op.WAIT: (KEYS,),
    Op.GETNUMKEYS: (),
    Op.DELETE_KEY: (BLOB,),
    Op.APPEND: (BLOB, BLOB),
    Op.MULTI_GET: (KEYS,),
    Op.MULTI_SET: (st.lists(st.tuples(BLOB, BLOB), max_size=4),),
    Op.CANCEL_WAIT: (),
    Op.PING: (U32,),
    Op.QUEUE_PUSH: (BLOB, BLOB),
    Op.QUEUE_POP: (BLOB,),
    Op.QUEUE_LEN: (BLOB,),
    Op.LIST_KEYS: (),
    Op.BARRIER: (BLOB, I64),
    Op.HOLD: (BLOB,),
}
ANSWERS: dict[Op, st.SearchStrategy[Any]] = {
    Op.COMPARE_SET: BLOB,
    Op.GET: BLOB,
    Op.ADD: I64,
    Op.CHECK: st.sampled_from([0, 1]),
    Op.WAIT: st.sampled_from([0, 1]),
    Op.GETNUMKEYS: COUNT,
    Op.DELETE_KEY: COUNT,
    Op.CANCEL_WAIT: st.just(1),
    Op.PING: U32,
    Op.QUEUE_POP: st.one_of(st.just((0, None)), st.tuples(st.integers(1, 2**63 - 1), BLOB)),
    Op.QUEUE_LEN: COUNT,
    Op.LIST_KEYS: KEYS,
    Op.BARRIER: st.sampled_from([0, 1]),
}
REQUEST = st.sampled_from(list(Op)).flatmap(lambda op: st.tuples(*FIELDS[op]).map(lambda fields: Request(op, fields)))


@st.composite
def calls(draw: st.DrawFn) -> tuple[Request, Any]:
    """A request that is answered, and its answer."""
    request = draw(REQUEST.filter(lambda r: REPLIES[r.op] is not None))
    if request.op is Op.MULTI_GET:
        return request, draw(st.lists(BLOB, min_size=len(request.fields[0]), max_size=len(request.fields[0])))
    return request, draw(ANSWERS[request.op])


@st.composite
def torn(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The bytes in pieces of any sizes."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def test_the_tables_are_whole() -> None:
    assert set(REQUESTS) == set(REPLIES) == set(FIELDS) == set(Op)
    assert {op for op, reply in REPLIES.items() if reply is not None} == {*ANSWERS, Op.MULTI_GET}
    assert sorted(set(Op) - {Op.HOLD}) == list(range(19))


@given(st.data(), st.lists(REQUEST, max_size=5))
def test_requests_round_trip_however_they_are_torn(data: st.DataObject, requests: list[Request]) -> None:
    said = b"".join(encode(r.op, *r.fields) for r in requests)
    incoming = Incoming()
    heard: list[Request] = []
    for piece in data.draw(torn(said)):
        heard += incoming.feed(piece)
    assert heard == requests
    assert not incoming.torn


@given(st.data(), st.lists(calls(), max_size=5))
def test_answers_round_trip_however_they_are_torn(data: st.DataObject, pairs: list[tuple[Request, Any]]) -> None:
    said = b"".join(encode_reply(request.op, answer) for request, answer in pairs)
    parsers = iter([reply_parser(request.op, request.fields) for request, _ in pairs])
    incoming = Incoming(lambda: next(parsers, None))
    heard: list[Any] = []
    for piece in data.draw(torn(said)):
        heard += incoming.feed(piece)
    empty = [[] for request, _ in pairs if request == Request(Op.MULTI_GET, ([],))]  # no bytes: no piece brings it
    assert [a for a in heard if a != []] == [a for _, a in pairs if a != []]
    assert len(heard) <= len(pairs) and len(pairs) - len(heard) <= len(empty)


@given(REQUEST)
def test_a_request_cut_short_is_torn_everywhere(request: Request) -> None:
    said = encode(request.op, *request.fields)
    for end in range(1, len(said)):
        incoming = Incoming()
        assert incoming.feed(said[:end]) == []
        assert incoming.torn
        assert incoming.feed(said[end:]) == [request]


def driven(parser: Parser, data: bytes) -> Iterator[int]:
    """What the parser asks for, while the data lasts."""
    try:
        need = next(parser)
        while True:
            yield need
            if len(data) < need:
                return
            piece, data = data[:need], data[need:]
            need = parser.send(piece)
    except (StopIteration, FrameError):
        return


@settings(max_examples=400)
@given(st.sampled_from(list(Op)), st.binary(max_size=80), st.booleans())
def test_no_bytes_make_a_parser_ask_for_more_than_a_piece(op: Op, data: bytes, server: bool) -> None:
    parser = request_parser() if server else reply_parser(op, ([b""] * 3,))
    if parser is not None:
        assert all(1 <= need <= PIECE for need in driven(parser, data))
    incoming = Incoming()
    try:
        for request in incoming.feed(bytes([op]) + data):
            assert encode(request.op, *request.fields)
    except FrameError:
        pass


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


LIMITS = Limits(key=5, value=7, keys=3)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (encode(Op.GET, b"12345"), encode(Op.GET, b"123456")),
        (encode(Op.SET, b"12345", b"1234567"), encode(Op.SET, b"1", b"12345678")),
        (encode(Op.COMPARE_SET, b"1", b"1234567", b"1234567"), encode(Op.COMPARE_SET, b"1", b"", b"12345678")),
        (encode(Op.CHECK, [b"12345"] * 3), encode(Op.CHECK, [b""] * 4)),
        (encode(Op.MULTI_SET, [(b"", b"1234567")] * 3), encode(Op.MULTI_SET, [(b"", b"")] * 4)),
        (encode(Op.WAIT, []), encode(Op.WAIT, [b"123456"])),
        (HELLO, b"\0" + struct.pack("<I", MAGIC + 1)),
        (encode(Op.PING, 2**32 - 1), b"\x13"),
    ],
)
def test_lengths_and_counts_are_limited(good: bytes, bad: bytes) -> None:
    assert len(Incoming(lambda: request_parser(LIMITS)).feed(good)) == 1
    with pytest.raises(FrameError):
        Incoming(lambda: request_parser(LIMITS)).feed(bad)


@pytest.mark.parametrize("size", [2**63 - 1, 2**63, 2**64 - 1, ANSWER.value + 1])
@pytest.mark.parametrize("op", [Op.GET, Op.COMPARE_SET, Op.MULTI_GET, Op.LIST_KEYS, Op.QUEUE_POP])
def test_a_huge_length_is_refused_before_anything_of_it_comes(op: Op, size: int) -> None:
    said = (struct.pack("<q", 1) if op is Op.QUEUE_POP else b"") + u64(size)
    with pytest.raises(FrameError, match=r"were due"):
        Incoming(lambda: reply_parser(op, ([b"k"],))).feed(said)


@pytest.mark.parametrize("op", [Op.GETNUMKEYS, Op.QUEUE_LEN, Op.QUEUE_POP, Op.DELETE_KEY])
def test_counts_below_nothing_are_refused(op: Op) -> None:
    with pytest.raises(FrameError, match="-1"):
        Incoming(lambda: reply_parser(op, (b"k",))).feed(struct.pack("<q", -1))


@pytest.mark.parametrize(("op", "byte"), [(Op.CHECK, 2), (Op.WAIT, 255), (Op.CANCEL_WAIT, 0), (Op.BARRIER, 7)])
def test_unknown_signals_are_refused(op: Op, byte: int) -> None:
    with pytest.raises(FrameError, match=str(byte)):
        Incoming(lambda: reply_parser(op, ([],))).feed(bytes([byte]))


def test_a_long_value_is_asked_for_in_pieces() -> None:
    size = 3 * PIECE + 5
    value = bytes(range(256)) * (size // 256 + 1)
    said = encode_reply(Op.GET, value[:size])
    parser = reply_parser(Op.GET)
    assert parser is not None
    asked = list(driven(parser, said))
    assert asked == [8, PIECE, PIECE, PIECE, 5]
    parsers = iter([reply_parser(Op.GET)])
    incoming = Incoming(lambda: next(parsers, None))
    pieces = [said[at : at + 70001] for at in range(0, len(said), 70001)]
    assert [answer for piece in pieces for answer in incoming.feed(piece)] == [value[:size]]


def test_what_comes_behind_the_last_frame_is_kept() -> None:
    parsers = iter([reply_parser(Op.PING)])
    incoming = Incoming(lambda: next(parsers, None))
    assert incoming.feed(b"\1\0\0\0rest") == [1]
    assert incoming.rest == b"rest" and incoming.torn


def test_split() -> None:
    assert split([], 3) == [[]]
    assert split([1, 2, 3], 3) == [[1, 2, 3]]
    groups = split(list(range(7)), 3)
    assert list(accumulate(map(len, groups))) == [3, 6, 7]
