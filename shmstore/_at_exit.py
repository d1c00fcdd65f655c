"""What is to be closed before what it stands on ends: at the end of a process, multiprocessing's forked ones too.

Servers end at priority -50 and segments are left at -100; in forked children, which begin without finalizers, at 100.
"""

from __future__ import annotations

import multiprocessing.util
import weakref
from contextlib import ExitStack
from typing import Final, Protocol

__all__ = ["close_at_exit"]


class Closes(Protocol):
    """What can be closed, more than once."""

    def close(self) -> None:
        """Closes it."""


_live: Final[weakref.WeakSet[Closes]] = weakref.WeakSet()


def close_at_exit(one: Closes) -> None:
    """Closes it at the end, unless it is gone by then."""
    _live.add(one)


def _close_all() -> None:
    with ExitStack() as stack:  # what one of them raises keeps no other open
        for one in list(_live):
            stack.callback(one.close)


def _in_multiprocessing_child(_: object) -> None:
    multiprocessing.util.Finalize(None, _close_all, exitpriority=110)


multiprocessing.util.Finalize(None, _close_all, exitpriority=-40)
multiprocessing.util.register_after_fork(_live, _in_multiprocessing_child)
