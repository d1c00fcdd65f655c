"""What processes of hosts do in the tests here; imported by the nursery, so it imports little."""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import signal
import socket
import struct
import termios
import threading
import time
from typing import Any

from cluster import Address, Rank

from shmstore import Barrier, HybridStore, ShmStore, TCPStore, elastic
from shmstore.tcp import connection
from shmstore.tcp import verbs as verbs_of_tcp


def who(me: Any) -> dict[str, Any]:
    me.ready()
    return {
        "pid": os.getpid(),
        "proc": os.readlink("/proc/self"),
        "name": socket.gethostname(),
        "shm": os.listdir("/dev/shm"),
        "others": [socket.gethostbyname(name) for name in ("node0", "node1", "node2")],
        "links": sorted(name for _, name in socket.if_nameindex()),
    }


def segment(me: Any, name: str, value: bytes) -> list[bytes]:
    """Holds a store of that name open; its values of all who wrote in it."""
    with ShmStore(name, timeout=20) as store:
        store.append("values", value + b" ")
        me.ready()
        return sorted(store.get("values").split())


# -- plain sockets ----------------------------------------------------------------------------------------------------


def listen(me: Any, host: str) -> None:
    """One connection; then does what it is told with it."""
    with socket.create_server((host, 0)) as server:
        me.say(server.getsockname())
        sock, _ = server.accept()
    obey(me, sock)


def connect(me: Any, address: Address) -> None:
    obey(me, socket.create_connection(address, timeout=20))


def how_it_ends(me: Any, address: Address) -> str:
    """Of a connection that says nothing; it may have ended before it is known to be there."""
    try:
        with socket.create_connection(address, timeout=20) as sock:
            return repr(sock.recv(1))
    except OSError as error:
        return type(error).__name__


def obey(me: Any, sock: socket.socket) -> None:
    """Until it is killed: "send" bytes, "recv" and "eof" within seconds, "shut" its direction."""
    sock.settimeout(20)
    me.say("connected")
    while True:
        verb, what = me.hear()
        if verb == "send":
            sock.sendall(what)
            me.say(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        elif verb == "shut":
            me.say(sock.shutdown(socket.SHUT_WR))
        elif not select.select([sock], [], [], what)[0]:
            me.say("silence")
        else:
            try:
                me.say(sock.recv(100))
            except ConnectionError as error:
                me.say(type(error).__name__)


def with_a_child(me: Any) -> None:
    """It and a child of its own, in a session of its own, which nobody told the test about."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.pause()
    me.say("both")
    signal.pause()


def echo(me: Any, host: str) -> None:
    """Sends back what comes, connection by connection, and ends each as the other does."""
    with socket.create_server((host, 0)) as server:
        me.say(server.getsockname())
        while True:
            sock, _ = server.accept()
            with sock:
                while data := sock.recv(1 << 18):
                    sock.sendall(data)


def stream(me: Any, address: Address, size: int, seed: bytes) -> tuple[bool, float]:
    """So many bytes there and back while more are on the way, and the end; whether they are the same, and how long."""
    rng = hashlib.shake_128(seed)
    data = memoryview(rng.digest(size))
    got = bytearray()
    start = time.monotonic()
    with socket.create_connection(address, timeout=20) as sock:
        sock.setblocking(False)
        at = 0
        while True:
            can_read, can_write, _ = select.select([sock], [sock] if at < size else [], [], 20)
            if can_write:
                at += sock.send(data[at : at + 50_000])
                if at == size:
                    sock.shutdown(socket.SHUT_WR)
            if can_read:
                piece = sock.recv(1 << 18)
                if not piece:
                    return bytes(got) == data, time.monotonic() - start
                got += piece


# -- stores -----------------------------------------------------------------------------------------------------------


def sets_and_gets(me: Any, address: Address, prefix: str, n: int) -> float:
    """n of each with our client, one after the other; the shortest time of a get."""
    with TCPStore(*address, timeout=20) as store:
        me.ready()
        spans = []
        for i in range(n):
            store.set(f"{prefix}{i}", b"x" * 10)
            start = time.monotonic()
            assert store.get(f"{prefix}{i}") == b"x" * 10
            spans.append(time.monotonic() - start)
        me.say("done")
        me.hear()
        return min(spans)


def sets_and_gets_of_torch(me: Any, address: Address, prefix: str, n: int) -> None:
    """The same with torch's client."""
    store = torch_client(address)
    me.ready()
    for i in range(n):
        store.set(f"{prefix}{i}", b"x" * 10)
        assert store.get(f"{prefix}{i}") == b"x" * 10
    me.say("done")
    me.hear()


def torch_client(address: Address) -> Any:
    from datetime import timedelta

    import torch.distributed as dist

    timeout = timedelta(seconds=20)
    return dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=timeout)


def either_client(me: Any, rank: Rank, address: Address) -> list[bytes]:
    """Rank 1 has torch's client, the other ours; each reads what all have set."""
    store = torch_client(address) if rank.number == 1 else TCPStore(*address, timeout=20)
    me.ready()
    store.set(f"from/{rank.number}", f"node{rank.node}")
    return [store.get(f"from/{i}") for i in range(rank.world)]


def verbs(me: Any, address: Address) -> None:
    """Calls on request; says what came of them."""
    with TCPStore(*address, timeout=20) as store:
        me.say("open")
        while True:
            verb, *args = me.hear()
            try:
                me.say(getattr(store, verb)(*args))
            except Exception as error:
                me.say(f"{type(error).__name__}: {error}")


def meet(me: Any, rank: Rank, address: Address, rounds: int) -> list[tuple[float, float]]:
    """When it came to each barrier and when it left it."""
    with TCPStore(*address, timeout=20) as store:
        me.ready()
        out = []
        for i in range(rounds):
            came = time.monotonic()
            elastic.barrier(store, rank.world, f"round/{i}", rank=rank.number)
            out.append((came, time.monotonic()))
        me.say("done")
        me.hear()
        return out


def meet_without_some(me: Any, rank: Rank, address: Address, lost: int) -> str:
    """The ranks of one node say that they are there, and never come."""
    with TCPStore(*address, timeout=20) as store:
        me.ready()
        if rank.node == lost:
            me.say("there")
            signal.pause()
        try:
            elastic.barrier(store, rank.world, "b", barrier_timeout=1, rank=rank.number, trace_timeout=0.5)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "passed"


def wait_with(me: Any, address: Address, options: tuple[tuple[int, int], ...]) -> tuple[str, float]:
    """Waits for what nobody sets, with these options of TCP instead of our client's; what ended it, and when.

    Beside that it answers each message, when all that it has sent has been acknowledged.
    """
    connection.KEEPALIVE = options  # type: ignore[misc]
    with TCPStore(*address, timeout=60) as store:
        me.say("open")
        me.hear()
        threading.Thread(target=say_when_acknowledged, args=(me, store), daemon=True).start()
        start = time.monotonic()
        try:
            store.wait(["never"])
        except Exception as error:
            return f"{type(error).__name__}: {error}", time.monotonic() - start
    return "passed", 0


def say_when_acknowledged(me: Any, store: TCPStore) -> None:
    me.hear()
    (line,) = store._pool._busy
    while struct.unpack("i", fcntl.ioctl(line._sock, termios.TIOCOUTQ, bytes(4)))[0]:
        time.sleep(0.001)  # the kernel tells nobody of an ACK
    me.say("acknowledged")


def stuck(me: Any) -> None:
    me.ready()
    in_here()


def in_here() -> None:
    signal.pause()


def fails(me: Any) -> None:
    raise ValueError("what it says")


# -- hybrid stores ----------------------------------------------------------------------------------------------------


def hybrid(rank: Rank, address: Address, timeout: float = 20.0) -> HybridStore:
    node = ShmStore("node", rank=rank.local, timeout=timeout)
    world = TCPStore(*address, timeout=timeout)
    return HybridStore(
        node,
        world,
        node_rank=rank.node,
        num_nodes=rank.nodes,
        local_rank=rank.local,
        local_world_size=rank.per_node,
    )


def together(me: Any, rank: Rank, address: Address, rounds: int) -> list[Any]:
    """All that the ranks of a HybridStore do together, in rounds; what came of the exchanges."""
    out: list[Any] = []
    with hybrid(rank, address) as store:
        barrier = Barrier(store, "b", rank.world, rank.number, timeout=20)
        me.ready()
        for i in range(rounds):
            barrier.wait()
            mine = f"{i}.{rank.number}"
            gathered = store.all_gather(f"gather/{i}", mine)
            src = i % rank.world
            given = store.broadcast(f"give/{i}", mine if rank.number == src else None, src)
            shared = elastic.synchronize(store, mine.encode(), rank.number, rank.world, f"sync/{i}", 20)
            store.barrier(f"done/{i}", rank.world)
            out.append((gathered, given, shared))
        me.say("done")
        me.hear()
    return out


def waits_at_will(me: Any, rank: Rank, address: Address, timeout: float) -> None:
    """Meets at one Barrier, resets it and says what came of it, as it is told; until it is killed.

    A server is given a second to answer in place of five.
    """
    connection.PATIENCE_NS = verbs_of_tcp.PATIENCE_NS = 1_000_000_000  # type: ignore[misc]
    with hybrid(rank, address) as store:
        barrier = Barrier(store, "b", rank.world, rank.number, timeout=timeout)
        me.ready()
        while True:
            verb = me.hear()
            me.say("coming")
            start = time.monotonic()
            try:
                said: Any = getattr(barrier, verb)()
                facts: dict[str, Any] = {}
            except Exception as error:
                said, facts = f"{type(error).__name__}: {error}", dict(vars(error))
            me.say((said, facts, time.monotonic() - start))
