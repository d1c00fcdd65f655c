"""torchrun --rdzv-backend=shm: the entry point, which torch loads by itself, whatever backend it is asked for.

An entry point of the group torchrun.handlers, named shm. Torch calls `handler` while it is itself being imported, so it
only hands out the function that makes a rendezvous; that function imports the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["handler"]


def handler() -> Callable[[Any], Any]:
    """What torch registers under the name shm: a function of RendezvousParameters that makes a RendezvousHandler."""
    return _create


def _create(parameters: Any) -> Any:
    from shmstore.torch.agents import create_handler  # not before torch is whole

    return create_handler(parameters)
