"""TCPStoreServer: its address, its end, forks, exits; and peers that break off, crowd, or never read."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from shmstore import HashStore, PrefixStore, ShmStore, errors
from shmstore.tcp.server import TCPStoreServer

HELLO = bytes.fromhex("00cef7853c") + b"\x0d" + struct.pack("<I", 4711)
SET, GET, ADD, WAIT, BARRIER = 1, 3, 4, 6, 18
SEGS_IN, DATA_SEGS_IN = 140, 152
"""Where they stand in Linux' struct tcp_info: tcpi_segs_in, tcpi_data_segs_in."""


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


class Peer:
    """A client that says what a test wants it to say."""

    def __init__(self, server: TCPStoreServer) -> None:
        self.sock = socket.create_connection((server.host, server.port), timeout=20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as torch's client does
        self.sock.sendall(HELLO)
        assert self.read(4) == HELLO[6:]

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise ConnectionResetError
            data += piece
        return data

    def ask(self, op: int, *parts: bytes) -> None:
        self.sock.sendall(bytes([op]) + b"".join(parts))

    def get(self, key: bytes) -> bytes:
        self.ask(GET, text(key))
        return self.read(struct.unpack("<Q", self.read(8))[0])

    def add(self, key: bytes, n: int) -> int:
        self.ask(ADD, text(key), struct.pack("<q", n))
        total: int = struct.unpack("<q", self.read(8))[0]
        return total

    def wait(self, *keys: bytes) -> None:
        self.ask(WAIT, struct.pack("<Q", len(keys)), *map(text, keys))

    def gone(self) -> bool:
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def resident() -> int:
    """Bytes of this process, which has the server, that lie in memory now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def store() -> Iterator[HashStore]:
    with HashStore() as store:
        yield store


@pytest.fixture
def server(store: HashStore) -> Iterator[TCPStoreServer]:
    with TCPStoreServer(store) as server:
        yield server


# -- the face ---------------------------------------------------------------------------------------------------------


def test_listens_on_loopback_and_says_where(server: TCPStoreServer) -> None:
    assert server.host == "127.0.0.1"
    assert 0 < server.port < 1 << 16
    assert f"127.0.0.1:{server.port}" in repr(server)
    assert server.stats().running


def test_ipv6(store: HashStore) -> None:
    try:
        server = TCPStoreServer(store, "::1")
    except errors.StoreConnectionError:
        pytest.skip("no IPv6 on the loopback")
    with server, Peer(server) as peer:
        assert peer.add(b"/n", 1) == 1


def test_port_in_use_says_so(store: HashStore, server: TCPStoreServer) -> None:
    with pytest.raises(errors.StoreConnectionError, match=f"{server.port}.*in use"):
        TCPStoreServer(store, port=server.port)


def test_takes_over_a_listening_socket(store: HashStore) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    with TCPStoreServer(store, listen_fd=sock.detach()) as server, Peer(server) as peer:
        assert server.port == port
        assert peer.add(b"/n", 1) == 1


def test_wrong_arguments(store: HashStore) -> None:
    for args in (
        (PrefixStore("p", store),),
        (None,),
        (store, 3),
        (store, "127.0.0.1", "1"),
        (store, "127.0.0.1", True),
    ):
        with pytest.raises(TypeError):
            TCPStoreServer(*args)  # type: ignore[arg-type]
    for more in ({"port": 65536}, {"port": -1}, {"listen_fd": 1 << 20}):
        with pytest.raises(ValueError):
            TCPStoreServer(store, **more)
    closed = HashStore()
    closed.close()
    with pytest.raises(errors.StoreClosedError):
        TCPStoreServer(closed)


def test_outlives_the_handle_it_was_given() -> None:
    store = HashStore()
    with TCPStoreServer(store) as server, Peer(server) as peer:
        store.set("k", b"v")
        store.close()
        assert peer.get(b"/k") == b"v"


def test_a_server_that_is_dropped_ends(store: HashStore) -> None:
    server = TCPStoreServer(store)
    peer = Peer(server)
    del server
    assert peer.gone()
    peer.close()


def test_close_twice_and_stats_after_it(store: HashStore) -> None:
    server = TCPStoreServer(store)
    with Peer(server) as waiter, Peer(server) as peer:
        waiter.wait(b"/never")
        assert peer.add(b"/n", 3) == 3
        until(lambda: server.stats().waiting == 1)
        server.close()
        server.close()
        assert waiter.gone()
        assert peer.gone()
    stats = server.stats()
    assert (stats.connections, stats.open, stats.waiting, stats.running) == (2, 0, 0, False)
    assert stats.operations == 6
    assert stats.bytes_in > 0
    assert "closed" in repr(server)


# -- two sides of one store -------------------------------------------------------------------------------------------


def test_a_local_set_ends_a_wait_on_the_wire(store: HashStore, server: TCPStoreServer) -> None:
    with Peer(server) as peer:
        for i in range(20):
            peer.wait(b"/k%d" % i)
            until(lambda: server.stats().waiting == 1)
            store.set(f"k{i}", b"")
            assert peer.read(1) == b"\0"


def test_a_set_on_the_wire_ends_a_local_wait(store: HashStore, server: TCPStoreServer) -> None:
    with Peer(server) as peer:
        thread = threading.Thread(target=store.wait, args=(["late"], 20))
        thread.start()
        peer.ask(SET, text(b"/late"), text(b""))
        thread.join()
        assert store.check(["late"])


def test_another_process_ends_a_wait_on_the_wire(name: str) -> None:
    with ShmStore(name) as store, TCPStoreServer(store) as server, Peer(server) as peer:
        peer.wait(b"/there")
        until(lambda: server.stats().waiting == 1)
        code = f"from shmstore import ShmStore\nwith ShmStore({name!r}) as s: s.set('there', b'')"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        assert peer.read(1) == b"\0"


def test_two_servers_of_one_segment(store: HashStore, server: TCPStoreServer) -> None:
    """Each is told of what comes over the other, and of what comes locally."""
    with TCPStoreServer(store) as second, Peer(server) as one, Peer(second) as two:
        for i in range(30):
            key = b"/k%d" % i
            one.wait(key)
            two.wait(key)
            until(lambda: server.stats().waiting + second.stats().waiting == 2)
            if i % 3 == 0:
                store.set(key[1:], b"")
            else:
                with Peer(server if i % 3 == 1 else second) as setter:
                    setter.ask(SET, text(key), text(b""))
                    assert setter.get(key) == b""
            assert one.read(1) == two.read(1) == b"\0"


def test_local_verbs_do_not_see_raw_keys(store: HashStore, server: TCPStoreServer) -> None:
    with Peer(server) as peer:
        assert peer.add(b"init/", 1) == 1
        assert peer.add(b"/init/", 5) == 5
        assert store.list_keys() == ["init/"]
        assert store.get("init/") == b"5"


def test_many_wait_and_meet(store: HashStore, server: TCPStoreServer) -> None:
    peers = [Peer(server) for _ in range(200)]
    for i, peer in enumerate(peers):
        peer.wait(b"/go", b"/own/%d" % i)
    until(lambda: server.stats().waiting == len(peers))
    store.set("go", b"")
    for i in range(len(peers)):
        store.set(f"own/{i}", b"")
    assert [peer.read(1) for peer in peers] == [b"\0"] * len(peers)
    for peer in peers:
        peer.ask(BARRIER, text(b"/meet"), struct.pack("<q", len(peers) + 1))
    until(lambda: server.stats().waiting == len(peers))
    store.barrier("meet", len(peers) + 1, 20)
    assert [peer.read(1) for peer in peers] == [b"\0"] * len(peers)
    for peer in peers:
        peer.close()


def test_answers_that_go_out_together_are_each_their_own(store: HashStore, server: TCPStoreServer) -> None:
    """Of 150 who are answered at once some have broken off, and one has much unread: the others get what is theirs."""
    store.set("big", bytes(8 << 20))
    peers = [Peer(server) for _ in range(150)]
    with Peer(server) as deaf:
        deaf.ask(GET, text(b"/big"))
        deaf.wait(b"/go")
        for peer in peers:
            peer.wait(b"/go")
        until(lambda: server.stats().waiting == len(peers))  # not the deaf one: it is not served
        for peer in peers[::7]:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        store.set("go", b"")
        stay = [peer for i, peer in enumerate(peers) if i % 7]
        assert [peer.read(1) for peer in stay] == [b"\0"] * len(stay)
        before = server.stats().bytes_out
        for turn in range(1, 21):
            for i, peer in enumerate(stay):
                peer.ask(ADD, text(b"/n/%d" % i), struct.pack("<q", 1000 + i))
            for i, peer in enumerate(stay):
                assert struct.unpack("<q", peer.read(8)) == (turn * (1000 + i),)
        assert server.stats().bytes_out - before >= 20 * 8 * len(stay)
        assert len(deaf.read(8 + (8 << 20) + 1)) == (8 << 20) + 9
    for peer in stay:
        peer.close()


def test_requests_that_come_several_at_a_time(server: TCPStoreServer) -> None:
    # Cut anywhere, some longer than a read: such a peer's bytes are looked at first and taken after the answers.
    some = random.Random(20)
    with Peer(server) as peer:
        for i in range(150):
            said, expected = b"", b""
            for _ in range(some.randrange(1, 6)):
                value = some.randbytes(some.choice((1, 20, 20, 3000, 200_000)) if i % 10 == 0 else some.randrange(40))
                said += bytes([SET]) + text(b"/k") + text(value) + bytes([GET]) + text(b"/k")
                expected += text(value)
            while said:
                size = some.choice((1, 9, 30, 70, len(said)))
                peer.sock.sendall(said[:size])
                said = said[size:]
            assert peer.read(len(expected)) == expected
        peer.sock.sendall(bytes([SET]) + text(b"/k") + text(b"the last") + bytes([GET]) + text(b"/k"))
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.read(16) == text(b"the last")
        assert peer.sock.recv(1) == b""  # an end, and no reset


def test_a_peer_that_sends_without_end_is_held_up_and_costs_no_memory(server: TCPStoreServer) -> None:
    # Small requests without answers: read as fast as they come and served by turns they would pile up.
    said = (bytes([SET]) + text(b"/k") + text(b"v")) * 4000
    before = resident()
    with Peer(server) as peer, Peer(server) as other:
        for i in range(1000):
            peer.sock.sendall(said)
            if i % 100 == 0:
                assert other.add(b"/n", 1) == i // 100 + 1
                assert resident() - before < 16 << 20
        assert peer.get(b"/k") == b"v"
    assert server.stats().operations >= 1000 * 4000


def test_an_answer_acknowledges_what_it_answers(server: TCPStoreServer) -> None:
    # A SET and what follows it come in two packets: the kernel would acknowledge them before the answer is there.
    cycles = 300
    with Peer(server) as peer:
        for _ in range(cycles):
            peer.ask(SET, text(b"/k"), text(b"v"))
            assert peer.get(b"/k") == b"v"
        info = peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    segments, with_data = struct.unpack_from("I", info, SEGS_IN)[0], struct.unpack_from("I", info, DATA_SEGS_IN)[0]
    assert with_data >= cycles
    assert segments - with_data < cycles // 4, "packets without data"


# -- abuse ------------------------------------------------------------------------------------------------------------


def test_two_thousand_connects(server: TCPStoreServer) -> None:
    """Opened and broken off at every stage, none too fast; who stays is served."""
    address = (server.host, server.port)
    with Peer(server) as good:
        for i in range(2000):
            sock = socket.create_connection(address, timeout=20)
            if i % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall((HELLO + bytes([SET]) + text(b"/torn") + text(b"value"))[: i % 40])
            sock.close()
        assert good.add(b"/n", 1) == 1
        until(lambda: server.stats().open == 1)
        assert server.stats().connections == 2001
        assert good.get(b"/torn") in (b"", b"value")


@pytest.mark.parametrize(
    "rude",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 64,
        HELLO + b"\x13",
        HELLO + bytes([GET]) + struct.pack("<Q", 1 << 63),
        HELLO + bytes([WAIT]) + struct.pack("<Q", 1 << 40),
        HELLO + bytes([SET]) + text(b"/k") + struct.pack("<Q", (8 << 20) + 1),
        HELLO + bytes([GET]) + text(b""),
        HELLO + bytes([GET]) + text(b"x" * 8192),
        HELLO + bytes([SET]) + text(b"/k") + text(b"words") + bytes([ADD]) + text(b"/k") + bytes(8),
        HELLO + bytes([WAIT]) + bytes([1]) + bytes(7) + text(b"/a") + bytes([BARRIER]) + text(b"/b") + b"\2" + bytes(7),
    ],
)
def test_the_rude_are_disconnected_and_nobody_else(server: TCPStoreServer, rude: bytes) -> None:
    with Peer(server) as good, socket.create_connection((server.host, server.port), timeout=20) as sock:
        sock.sendall(rude)
        try:
            while sock.recv(4096):
                pass
        except ConnectionResetError:
            pass
        assert good.add(b"/n", 1) == 1
        until(lambda: server.stats().refused == 1 and server.stats().open == 1)


def test_a_peer_that_never_reads_costs_a_bounded_memory(store: HashStore, server: TCPStoreServer) -> None:
    store.set("big", bytes(1 << 20))
    with Peer(server) as deaf, Peer(server) as good:
        deaf.sock.setblocking(False)
        ask = (bytes([GET]) + text(b"/big")) * 1000
        try:
            for _ in range(1000):
                deaf.sock.send(ask)
        except BlockingIOError:
            pass
        before = server.stats().operations
        assert len(good.get(b"/big")) == 1 << 20
        assert server.stats().operations - before < 100
        assert server.stats().bytes_out < 64 << 20


# -- processes --------------------------------------------------------------------------------------------------------


def test_a_forked_child_has_no_server(store: HashStore, server: TCPStoreServer) -> None:
    with Peer(server) as peer:
        pid = os.fork()
        if pid == 0:
            ok = not server.stats().running
            server.close()
            store.set("from the child", b"x")
            os._exit(0 if ok else 1)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert peer.get(b"/from the child") == b"x"


def test_a_child_that_lives_on_holds_no_connection_open(store: HashStore) -> None:
    read, write = os.pipe()
    with TCPStoreServer(store) as server:
        peer = Peer(server)
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    assert peer.gone()
    with pytest.raises(OSError):
        socket.create_connection((server.host, server.port), timeout=5)
    os.close(write)
    os.waitpid(pid, 0)
    os.close(read)
    peer.close()


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise SystemError", "del server, store", "store.close()"])
def test_interpreter_exit_with_a_server_that_serves(end: str, name: str) -> None:
    code = f"""
import socket, sys
from shmstore import ShmStore
from shmstore.tcp.server import TCPStoreServer
store = ShmStore({name!r})
server = TCPStoreServer(store)
sock = socket.create_connection((server.host, server.port))
sock.sendall({HELLO!r} + bytes([{WAIT}, 1]) + bytes(7) + {text(b"/never")!r})
assert sock.recv(4)
while server.stats().waiting == 0: pass
print("ready", flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ready\n", done.stderr
    assert done.returncode == {"sys.exit(3)": 3, "raise SystemError": 1}.get(end, 0), done.stderr


def test_serve_until_a_signal(name: str) -> None:
    command = [sys.executable, "-m", "shmstore.cli", "serve", name, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proc:
        assert proc.stdout is not None
        first = proc.stdout.readline()
        assert first.startswith(f"serving {name} on 127.0.0.1:")
        with ShmStore(name, create=False) as store:
            store.set("k", b"v")
            with socket.create_connection(("127.0.0.1", int(first.rpartition(":")[2])), timeout=20) as sock:
                sock.sendall(HELLO + bytes([GET]) + text(b"/k"))
                got = b""
                while len(got) < 13:
                    got += sock.recv(100)
                assert got[4:] == text(b"v")
                proc.send_signal(signal.SIGTERM)
                assert sock.recv(1) == b""
            rest = proc.stdout.read()
        assert proc.wait(30) == 0
    assert rest.startswith("SIGTERM: answering")
    assert "served 1 connections, 3 operations, 21 bytes in, 13 bytes out; refused 0" in rest
