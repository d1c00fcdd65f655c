"""Torch's exceptions that are ours too: what a C10dStore raises, code written for either catches.

    ours                  torch's              text
    StoreTimeoutError     DistStoreError       has "Wait timeout" in it, which torch's users look for
    BarrierTimeoutError   DistStoreError       the same
    PeerDiedError         DistStoreError       names rank and pid
    QueueEmptyError       QueueEmptyError
    StoreConnectionError  DistNetworkError
    any other DistStoreError                   DistStoreError

The rest of ours (full, closed, an invalid segment) are RuntimeErrors, as they are in torch, and pass as they are; so do
TypeError and ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final, TypeVar

import torch.distributed as dist

from shmstore import errors

__all__ = ["as_torchs", "inside"]

F = TypeVar("F", bound=Callable[..., Any])


class C10dStoreError(errors.DistStoreError, dist.DistStoreError):
    """A store could not do what was asked."""


class C10dTimeoutError(errors.StoreTimeoutError, dist.DistStoreError):
    """A wait outlasted its timeout."""


class C10dBarrierTimeoutError(errors.BarrierTimeoutError, dist.DistStoreError):
    """Not everybody came to a barrier in time."""


class C10dPeerDiedError(errors.PeerDiedError, dist.DistStoreError):
    """A rank died while it was waited for."""


class C10dQueueEmptyError(errors.QueueEmptyError, dist.QueueEmptyError):
    """A pop that does not wait found no item."""


class C10dConnectionError(errors.StoreConnectionError, dist.DistNetworkError):
    """The connection to a store on the wire was refused, lost or broken off."""


# The first that an error is an instance of is what it becomes: the narrow ones first.
_BECOMES: Final[tuple[tuple[type[errors.DistStoreError], type[errors.DistStoreError]], ...]] = (
    (errors.BarrierTimeoutError, C10dBarrierTimeoutError),
    (errors.StoreTimeoutError, C10dTimeoutError),
    (errors.PeerDiedError, C10dPeerDiedError),
    (errors.QueueEmptyError, C10dQueueEmptyError),
    (errors.StoreConnectionError, C10dConnectionError),
    (errors.DistStoreError, C10dStoreError),
)
_WAIT_TIMEOUT: Final = "Wait timeout"
inside: Final[set[object]] = set()
"""The calls that threads are in."""


def as_torchs(verb: F) -> F:
    """The verb, with its errors as torch's; the original is the cause of each."""

    @wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        call_of_this = object()
        inside.add(call_of_this)
        try:
            return verb(*args, **kwargs)
        except errors.DistStoreError as error:
            text = str(error)
            if isinstance(error, errors.StoreTimeoutError) and _WAIT_TIMEOUT not in text:
                text = f"{_WAIT_TIMEOUT}: {text}"
            made = next(kind for ours, kind in _BECOMES if isinstance(error, ours))(text)
            made.__dict__.update(vars(error))
            raise made from error
        finally:
            inside.discard(call_of_this)

    return call  # type: ignore[return-value]
