"""A process that holds its GIL serves C++ clients all the same."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from harness import Me, Team
from kinds import torchs, warm_torch

from shmstore import ShmStore, TCPStoreServer

dist: Any = torchs("torch.distributed", "the client is torch's")


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    warm_torch()


def _holds_its_gil(me: Me, name: str, fifo: str) -> int:
    """Serves, and gives the GIL away to nobody until the test writes a byte; how often another thread ran meanwhile."""
    sys.setswitchinterval(1000)
    ran = 0

    def run() -> None:
        nonlocal ran
        while True:
            ran += 1
            time.sleep(0.0001)

    with ShmStore(name) as store, TCPStoreServer(store) as server:
        threading.Thread(target=run, daemon=True).start()
        me.say(server.port)
        until = os.open(fifo, os.O_RDONLY)
        before = ran
        ctypes.PyDLL(None).read(until, ctypes.create_string_buffer(1), ctypes.c_size_t(1))  # PyDLL: with the GIL
        after = ran
        os.close(until)
        return after - before


def test_cpp_clients_are_served_by_a_process_that_holds_its_gil(name: str, team: Team, tmp_path: Path) -> None:
    fifo = str(tmp_path / "let go")
    os.mkfifo(fifo)
    with ShmStore(name) as local:
        holder = team.start(_holds_its_gil, name, fifo)
        port = holder.hear()
        let_go = os.open(fifo, os.O_WRONLY)  # opens when the other end does, which is the last that it does before
        clients = [dist.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=20)) for _ in range(3)]
        for i in range(500):
            clients[0].set(f"k{i}", str(i))
            assert clients[1].get(f"k{i}") == b"%d" % i
            assert clients[2].add("n", 1) == i + 1
        threading.Timer(0.1, lambda: local.set("local", "1")).start()
        clients[0].wait(["local"], timedelta(seconds=20))  # the bell, too
        os.write(let_go, b"x")
        os.close(let_go)
        assert holder.result() == 0
