"""Somebody closes all descriptors of a process, as a daemoniser does, and what it opens next has their numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inside
import pytest
from harness import Team

from shmstore import ShmStore, StoreClosedError
from shmstore._holds import attached

LARGE = b"x" * 200_000  # the file grows for it


def daemonise(me: Any, innocent: str | None = None) -> list[int]:
    """Closes all but the line to the test, and opens a file of somebody else's as often as there are numbers."""
    kept = me._conn.fileno()
    os.closerange(3, kept)
    os.closerange(kept + 1, 1000)
    return [os.open(innocent, os.O_RDWR) for _ in range(8)] if innocent else []


def opens(name: str) -> list[str]:
    """The numbers of this process's descriptors of the segment."""
    links = {fd: Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")}
    return sorted(fd for fd, link in links.items() if link.is_symlink() and str(link.readlink()).endswith(name))


def lost(verb: Callable[[], object]) -> None:
    with pytest.raises(StoreClosedError, match=r"closed by somebody else .* open it after that"):
        verb()


def grow_without(me: Any, name: str, innocent: str | None) -> None:
    store = ShmStore(name, timeout=20)
    store.set("a", b"1")
    fds = daemonise(me, innocent)
    lost(lambda: store.set("large", LARGE))
    lost(lambda: store.get("a"))
    store.close()
    assert all(os.fstat(fd).st_size == 1 for fd in fds)  # open, too
    with ShmStore(name, timeout=20) as again:
        again.set("again", LARGE)
        assert inside.verify(again) == []


@pytest.mark.parametrize("reused", [True, False], ids=["reused", "closed"])
def test_a_process_without_its_descriptors_harms_nobody(name: str, team: Team, tmp_path: Path, reused: bool) -> None:
    innocent = tmp_path / "innocent"
    innocent.write_bytes(b"x")
    with ShmStore(name, capacity=4 << 20, timeout=20) as store:
        store.set("kept", b"here")
        team.start(grow_without, name, str(innocent) if reused else None).result()
        assert innocent.read_bytes() == b"x"
        assert store.get("kept", 0) == b"here"
        assert store.get("again", 0) == LARGE
        store.set("large", LARGE)
        assert inside.verify(store) == []


def test_a_forked_daemon_opens_the_store_itself(name: str, team: Team) -> None:
    """It is told so at its first call, small as that is; its parent has lost nothing."""
    with ShmStore(name, timeout=20) as store:

        def daemon(me: Any) -> None:
            daemonise(me)
            lost(lambda: store.set("a", b"1"))
            store.close()
            with ShmStore(name, create=False, timeout=20) as own:
                own.set("large", LARGE)

        team.start(daemon, how="fork").result()
        assert store.get("large", 0) == LARGE
        assert [peer.state for peer in store.peers() if peer.pid == os.getpid()] == ["live"]
        assert inside.verify(store) == []


def close_the_old(me: Any, name: str) -> None:
    """When its numbers have become the new handle's."""
    daemonise(me)
    old = ShmStore(name, timeout=20)
    old.set("a", b"1")
    was = opens(name)
    daemonise(me)
    attached.clear()  # else the process would share its attachment, lost as it is
    new = ShmStore(name, timeout=20)
    assert opens(name) == was
    old.close()
    assert opens(name) == was
    new.set("large", LARGE)
    assert [peer.state for peer in new.peers() if peer.pid == os.getpid()].count("live") == 1
    new.close()


def test_the_old_handle_leaves_the_new_ones_descriptors_alone(name: str, team: Team) -> None:
    with ShmStore(name, timeout=20) as store:
        team.start(close_the_old, name).result()
        assert store.get("large", 0) == LARGE
        assert inside.verify(store) == []
