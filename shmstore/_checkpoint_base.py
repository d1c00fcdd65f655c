"""What the barriers of checkpoints have in common, whatever they stand on: the call, the end, a port, a word.

Apart from `checkpoint`, which is what users see, so that each barrier's file can stand between the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["MENDED_BY", "Barrier", "Closing", "port_number"]

MENDED_BY: Final = "the next call of each meets again"
"""What ends a break of a checkpoint barrier, for its text."""

PORT_DIGITS: Final = 5


class Barrier(ABC):
    """What a checkpoint writer calls, on every rank, when its part is written."""

    @abstractmethod
    def execute_barrier(self) -> None:
        """Returns when all ranks have called it as often as this one; blocks meanwhile."""


class Closing(ABC):
    """What a barrier with a store of its own is besides: a context manager that closes it."""

    @abstractmethod
    def close(self) -> None:
        """Leaves, and closes the store. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def port_number(given: int | str) -> int:
    """The port of a `tcpstore_port`. TypeError, ValueError: it is none."""
    if isinstance(given, str):
        if not (given.isascii() and given.isdigit() and len(given) <= PORT_DIGITS):
            raise ValueError(f"tcpstore_port as a str is 1 to {PORT_DIGITS} ASCII digits, got {given[:20]!r}")
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"tcpstore_port must be an int or its digits, not {type(given).__name__}")
    if not 0 <= given < 1 << 16:
        raise ValueError(f"tcpstore_port must be 0 to 65535, got {given}")
    return given
