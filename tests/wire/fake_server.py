"""A TCPStore server in Python for tests of the client: one that can be told to be late, torn, wrong, or gone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from shmstore.tcp.codec import Incoming, Op, Request, encode_reply

LIMIT_S = 20.0
Answer = bytes | None
"""The bytes of an answer, none of them for silence; None: the end of the connection."""


class Peer:
    """One connection at the server's end."""

    def __init__(self, fake: Fake, sock: socket.socket, index: int) -> None:
        self.fake, self.sock, self.index = fake, sock, index
        self.chunks: list[bytes] = []
        self.ended = threading.Event()
        self.waits: list[bytes] | None = None
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def send(self, data: bytes) -> None:
        with suppress(OSError):
            if not self.fake.torn:
                self.sock.sendall(data)
                return
            for byte in data:
                self.sock.sendall(bytes([byte]))

    def close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        incoming = Incoming()
        with suppress(OSError):
            while data := self.sock.recv(1 << 16):
                self.chunks.append(data)
                for request in incoming.feed(data):
                    answer = self.fake.answer(self, request)
                    if answer is None:
                        self.close()
                        break
                    self.send(answer)
        self.sock.close()
        self.fake.ended(self)


class Fake:
    """A server with a dict. `on` may answer instead: it is asked first, and NotImplemented leaves it to the dict."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, *, listening: bool = True) -> None:
        self._listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((address, port))
        self.port: int = self._listener.getsockname()[1]
        self.changed = threading.Condition(threading.RLock())
        self.peers: list[Peer] = []
        self.requests: list[tuple[int, Request]] = []
        self.keys: dict[bytes, bytes] = {}
        self.on: Callable[[Peer, Request], Answer] = lambda peer, request: NotImplemented
        self.torn = False
        self._acceptor: threading.Thread | None = None
        if listening:
            self.listen()

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def listen(self) -> None:
        self._listener.listen()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self.changed:
                    self.peers.append(Peer(self, sock, len(self.peers)))

    def stop(self) -> None:
        """Ends it and all connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._acceptor is not None:
            self._acceptor.join(LIMIT_S)
        self.drop_all()

    def drop_all(self) -> None:
        """Ends all connections there are."""
        for peer in self.peers:
            peer.close()
        for peer in self.peers:
            peer.thread.join(LIMIT_S)

    def ended(self, peer: Peer) -> None:
        with self.changed:
            peer.ended.set()
            self.changed.notify_all()

    def until(self, true: Callable[[], object]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, LIMIT_S), "it did not come to be so"

    def asked(self, op: Op) -> list[int]:
        """The connections on which it was asked, each time."""
        return [index for index, request in self.requests if request.op is op]

    def answer(self, peer: Peer, request: Request) -> Answer:
        with self.changed:
            self.requests.append((peer.index, request))
            self.changed.notify_all()
            answer = self.on(peer, request)
            return self._plain(peer, request) if answer is NotImplemented else answer

    def release(self) -> None:
        """Answers the waits whose keys are there."""
        for peer in self.peers:
            if peer.waits is not None and all(key in self.keys for key in peer.waits):
                peer.waits = None
                peer.send(encode_reply(Op.WAIT, 0))

    def _plain(self, peer: Peer, request: Request) -> bytes:
        op, fields = request.op, request.fields
        if op is Op.PING:
            return encode_reply(op, fields[0])
        if op is Op.SET:
            self.keys[fields[0]] = fields[1]
            self.release()
        elif op is Op.MULTI_SET:
            self.keys.update(fields[0])
            self.release()
        elif op is Op.MULTI_GET:
            return encode_reply(op, [self.keys.get(key, b"") for key in fields[0]])
        elif op is Op.ADD:
            self.keys[fields[0]] = b"%d" % (int(self.keys.get(fields[0], b"0")) + fields[1])
            return encode_reply(op, int(self.keys[fields[0]]))
        elif op is Op.GET:
            return encode_reply(op, self.keys.get(fields[0], b""))
        elif op is Op.COMPARE_SET:
            return encode_reply(op, self.keys.get(fields[0], fields[1]))
        elif op is Op.CHECK:
            return encode_reply(op, int(any(key not in self.keys for key in fields[0])))
        elif op is Op.WAIT:
            peer.waits = fields[0]
            self.release()
        elif op is Op.CANCEL_WAIT:
            peer.waits = None
            return encode_reply(op, 1)
        elif op in (Op.QUEUE_LEN, Op.GETNUMKEYS):
            return encode_reply(op, len(self.keys) if op is Op.GETNUMKEYS else 0)
        elif op is Op.LIST_KEYS:
            return encode_reply(op, list(self.keys))
        return b""
