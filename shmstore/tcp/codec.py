"""The frames of c10d's TCPStore protocol as pure bytes, both ways: no sockets, no waiting.

The protocol has no framing: what follows an opcode is known by the opcode only, and what an answer looks like by the
request it answers. So each kind of field is written once, as a writer and a parser, `REQUESTS` says of which fields
the requests are made, and `REPLIES` what answers them:

    op  name         fields of the request      answer
     0  VALIDATE     u32 MAGIC                  none
     1  SET          key, value                 none
     2  COMPARE_SET  key, expected, desired     value
     3  GET          key                        value
     4  ADD          key, i64                   i64
     5  CHECK        keys                       u8: READY or NOT_READY
     6  WAIT         keys                       u8: STOP_WAITING, when all have been set
     7  GETNUMKEYS                              i64
     8  DELETE_KEY   key                        i64: how many were deleted
     9  APPEND       key, value                 none
    10  MULTI_GET    keys                       as many values
    11  MULTI_SET    pairs                      none
    12  CANCEL_WAIT                             u8: WAIT_CANCELED
    13  PING         u32                        the same u32
    14  QUEUE_PUSH   key, value                 none
    15  QUEUE_POP    key                        i64: length before; if not 0, a value
    16  QUEUE_LEN    key                        i64
    17  LIST_KEYS                               i64, as many keys
    18  BARRIER      key, i64                   u8: STOP_WAITING, when as many have come
   209  HOLD         requests, as a value       theirs, once the connection's WAIT is over; none where it is taken back

HOLD is of our server alone, which says so: it answers a PING of ASKED with ANSWERED, and any other server with ASKED.

Numbers are little-endian. Keys and values are a u64 length and as many bytes; keys, pairs a u64 count and so many.

A parser is a generator: it yields how many bytes it needs next, is sent exactly those, and returns what they mean.
Who drives it has the bytes or waits for them: `Incoming` for bytes that come in any pieces, the client's connection
from its socket. Each length and count is held against `Limits` before anything is asked for, and what is asked for
grows only with what has come: a peer cannot make the other side take memory that it does not fill.

Source: observed of torch 2.13, which is what `tests/wire/golden` holds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeAlias

from shmstore._keys import VALUE_MAX

__all__ = [
    "ANSWERED",
    "ASKED",
    "HELD_MAX",
    "HELLO",
    "MAGIC",
    "PIECE",
    "REPLIES",
    "REQUESTS",
    "FrameError",
    "Incoming",
    "Limits",
    "Op",
    "Request",
    "Signal",
    "encode",
    "encode_reply",
    "reply_parser",
    "request_parser",
    "split",
]

MAGIC: Final = 0x3C85F7CE
"""What VALIDATE carries."""

ASKED: Final = 0x53686D73
ANSWERED: Final = 0x53686D74
"""A PING by which a client learns whether the server knows HOLD."""

HELD_MAX: Final = 1 << 20
"""Bytes of requests that one HOLD may have."""

PIECE: Final = 1 << 20
"""The most bytes that a parser asks for at once."""


class Op(IntEnum):
    """The opcodes, one byte each."""

    VALIDATE = 0
    SET = 1
    COMPARE_SET = 2
    GET = 3
    ADD = 4
    CHECK = 5
    WAIT = 6
    GETNUMKEYS = 7
    DELETE_KEY = 8
    APPEND = 9
    MULTI_GET = 10
    MULTI_SET = 11
    CANCEL_WAIT = 12
    PING = 13
    QUEUE_PUSH = 14
    QUEUE_POP = 15
    QUEUE_LEN = 16
    LIST_KEYS = 17
    BARRIER = 18
    HOLD = 0xD1


class Signal:
    """The one-byte answers. The same numbers mean different things to CHECK and to the waits."""

    READY: Final = 0
    NOT_READY: Final = 1
    STOP_WAITING: Final = 0
    WAIT_CANCELED: Final = 1


class FrameError(ValueError):
    """Bytes that are no frame: an unknown opcode, a length beyond its limit, an answer that is none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a parser takes. The defaults are those of torch's libuv server for requests.

    Attributes:
        key: bytes of a key on the wire, the leading slash included.
        value: bytes of a value.
        keys: keys or pairs of one request, or keys of one answer.
    """

    key: int = 8192
    value: int = VALUE_MAX
    keys: int = 131072


ANSWER: Final = Limits(key=1 << 20, value=1 << 30, keys=1 << 26)
"""What a client takes from a server: torch's legacy one keeps what it is given, and APPEND has no limit in either."""

Fields: TypeAlias = tuple[Any, ...]
Parser: TypeAlias = Generator[int, bytes, Any]
"""Yields how many bytes it needs, at most PIECE, is sent exactly as many, and returns what it read."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        op: what is asked for.
        fields: as `REQUESTS` says: bytes for a key or value, int, list of bytes for keys, list of pairs of bytes.
    """

    op: Op
    fields: Fields = ()


# -- kinds of fields --------------------------------------------------------------------------------------------------

_U8, _U32, _U64, _I64 = struct.Struct("<B"), struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<q")
_u64 = _U64.pack


def _blob(data: bytes) -> bytes:
    return _u64(len(data)) + data


def _blobs(things: Sequence[bytes]) -> bytes:
    return _u64(len(things)) + b"".join([_u64(len(thing)) + thing for thing in things])


def _pairs(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    return _u64(len(pairs)) + b"".join([_blob(key) + _blob(value) for key, value in pairs])


def _number(form: struct.Struct) -> Callable[[Limits], Parser]:
    def parse(_limits: Limits) -> Parser:
        return form.unpack((yield form.size))[0]

    return parse


def _bytes(limit: int, what: str) -> Generator[int, bytes, bytes]:
    size: int = _U64.unpack((yield 8))[0]
    if size > limit:
        raise FrameError(f"a {what} of {size} bytes, at most {limit} were due")
    if size <= PIECE:
        return (yield size) if size else b""
    data = bytearray()
    while len(data) < size:
        data += yield min(PIECE, size - len(data))
    return bytes(data)


def _count(limit: int, what: str) -> Generator[int, bytes, int]:
    count: int = _U64.unpack((yield 8))[0]
    if count > limit:
        raise FrameError(f"{count} {what}, at most {limit} were due")
    return count


def _parse_key(limits: Limits) -> Parser:
    return _bytes(limits.key, "key")


def _parse_value(limits: Limits) -> Parser:
    return _bytes(limits.value, "value")


def _parse_keys(limits: Limits) -> Parser:
    keys = []
    for _ in range((yield from _count(limits.keys, "keys"))):
        keys.append((yield from _bytes(limits.key, "key")))  # noqa: PERF401 -- no comprehension may yield
    return keys


def _parse_pairs(limits: Limits) -> Parser:
    pairs = []
    for _ in range((yield from _count(limits.keys, "pairs"))):
        key = yield from _bytes(limits.key, "key")
        pairs.append((key, (yield from _bytes(limits.value, "value"))))
    return pairs


@dataclass(frozen=True, slots=True)
class Field:
    """A kind of field: how it is written, and how read under limits."""

    write: Callable[[Any], bytes]
    parse: Callable[[Limits], Parser]


U32: Final = Field(_U32.pack, _number(_U32))
I64: Final = Field(_I64.pack, _number(_I64))
KEY: Final = Field(_blob, _parse_key)
VALUE: Final = Field(_blob, _parse_value)
KEYS: Final = Field(_blobs, _parse_keys)
PAIRS: Final = Field(_pairs, _parse_pairs)

REQUESTS: Final[dict[Op, tuple[Field, ...]]] = {
    Op.VALIDATE: (U32,),
    Op.SET: (KEY, VALUE),
    Op.COMPARE_SET: (KEY, VALUE, VALUE),
    Op.GET: (KEY,),
    Op.ADD: (KEY, I64),
    Op.CHECK: (KEYS,),
    Op.WAIT: (KEYS,),
    Op.GETNUMKEYS: (),
    Op.DELETE_KEY: (KEY,),
    Op.APPEND: (KEY, VALUE),
    Op.MULTI_GET: (KEYS,),
    Op.MULTI_SET: (PAIRS,),
    Op.CANCEL_WAIT: (),
    Op.PING: (U32,),
    Op.QUEUE_PUSH: (KEY, VALUE),
    Op.QUEUE_POP: (KEY,),
    Op.QUEUE_LEN: (KEY,),
    Op.LIST_KEYS: (),
    Op.BARRIER: (KEY, I64),
    Op.HOLD: (VALUE,),
}
_OPCODES: Final = {op: _U8.pack(op) for op in Op}


# -- kinds of answers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """A kind of answer: how it is written, and how read under limits, given the fields of its request."""

    write: Callable[[Any], bytes]
    parse: Callable[[Fields, Limits], Parser]


def _plain(field: Field) -> Reply:
    return Reply(field.write, lambda _fields, limits: field.parse(limits))


def _signal(*known: int) -> Reply:
    def parse(_fields: Fields, _limits: Limits) -> Parser:
        value = (yield 1)[0]
        if value not in known:
            raise FrameError(f"the answer byte {value}, one of {known} was due")
        return value

    return Reply(_U8.pack, parse)


def _amount(form: Callable[[int], bool], what: str) -> Reply:
    def parse(_fields: Fields, _limits: Limits) -> Parser:
        value: int = _I64.unpack((yield 8))[0]
        if not form(value):
            raise FrameError(f"{what} of {value}")
        return value

    return Reply(_I64.pack, parse)


def _parse_values(fields: Fields, limits: Limits) -> Parser:
    values = []
    for _ in fields[0]:
        values.append((yield from _bytes(limits.value, "value")))  # noqa: PERF401 -- no comprehension may yield
    return values


def _write_popped(popped: tuple[int, bytes | None]) -> bytes:
    length, item = popped
    return _I64.pack(length) + (b"" if item is None else _blob(item))


def _parse_popped(_fields: Fields, limits: Limits) -> Parser:
    length: int = _I64.unpack((yield 8))[0]
    if length < 0:
        raise FrameError(f"a queue of {length} items")
    return length, ((yield from _bytes(limits.value, "item")) if length else None)


_ANY_I64: Final = _plain(I64)
_LENGTH: Final = _amount(lambda value: value >= 0, "a count")

REPLIES: Final[dict[Op, Reply | None]] = {
    Op.VALIDATE: None,
    Op.SET: None,
    Op.COMPARE_SET: _plain(VALUE),
    Op.GET: _plain(VALUE),
    Op.ADD: _ANY_I64,
    Op.CHECK: _signal(Signal.READY, Signal.NOT_READY),
    Op.WAIT: _signal(Signal.STOP_WAITING, Signal.WAIT_CANCELED),
    Op.GETNUMKEYS: _LENGTH,
    Op.DELETE_KEY: _LENGTH,
    Op.APPEND: None,
    Op.MULTI_GET: Reply(lambda values: b"".join(map(_blob, values)), _parse_values),
    Op.MULTI_SET: None,
    Op.CANCEL_WAIT: _signal(Signal.WAIT_CANCELED),
    Op.PING: _plain(U32),
    Op.QUEUE_PUSH: None,
    Op.QUEUE_POP: Reply(_write_popped, _parse_popped),
    Op.QUEUE_LEN: _LENGTH,
    Op.LIST_KEYS: _plain(KEYS),  # the count is an i64 there, and no count below 0 is within the limit of a u64
    Op.BARRIER: _signal(Signal.STOP_WAITING, Signal.WAIT_CANCELED),
    Op.HOLD: None,
}
"""None: no answer. WAIT and BARRIER may be answered by the CANCEL_WAIT that follows them: see `Signal`."""


# -- frames -----------------------------------------------------------------------------------------------------------


def encode(op: Op, *fields: Any) -> bytes:
    """The bytes of a request. Lengths are the caller's to keep."""
    return b"".join([_OPCODES[op], *[kind.write(field) for kind, field in zip(REQUESTS[op], fields, strict=True)]])


HELLO: Final = encode(Op.VALIDATE, MAGIC)
"""What a client sends first. All five bytes in one write: a server may take the first piece for the whole."""


def encode_reply(op: Op, answer: Any = None) -> bytes:
    """The bytes of an answer, for a server: int, bytes, a list of bytes, or (length, item) for QUEUE_POP."""
    reply = REPLIES[op]
    return b"" if reply is None else reply.write(answer)


def request_parser(limits: Limits = Limits()) -> Parser:
    """Reads one request, for a server; returns a `Request`.

    Raises:
        FrameError: an unknown opcode, a wrong MAGIC, or a length beyond the limits.
    """
    opcode = (yield 1)[0]
    if opcode not in _KNOWN:
        raise FrameError(f"opcode {opcode} is unknown")
    op = Op(opcode)
    fields = []
    for kind in REQUESTS[op]:
        fields.append((yield from kind.parse(limits)))  # noqa: PERF401 -- no comprehension may yield
    if op is Op.VALIDATE and fields[0] != MAGIC:
        raise FrameError(f"the magic number is {fields[0]:#010x}, {MAGIC:#010x} was due")
    return Request(op, tuple(fields))


_KNOWN: Final = frozenset(Op)


def reply_parser(op: Op, fields: Fields = (), limits: Limits = ANSWER) -> Parser | None:
    """Reads the answer to that request, for a client; None where there is none.

    Returns, in the end:
        int, bytes, list of bytes (MULTI_GET, LIST_KEYS), or for QUEUE_POP the queue's length before it and the item, or
        None where it was empty.

    Raises:
        FrameError: a length beyond the limits, or a byte or number that answers nothing.
    """
    reply = REPLIES[op]
    return None if reply is None else reply.parse(fields, limits)


class Incoming:
    """Frames out of bytes that come in any pieces: a frame may be torn, and a piece may hold several.

    Args:
        parsers: called for the parser of each next frame; None ends it, and what comes then is left in `rest`.
    """

    def __init__(self, parsers: Callable[[], Parser | None] = request_parser) -> None:
        self._parsers = parsers
        self._parser: Parser | None = None
        self._need = 0
        self.rest = bytearray()

    @property
    def torn(self) -> bool:
        """True in the middle of a frame: an end of the stream here cuts one off."""
        return self._parser is not None or bool(self.rest)

    def feed(self, data: bytes) -> list[Any]:
        """The frames that are whole with these bytes. Raises FrameError, and is of no use from then on."""
        self.rest += data
        done: list[Any] = []
        while True:
            if self._parser is None:
                if not self.rest:
                    return done
                self._parser = self._parsers()
                if self._parser is None:
                    return done
                try:
                    self._need = next(self._parser)
                except StopIteration as end:  # an answer of no bytes: MULTI_GET of no keys
                    done.append(end.value)
                    self._parser = None
                    continue
            if len(self.rest) < self._need:
                return done
            piece = bytes(self.rest[: self._need])
            del self.rest[: self._need]
            try:
                self._need = self._parser.send(piece)
            except StopIteration as end:
                done.append(end.value)
                self._parser = None


def split(things: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """The things in order, in groups of at most `size`; at least one group, which may be empty."""
    return [things[at : at + size] for at in range(0, len(things), size)] or [things]
