"""Stores as others would bring them: `--store bench_stores:...`. Imported by the session's process."""

from __future__ import annotations

import os
import signal

import shmstore


class Plain:
    """A dict of this process, and no `add`."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self.set = self._values.__setitem__
        self.get = self._values.__getitem__

    def check(self, keys):
        return all(key in self._values for key in keys)


class Deadly(Plain):
    """Takes its process with it at the first `get`."""

    def __init__(self) -> None:
        super().__init__()
        self.get = lambda key: os.kill(os.getpid(), signal.SIGKILL)


def shared(name: str, world_size: int, *, rank: int | None):
    """Is told everything, and can be shared."""
    return shmstore.ShmStore(f"{name}-given", rank=rank, world_size=world_size)
