"""The world's half of a meeting: what a node says to the store that reaches all nodes, in as few round trips as it can.

On a TCPStore of ours what belongs together goes in one write, and a wait looks around ten times a second without a word
on the wire; at a server of ours the decision goes with the wait, and is made there as soon as that is over. On any
other store each is a call of its own, and a wait goes in slices.
"""

# ruff: noqa: SLF001 -- TCPStore's own ways to ask are for just this
from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any, ClassVar, Final

from shmstore._foreign import ForeignStore
from shmstore.errors import StoreTimeoutError
from shmstore.prefix import PrefixStore
from shmstore.shm import ShmStore
from shmstore.store import Store
from shmstore.tcp.codec import Op, Signal
from shmstore.tcp.connection import Asked, patience_ns, ping
from shmstore.tcp.verbs import WireStore

__all__ = ["Told", "World", "unwatched", "world_of"]

Told = tuple[str, bytes, str | None]
"""A key to set, its value, and a key to delete."""

Seen = Callable[[bytes], bool]

Decision = tuple[str, str, str, Sequence[str]]
"""compare_set's key, what stands there and what shall; and keys whose values are wanted where it does then."""

Decided = tuple[bytes, list[bytes]]
"""What stands there, and the values."""


class World:
    """A store of any kind."""

    _slices: ClassVar[tuple[int, int]] = (100_000_000, 100_000_000)
    """The first slice of a wait, and the longest."""

    def __init__(self, store: Store, prefix_size: int) -> None:
        self.store: Final = store
        self.prefix_size: Final = prefix_size
        """By how many bytes a key is longer in the store below all prefixes."""

    def tell(self, told: Told, state: tuple[str, str] | None, seen: Seen) -> None:
        """Sets the one key, and deletes the other; before that it reads the state, where `state` says of which.

        In this order: who finds the key counts those who set it in, so they have to know that they were in time.
        """
        key, value, gone = told
        if state is not None:
            seen(self.store.compare_set(state[0], "", state[1]))
        self.store.set(key, value)
        if gone is not None:
            self.store.delete_key(gone)

    def say(self, told: Told) -> None:
        """`tell`, and returns when it is done."""
        self.tell(told, None, lambda _: False)

    def meet(
        self,
        told: Told | None,
        state: tuple[str, str],
        keys: Sequence[str],
        then: Decision,  # noqa: ARG002 -- for those that can
        deadline: int,
        seen: Seen,
        look: Callable[[], bool],
        size: int,  # noqa: ARG002 -- the same
    ) -> tuple[bool, Decided | None]:
        """Reads the state, tells, waits for the keys.

        Returns:
            Whether they came before the deadline; and what came of `then`, where it was done already.

        Args:
            told: as of `tell`, or nothing.
            state: the key of the state, and what to put there where it is missing.
            keys: what to wait for.
            then: what to decide when they have come; `decide` does it where this cannot.
            deadline: until when.
            seen: gets the state, before the wait; True: nothing more is to be done.
            look: called now and then; True: the same.
            size: about how many bytes come and go, of all nodes.
        """
        if seen(self.store.compare_set(state[0], "", state[1])):
            return False, None
        if told is not None:
            self.tell(told, None, seen)
        slice_ns = self._slices[0]
        while True:
            left = deadline - monotonic_ns()
            if left <= 0:
                return self.store.check(list(keys)), None
            if self._rest(keys, min(left, slice_ns)):
                return True, None
            if look():
                return False, None
            slice_ns = min(2 * slice_ns, self._slices[1])

    def _rest(self, keys: Sequence[str], ns: int) -> bool:
        """Waits for the keys for so long; False when they did not come."""
        try:
            self.store.wait(list(keys), ns / 1e9)
        except StoreTimeoutError:
            return False
        return True

    def decide(self, then: Decision, size: int) -> Decided:
        """Does it at once. size: as of `meet`."""
        key, old, new, wanted = then
        now = self.store.compare_set(key, old, new)
        return now, self.values(wanted, size) if wanted and now == new.encode() else []

    def values(self, keys: Sequence[str], size: int) -> list[bytes]:
        """Of keys that are there. size: as of `meet`."""
        return self.store.multi_get(list(keys), patience_ns(size) / 1e9)

    def there(self, keys: Sequence[str]) -> list[bool]:
        """Of each key whether it is there."""
        return [self.store.check([key]) for key in keys]

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of keys; None for those that are not there."""
        return [self.store._peek(key) for key in keys]


class ForeignWorld(World):
    """An object with c10d's verbs.

    Its slices are long, as torch's TCPStore writes two lines to stderr for each that ends in vain.
    """

    _slices: ClassVar[tuple[int, int]] = (1_000_000_000, 1_000_000_000)

    def __init__(self, store: ForeignStore) -> None:
        super().__init__(store, 0)
        self._foreign: Final = store

    def _rest(self, keys: Sequence[str], ns: int) -> bool:
        return self._foreign._rest("wait", [key.encode("utf-8", "surrogateescape") for key in keys], ns)


class WireWorld(World):
    """A TCPStore of ours."""

    def __init__(self, store: Store, wire: WireStore, before: bytes) -> None:
        super().__init__(store, len(before))
        self._wire: Final = wire
        self._before: Final = b"/" + before

    def _key(self, key: str) -> bytes:
        return self._before + key.encode("utf-8", "surrogateescape")

    def _asked(self, told: Told | None) -> list[Asked]:
        if told is None:
            return []
        key, value, gone = told
        asked: list[Asked] = [(Op.SET, (self._key(key), value))]
        return asked if gone is None else [*asked, (Op.DELETE_KEY, (self._key(gone),))]

    def _state(self, state: tuple[str, str]) -> Asked:
        return Op.COMPARE_SET, (self._key(state[0]), b"", state[1].encode())

    def tell(self, told: Told, state: tuple[str, str] | None, seen: Seen) -> None:
        doing, asked = f"set({told[0]!r})", self._asked(told)
        if state is None:
            self._wire._post(doing, asked)  # if it gets lost, the leader says it again
        else:
            seen(bytes(self._wire._ask(doing, [self._state(state), *asked], patience_ns(len(told[1])))[0]))

    def say(self, told: Told) -> None:
        self._wire._ask(f"set({told[0]!r})", [*self._asked(told), ping()], patience_ns(len(told[1])))

    def meet(
        self,
        told: Told | None,
        state: tuple[str, str],
        keys: Sequence[str],
        then: Decision,
        deadline: int,
        seen: Seen,
        look: Callable[[], bool],
        size: int,
    ) -> tuple[bool, Decided | None]:
        first = [self._state(state), *self._asked(told)]
        raws = [self._key(key)[1:] for key in keys]

        def answered(answers: list[Any]) -> bool:
            return seen(bytes(answers[0]))

        doing, asked = f"wait at {state[0]!r}", self._decision(then)
        hoped = [] if then[3] else [then[2].encode()]  # what values there will be nobody knows
        met, answers = self._wire._ask_and_await(doing, first, raws, asked, deadline, answered, look, hoped, size)
        return met, None if answers is None else self._decided(answers)

    def _decision(self, then: Decision) -> list[Asked]:
        key, old, new, wanted = then
        asked: list[Asked] = [(Op.COMPARE_SET, (self._key(key), old.encode(), new.encode()))]
        if wanted:
            asked.append((Op.MULTI_GET, ([self._key(one) for one in wanted],)))
        return asked

    def _decided(self, answers: Sequence[Any]) -> Decided:
        now, *values = answers
        return bytes(now), [bytes(value) for value in values[0]] if values else []

    def decide(self, then: Decision, size: int) -> Decided:
        doing = f"compare_set({then[0]!r})"
        return self._decided(self._wire._ask(doing, self._decision(then), patience_ns(size)))

    def there(self, keys: Sequence[str]) -> list[bool]:
        asked: list[Asked] = [(Op.CHECK, ([self._key(key)],)) for key in keys]
        return [answer == Signal.READY for answer in self._wire._ask("check", asked)] if asked else []


def world_of(store: Store) -> World:
    """The store as a meeting uses it, on a handle of its own."""
    made = unwatched(store)  # a death there is for the meeting to judge
    before, below = b"", made
    while isinstance(below, PrefixStore):
        before, below = below._before_raw + before, below.underlying_store
    if isinstance(made, ForeignStore):
        return ForeignWorld(made)
    if not isinstance(below, WireStore):
        return World(made, len(before))
    below.set_timeout(0)  # who does not answer is given 5 s
    return WireWorld(made, below, before)


def unwatched(node: Store) -> Store:
    """A handle whose waits end at no death: it is the meeting that says what a death means."""
    made = node.clone()
    below: Any = made
    while hasattr(below, "underlying_store"):
        below = below.underlying_store
    if isinstance(below, ShmStore):
        below._watch = False  # a handle of our own
    return made
