"""All ranks of a world meet at a segment, once for each group that they begin.

A name serves for one group after the other, so each meeting is a round, whose group has keys of its own. In a world of
W ranks:

    shm/W/meeting    [number of the next round, who waits for it, who was in the last]; changed by compare_set only
    shm/W/go/N       round N is formed: set by who formed it, deleted by who formed the one after it
    shm/W/N/…        the group's own keys, in round N

A call is a token. It puts itself down under its rank, in the place of an earlier call of that rank. The one with which
all have come looks whether each rank is alive, strikes out the dead, and if none was, forms the round: by one
compare_set, so that a call is in it or not. Who gives up strikes itself out. So a round has only calls that were
waiting when it was formed; a rank that was killed before that, or gave up and comes again, or is started again, costs
the others nothing but time.

    killed before its compare_set      nothing has happened
    killed while it waits              struck out by the last one to come, or replaced by its successor
    killed when it had formed a round  those in it see that at their next look, after a second, though nobody rang; or
                                       the `go` of the round before stays: a key that nobody looks at again
    killed after that                  the group's start fails for all, who learn who died from the store

Who gives up looks at what its strike-out found: where the round was formed before that, it is in. A call whose rank has
made another one since is in no round any more, and says so.

A call waits for the `go` of the round whose number stood there when it was put down: none but that can be its round. Of
a round that it was in nothing is lost before it looks: the next one needs a call of its rank.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from time import monotonic_ns
from typing import Final, NamedTuple

from shmstore._deadline import deadline_after, seconds
from shmstore.errors import StoreError, StoreTimeoutError
from shmstore.shm import ShmStore

__all__ = ["meet"]

SLICE_NS: Final = 1_000_000_000
"""Who waits looks after so long whether the round was formed by one that was killed before it could ring."""
_calls: Final = count()


class _State(NamedTuple):
    """What stands in the key.

    Attributes:
        next: the number of the next round.
        come: who waits for it, the token of the last call by rank.
        formed: the tokens of the round before.
    """

    next: int
    come: dict[str, str]
    formed: list[str]

    def with_call(self, rank: int, token: str, world_size: int, store: ShmStore) -> _State:
        """One more call; the round, where all have come with it and live."""
        come = {**self.come, str(rank): token}
        if len(come) == world_size:
            live = {(str(peer.rank), str(peer.pid)) for peer in store.peers() if peer.state == "live"}
            come = {one: call for one, call in come.items() if (one, call.partition(".")[0]) in live}
        if len(come) < world_size:
            return self._replace(come=come)
        return _State(self.next + 1, {}, list(come.values()))

    def without(self, rank: int, token: str) -> _State:
        return self._replace(come={one: call for one, call in self.come.items() if (one, call) != (str(rank), token)})


def meet(store: ShmStore, rank: int, world_size: int, wait_ns: int) -> int:
    """Waits until all ranks have come, at most `wait_ns`; the number of the round.

    Raises:
        StoreTimeoutError: not all came in time; says who is missing. StoreError: the keys are somebody else's.
    """
    base = f"shm/{world_size}"
    deadline = deadline_after(wait_ns)
    token = f"{os.getpid()}.{next(_calls)}.{monotonic_ns()}"
    try:
        state = _change(store, base, lambda old: old.with_call(rank, token, world_size, store))
        number = state.next
        if token in state.formed:
            store.set(f"{base}/go/{number - 1}", b"")
            store.delete_key(f"{base}/go/{number - 2}")
            return number - 1
        while True:
            left_ns = max(deadline - monotonic_ns(), 0)
            rang = False
            with suppress(StoreTimeoutError):
                store.wait([f"{base}/go/{number}"], min(left_ns, SLICE_NS) / 1e9)
                rang = True
            state = _parsed(store, base, store.compare_set(f"{base}/meeting", b"", b""))
            if token in state.come.values() and left_ns == 0:  # it gives up; unless the round was formed meanwhile
                state = _change(store, base, lambda old: old.without(rank, token))
                if token not in state.formed:
                    came = {str(rank), *state.come}
                    missing = [one for one in range(world_size) if str(one) not in came]
                    raise StoreTimeoutError(
                        f"Wait timeout: {store!r}: {len(came)} of {world_size} ranks came to init_process_group "
                        f"within {seconds(wait_ns):.3f} s; missing: {', '.join(map(str, missing)) or 'none alive'}",
                        elapsed=seconds(wait_ns),
                        timeout=seconds(wait_ns),
                    )
            if token in state.formed:
                return number
            if token not in state.come.values():
                raise StoreError(
                    f"{store!r}: rank {rank} has begun another group of {world_size} meanwhile, which took the place "
                    "of this call: a rank begins one after the other"
                )
            if rang:
                raise StoreError(f"{store!r}: the key {base}/go/{number} is in use for something else")
    except BaseException:
        with suppress(StoreError):
            _change(store, base, lambda old: old.without(rank, token))
        raise


def _change(store: ShmStore, base: str, edit: Callable[[_State], _State]) -> _State:
    """Changes what stands in the key, whoever else does meanwhile; what stands there then."""
    there = b""  # the same as no key
    while True:
        new = edit(_parsed(store, base, there))
        text = json.dumps(new).encode()
        before, there = there, store.compare_set(f"{base}/meeting", there, text)
        if there == text:
            return new
        if there == before:  # c10d's answer where the key is gone
            raise StoreError(f"{store!r}: the key {base}/meeting was removed by others")


def _parsed(store: ShmStore, base: str, raw: bytes) -> _State:
    if not raw:
        return _State(0, {}, [])
    try:
        number, come, formed = json.loads(raw)
        whole = type(come) is dict and type(formed) is list and type(number) is int and 0 <= number < 1 << 63
        if whole and all(type(call) is str for call in (*come, *come.values(), *formed)):
            return _State(number, come, formed)
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise StoreError(f"{store!r}: the key {base}/meeting is in use for something else: {raw[:80]!r}")
