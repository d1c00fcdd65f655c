"""Records what torch's own client and server say to each other, as text files in golden/. Run it where torch is.

    python tests/wire/record_golden.py [FOLDER [talk|raw]]

`talk-libuv.txt` and `talk-legacy.txt`: torch's client through a relay to torch's server, call by call. `raw-libuv.txt`
and `raw-legacy.txt`: requests made by hand, which torch's client never sends, and what torch's server makes of them.

The notation, which `golden_files.py` reads:

    == the case, in words
    call   store.set('k', b'')       Python, as it was called; raw files have none
    beside other.set('k', b'1')      what another client did meanwhile, once the server had the request
    client 01 0200000000000000 2f6b  bytes in hex, a blank has no meaning; 6162*30 is 30 times 6162
    server 00                        the other direction, in the order in which the relay saw them
    server closes                    end of stream; "server silent": no answer and no end within 5 s
    result None                      what the call gave, or the name of what it raised

`client2` and `server2` are a second connection. `<nonce>` stands for the four bytes of a PING, which are torch's pid.

A call is over when its bytes have passed: each is followed by a `num_keys`, whose bytes are cut off again. Nothing here
is timed, but for the waits that are to time out.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"
LIMIT_S = 30.0
SILENCE_S = 5.0  # without an answer, and the server is said to be silent
LONG, SHORT = timedelta(seconds=LIMIT_S), timedelta(milliseconds=30)
SENTINEL = b"\x07", 8  # num_keys: its request, and how long its answer is

Event = tuple[int, str, bytes | None]  # connection, side, bytes or None for the end of the stream


class Relay:
    """Stands between clients and a server and keeps what passes, in the order in which it came here.

    It lives in a process of its own: some calls of torch's client keep the GIL until they have their answer.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._holding = False  # answers are kept, and not passed on before it is False again
        self._count = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for one, other, side in ((client, server, "client"), (server, client, "server")):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._pump, args=(one, other, side, self._count), daemon=True).start()
                self._count += 1

    def _pump(self, source: socket.socket, sink: socket.socket, side: str, index: int) -> None:
        while True:
            try:
                data = source.recv(1 << 20)
            except OSError:
                data = b""
            with self._changed:
                self._events.append((index, side, data or None))
                self._changed.notify_all()
                self._changed.wait_for(lambda: side == "client" or not self._holding)
            with suppress(OSError):
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)

    def hold(self, holding: bool) -> None:
        with self._changed:
            self._holding = holding
            self._changed.notify_all()

    def until(self, event: Event | None) -> None:
        """Waits until that has passed; None: anything."""
        with self._changed:
            came = self._changed.wait_for(lambda: event in self._events or (event is None and self._events), LIMIT_S)
            assert came, f"{event} did not come: {self._events[-5:]}"

    def take(self) -> list[Event]:
        with self._changed:
            events, self._events = self._events, []
            return events


class Relays(BaseManager):
    """The process of the relays."""


Relays.register("Relay", Relay)


# -- the notation -----------------------------------------------------------------------------------------------------


def hexed(data: bytes) -> str:
    """Bytes as in the files: what repeats itself 24 times and more is counted."""
    words, plain, at = [], 0, 0
    while at < len(data):
        for size in (1, 13):  # a byte, and a key of five
            unit, times = data[at : at + size], 24
            if data[at : at + 24 * size] == unit * 24:
                if size == 1:
                    times = len(data) - at - len(data[at:].lstrip(unit))
                while data[at + times * size : at + (times + 1) * size] == unit:
                    times += 1
                words += [data[plain:at].hex()] if plain < at else []
                words.append(f"{unit.hex()}*{times}")
                at = plain = at + times * size
                break
        else:
            at += 1
    words += [data[plain:].hex()] if plain < len(data) else []
    return " ".join(words)


def lines_of(events: Iterable[Event], first: int) -> list[str]:
    """The lines of a case; what one side says in one turn is one line. `first` is the connection without a number."""
    nonce = struct.pack("<I", os.getpid())
    turns: list[tuple[str, bytes | None]] = []
    for index, side, data in events:
        who = side if index == first else f"{side}{index - first + 1}"
        if data is not None and turns and turns[-1][0] == who and turns[-1][1] is not None:
            turns[-1] = (who, turns[-1][1] + data)
        else:
            turns.append((who, data))
    lines = []
    for who, data in turns:
        if data is None:
            lines.append(f"{who} closes")
        elif data == nonce:
            lines.append(f"{who} <nonce>")
        elif data[:5] == b"\x00\xce\xf7\x85\x3c" and data[6:10] == nonce:
            rest = hexed(data[10:])
            lines.append(f"{who} {data[:5].hex()} 0d <nonce>{' ' + rest if rest else ''}")
        else:
            lines.append(f"{who} {hexed(data)}")
    return lines


# -- torch's client -----------------------------------------------------------------------------------------------

# In words, the call, and what another client does once the server has the request.
CALLS: list[tuple[str, str, str]] = [
    ("set", "store.set('k', b'one')", ""),
    ("set of nothing", "store.set('empty', b'')", ""),
    ("set of a str", "store.set('t', 'text')", ""),
    ("set with NUL and UTF-8", "store.set('gr\\u00fcn', b'a\\0b')", ""),
    ("set of more than one buffer of the client", "store.set('big', b'a' * 3000)", ""),
    ("get", "store.get('k')", ""),
    ("get of nothing", "store.get('empty')", ""),
    ("get of more than one buffer", "len(store.get('big'))", ""),
    ("get that waits", "store.get('later')", "other.set('later', b'x')"),
    ("get that times out", "store.get('gone')", ""),
    ("add", "store.add('n', 5)", ""),
    ("add of less than nothing", "store.add('n', -7)", ""),
    ("add of nothing creates", "store.add('zero', 0)", ""),
    ("add of the greatest", "store.add('most', 9223372036854775807)", ""),
    ("add wraps", "store.add('most', 1)", ""),
    ("get of a counter", "store.get('n')", ""),
    ("compare_set, missing, expected empty", "store.compare_set('c', '', 'new')", ""),
    ("compare_set, missing, expected not empty", "store.compare_set('c2', 'old', 'new')", ""),
    ("compare_set, present, wrong", "store.compare_set('c', 'wrong', 'x')", ""),
    ("compare_set, present, right", "store.compare_set('c', 'new', '')", ""),
    ("check, none", "store.check([])", ""),
    ("check, there", "store.check(['k'])", ""),
    ("check, one of two missing", "store.check(['k', 'gone'])", ""),
    ("wait for none", "store.wait([])", ""),
    ("wait, there", "store.wait(['k', 'n'])", ""),
    ("wait that is released", "store.wait(['k', 'w1'], LONG)", "other.set('w1', b'')"),
    ("wait released by add", "store.wait(['w2'], LONG)", "other.add('w2', 1)"),
    ("wait released by append", "store.wait(['w3'], LONG)", "other.append('w3', b'x')"),
    ("wait released by multi_set", "store.wait(['w4'], LONG)", "other.multi_set(['w4'], [b''])"),
    ("wait that times out", "store.wait(['gone'], SHORT)", ""),
    ("wait of no time", "store.wait(['gone'], timedelta(0))", ""),
    ("delete_key, there", "store.delete_key('k')", ""),
    ("delete_key, missing", "store.delete_key('k')", ""),
    ("append creates", "store.append('a', b'1')", ""),
    ("append extends", "store.append('a', b'2')", ""),
    ("append of nothing creates", "store.append('a2', b'')", ""),
    ("multi_set", "store.multi_set(['m1', 'm2'], [b'1', b''])", ""),
    ("multi_set of none", "store.multi_set([], [])", ""),
    ("multi_get", "store.multi_get(['m2', 'm1'])", ""),
    ("multi_get of none", "store.multi_get([])", ""),
    ("multi_get that waits", "store.multi_get(['m1', 'm3'])", "other.set('m3', b'3')"),
    ("num_keys", "store.num_keys()", ""),
    ("queue_len of none", "store.queue_len('q')", ""),
    ("queue_push", "store.queue_push('q', b'i')", ""),
    ("queue_push of nothing", "store.queue_push('q', b'')", ""),
    ("queue_len", "store.queue_len('q')", ""),
    ("check of a queue", "store.check(['q'])", ""),
    ("wait for a queue", "store.wait(['q'], LONG)", ""),
    ("delete_key of a queue", "store.delete_key('q')", ""),
    ("queue_pop, no block", "store.queue_pop('q', False)", ""),
    ("queue_pop, block", "store.queue_pop('q')", ""),
    ("queue_pop, no block, empty", "store.queue_pop('q', False)", ""),
    ("queue_pop that waits", "store.queue_pop('q2')", "other.queue_push('q2', b'item')"),
    ("queue_pop that times out", "store.queue_pop('q')", ""),
    ("barrier of one", "store.barrier('b', 1, LONG)", ""),
    ("barrier that waits", "store.barrier('b2', 2, LONG)", "other.barrier('b2', 2, LONG)"),
    ("barrier that times out", "store.barrier('b3', 2, SHORT)", ""),
    ("barrier, a key that has served", "store.barrier('b2', 2, SHORT)", ""),
    ("barrier's count", "store.get('b2')", ""),
    ("barrier behind a prefix", "dist.PrefixStore('p', store).barrier('b', 1, LONG)", ""),
    ("set behind two prefixes", "dist.PrefixStore('i', dist.PrefixStore('o', store)).set('k', b'v')", ""),
    ("list_keys", "sorted(store.list_keys())", ""),
    ("has_extended_api", "store.has_extended_api()", ""),
]


class Talk:
    """Torch's client at a relay before torch's server, and another that comes directly."""

    def __init__(self, dist: Any, relays: Any, *, libuv: bool) -> None:
        self._dist, self._libuv = dist, libuv
        self._server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=libuv)
        self._relay = relays.Relay(self._server.port)
        self._other = self._client(self._server.port)
        self._first = -1
        self.lines: list[str] = []

    def _client(self, port: int, **more: Any) -> Any:
        args: dict[str, Any] = {"is_master": False, "wait_for_workers": False, "use_libuv": self._libuv} | more
        return self._dist.TCPStore("127.0.0.1", port, timeout=LONG, **args)

    def open(self, case: str, **more: Any) -> None:
        """A client of its own connection; the bytes of its making are a case."""
        self._first += 1
        given = "".join(f", {key}={value!r}" for key, value in more.items())
        self.lines += ["", f"== {case}", f"call   TCPStore(host, port{given})"]
        self.store = self._client(self._relay.port(), **more)
        self._write(self._passed(self.store), "ready")

    def _passed(self, store: Any) -> list[Event]:
        """What has passed up to now, without the sentinel that says that it has."""
        store.num_keys()
        events = self._relay.take()
        for side, size in (("client", len(SENTINEL[0])), ("server", SENTINEL[1])):
            at = max(i for i, event in enumerate(events) if event[1] == side and event[2] is not None)
            index, _, data = events[at]
            assert data is not None
            events[at] = (index, side, data[:-size])
        return [event for event in events if event[2] != b""]

    def _write(self, events: list[Event], result: str) -> None:
        self.lines += lines_of([event for event in events if event[0] >= self._first], self._first)
        self.lines.append(f"result {result}")

    def _run(self, call: str) -> str:
        names = {"store": self.store, "dist": self._dist, "timedelta": timedelta, "LONG": LONG, "SHORT": SHORT}
        try:
            return repr(eval(call, names))
        except (RuntimeError, NotImplementedError) as error:
            return type(error).__name__

    def call(self, case: str, call: str, beside: str = "", *, hold: bool = False) -> None:
        self.lines += ["", f"== {case}", f"call   {call}"]
        self.store.set_timeout(SHORT if "times out" in case else LONG)
        results: list[str] = []
        caller = threading.Thread(target=lambda: results.append(self._run(call)))
        if beside:
            self.lines.append(f"beside {beside}")
            self._relay.hold(hold)
            caller.start()
            self._relay.until(None)
            eval(beside, {"other": self._other, "LONG": LONG})
            if hold:  # the answer is on its way when the client gives up
                self._relay.until((self._first, "client", b"\x0c"))
                self._relay.hold(False)
        else:
            caller.start()
        caller.join(LIMIT_S)
        self._write(self._passed(self.store), results[0])

    def fatal(self, case: str, call: str) -> None:
        """A call that the server answers with the end of the connection."""
        self.lines += ["", f"== {case}", f"call   {call}"]
        result = self._run(call)
        self._relay.until((self._first, "server", None))
        self._write([event for event in self._relay.take() if event[1:] != ("client", None)], result)

    def close(self) -> None:
        self.lines += ["", "== the client goes", "call   del store"]
        del self.store
        self._relay.until((self._first, "client", None))
        self._write([event for event in self._relay.take() if event[1] == "client"], "None")

    def clone(self) -> None:
        self.lines += ["", "== clone", "call   store.clone()"]
        other = self.store.clone()
        events = self._passed(other)
        self._write(events, "TCPStore")
        del other
        self._relay.until((self._first + 1, "client", None))
        self._relay.take()


def talk(dist: Any, relays: Any, *, libuv: bool) -> list[str]:
    it = Talk(dist, relays, libuv=libuv)
    it.open("connect")
    for case, call, beside in CALLS:
        if libuv or "queue" not in case + call:
            it.call(case, call, beside)
    it.call("wait, released when it gives up", "store.wait(['w5'], SHORT)", "other.set('w5', b'')", hold=True)
    it.clone()
    it.close()
    it._first += 1  # the clone's connection
    for case, text in (("text", "x"), ("a number beyond int64", "9223372036854775808"), ("a number and more", "12abc")):
        it.open(f"connect, for an add to {case}")
        it.call(f"set, for an add to {case}", f"store.set('bad', {text!r})")
        (it.call if "more" in case else it.fatal)(f"add to {case}", "store.add('bad', 1)")
    it.open("connect with a world, waiting for none", world_size=2)
    it.open("connect with a world, waiting", world_size=2, wait_for_workers=True)
    it.open("connect without a world, waiting", wait_for_workers=True)
    return it.lines


# -- by hand ----------------------------------------------------------------------------------------------------------


def size(n: int) -> bytes:
    return struct.pack("<Q", n)


def text(data: bytes) -> bytes:
    return size(len(data)) + data


def many(*keys: bytes) -> bytes:
    return size(len(keys)) + b"".join(map(text, keys))


HELLO = bytes.fromhex("00cef7853c")
NONCE = bytes.fromhex("0d01020304")
NUMBER = struct.Struct("<q").pack
MIB8 = 8 << 20

# In words, and what is sent after the handshake, write by write. A PING is sent last: its answer ends the case.
REQUESTS: list[tuple[str, list[bytes]]] = [
    ("PING again", []),
    ("VALIDATE again", [HELLO]),
    ("VALIDATE with another magic", [b"\x00\x01\x02\x03\x04"]),
    ("opcode 19", [b"\x13"]),
    ("opcode 255", [b"\xff"]),
    ("GET of a missing key", [b"\x03" + text(b"/gone")]),
    ("MULTI_GET with a missing key", [b"\x01" + text(b"/h") + text(b"1") + b"\x0a" + many(b"/h", b"/gone")]),
    ("MULTI_GET of none", [b"\x0a" + many()]),
    ("MULTI_SET of none", [b"\x0b" + many()]),
    ("CHECK of none", [b"\x05" + many()]),
    ("WAIT for none", [b"\x06" + many()]),
    ("WAIT, a CHECK meanwhile, CANCEL_WAIT", [b"\x06" + many(b"/gone"), b"\x05" + many(b"/gone"), b"\x0c"]),
    ("WAIT, and the same connection sets", [b"\x06" + many(b"/w"), b"\x01" + text(b"/w") + text(b"")]),
    (
        "two WAITs, and the same connection sets",
        [b"\x06" + many(b"/w2"), b"\x06" + many(b"/w2", b"/w2"), b"\x01" + text(b"/w2") + text(b"")],
    ),
    ("WAIT for a key twice", [b"\x06" + many(b"/w3", b"/w3"), b"\x01" + text(b"/w3") + text(b"")]),
    (
        "WAIT for two, one set, deleted, the other set",
        [
            b"\x06" + many(b"/w4", b"/w5"),
            b"\x01" + text(b"/w4") + text(b""),
            b"\x08" + text(b"/w4"),
            b"\x01" + text(b"/w5") + text(b""),
        ],
    ),
    ("WAIT, and a COMPARE_SET that creates", [b"\x06" + many(b"/w6"), b"\x02" + text(b"/w6") + text(b"") + text(b"1")]),
    (
        "WAIT, and a COMPARE_SET that creates nothing",
        [
            b"\x06" + many(b"/w7"),
            b"\x02" + text(b"/w7") + text(b"x") + text(b"1"),
        ],
    ),
    ("CANCEL_WAIT without a WAIT", [b"\x0c"]),
    ("COMPARE_SET of nothing with nothing, missing", [b"\x02" + text(b"/e") + text(b"") + text(b"")]),
    ("an empty key", [b"\x01" + text(b"") + text(b"v") + b"\x03" + text(b"")]),
    (
        "three requests in one write",
        [
            b"\x01" + text(b"/p") + text(b"1") + b"\x04" + text(b"/p") + NUMBER(2) + b"\x03" + text(b"/p"),
        ],
    ),
    ("a request byte by byte", [bytes([byte]) for byte in b"\x04" + text(b"/t") + NUMBER(-5)]),
    ("a key of 8192 bytes", [b"\x05" + many(b"k" * 8192)]),
    ("a key of 8193 bytes", [b"\x05" + many(b"k" * 8193)]),
    ("a value of 8 MiB", [b"\x01" + text(b"/v") + text(b"a" * MIB8)]),
    ("a value of 8 MiB and one", [b"\x01" + text(b"/v") + text(b"a" * (MIB8 + 1))]),
    ("COMPARE_SET of 8 MiB twice", [b"\x02" + text(b"/v2") + text(b"a" * MIB8) + text(b"b" * MIB8)]),
    ("MULTI_SET of 5 MiB twice", [b"\x0b" + size(2) + (text(b"/v3") + text(b"a" * (5 << 20))) * 2]),
    (
        "APPEND beyond 8 MiB",
        [b"\x01" + text(b"/v4") + text(b"a" * MIB8), b"\x09" + text(b"/v4") + text(b"b" * 24), b"\x03" + text(b"/v4")],
    ),
    ("CHECK of 131072 keys", [b"\x05" + size(131072) + text(b"/gone") * 131072]),
    ("CHECK of 131073 keys", [b"\x05" + size(131073) + text(b"/gone") * 131073]),
    ("a length of 2**63", [b"\x03" + size(1 << 63)]),
    ("a count of 2**64 - 1", [b"\x05" + size((1 << 64) - 1)]),
    ("ADD to blanks and a number", [b"\x01" + text(b"/n") + text(b" \t7x") + b"\x04" + text(b"/n") + NUMBER(1)]),
    ("ADD to nothing", [b"\x01" + text(b"/n2") + text(b"") + b"\x04" + text(b"/n2") + NUMBER(1)]),
    ("BARRIER at text", [b"\x01" + text(b"/b") + text(b"x") + b"\x12" + text(b"/b") + NUMBER(1)]),
    ("BARRIER of none", [b"\x12" + text(b"/b0") + NUMBER(0)]),
    ("BARRIER of less than none", [b"\x12" + text(b"/b-") + NUMBER(-1)]),
    ("BARRIER, CANCEL_WAIT", [b"\x12" + text(b"/b2") + NUMBER(2), b"\x0c"]),
    ("BARRIER twice by one connection", [b"\x12" + text(b"/b3") + NUMBER(2), b"\x12" + text(b"/b3") + NUMBER(2)]),
    ("QUEUE_LEN of none", [b"\x10" + text(b"/q")]),
    ("QUEUE_POP of none", [b"\x0f" + text(b"/q")]),
    ("QUEUE_PUSH", [b"\x0e" + text(b"/q") + text(b"i")]),
    ("QUEUE_PUSH twice, QUEUE_POP thrice", [(b"\x0e" + text(b"/q2") + text(b"i")) * 2 + (b"\x0f" + text(b"/q2")) * 3]),
    (
        "two WAITs for a queue, one QUEUE_PUSH",
        [b"\x06" + many(b"/q3"), b"\x06" + many(b"/q3"), b"\x0e" + text(b"/q3") + text(b"i")],
    ),
    ("GET of a queue", [b"\x0e" + text(b"/q4") + text(b"i") + b"\x03" + text(b"/q4")]),
    ("DELETE_KEY of a queue", [b"\x0e" + text(b"/q5") + text(b"i") + b"\x08" + text(b"/q5") + b"\x10" + text(b"/q5")]),
]
FIRSTS: list[tuple[str, bytes]] = [
    ("no VALIDATE: PING first", b""),
    ("no VALIDATE: SET first", b"\x01" + text(b"/f") + text(b"")),
    ("another magic first", b"\x00\x01\x02\x03\x04"),
    ("VALIDATE alone, then PING", HELLO),
]


def hand(case: str, port: int, writes: list[bytes]) -> list[str]:
    """One connection: each write, at last a PING, and what came back up to its answer or the end."""
    events: list[Event] = []
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer = threading.Thread(target=write_all, args=(sock, [*writes, NONCE]))
        writer.start()
        events += [(0, "client", data) for data in [*writes, NONCE]]
        sock.settimeout(SILENCE_S)
        answer, end = b"", ""
        try:
            while not answer.endswith(NONCE[1:]):
                data = sock.recv(1 << 20)
                if not data:
                    raise ConnectionResetError
                answer += data
        except ConnectionResetError:
            end = "server closes"
        except TimeoutError:
            end = "server silent"
        if answer:
            events.append((0, "server", answer))
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        writer.join()
    return ["", f"== {case}", *lines_of(events, 0), *([end] if end else [])]


def write_all(sock: socket.socket, writes: list[bytes]) -> None:
    with suppress(OSError):  # the server may have gone by then
        for data in writes:
            sock.sendall(data)


def by_hand(dist: Any, _relays: Any, *, libuv: bool) -> list[str]:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=libuv)
    lines = [line for case, data in FIRSTS for line in hand(case, server.port, [data] if data else [])]
    for case, writes in REQUESTS:
        lines += hand(case, server.port, [HELLO, *writes])
    return lines


def main(folder: Path = GOLDEN, what: str = "") -> None:
    """Writes the files of both servers, all or those whose name begins so."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    import torch
    import torch.distributed as dist

    folder.mkdir(exist_ok=True)
    release = torch.__version__.partition("+")[0]
    with Relays() as relays:
        for name, record in (("talk", talk), ("raw", by_hand)):
            for libuv in (True, False) if name.startswith(what) else ():
                kind = "libuv" if libuv else "legacy"
                head = (
                    f"# torch {release}, its {kind} server. Recorded by record_golden.py, which explains the notation."
                )
                lines = [head, *record(dist, relays, libuv=libuv)]
                (folder / f"{name}-{kind}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
                print(f"{name}-{kind}.txt: {sum(line.startswith('== ') for line in lines)} cases")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]), *sys.argv[2:3])
