"""Barrier: a reusable meeting point of the processes and threads that share a store.

    barrier = shmstore.Barrier(store, "step", parties=8, rank=rank)
    for batch in batches:
        work(batch)
        barrier.wait()

The interface is threading.Barrier's; beyond it, a barrier names who is missing and says who broke it. One class is
all that users see. What it stands on depends on the store: `Barrier(...)` makes an object of the first kind, among its
registered subclasses, that takes the store.

    kind            file                   takes
    SegmentBarrier  _barrier_segment.py    stores whose keys lie in a segment of shared memory of this host
    HybridBarrier   _barrier_hybrid.py     a HybridStore, for all of its ranks: messages per node, not per rank
    KeyBarrier      _barrier_keys.py       every other store, and objects with c10d's verbs, torch's stores among them

What is the same for all kinds stands here: arguments, the reset rule, what an interrupt does, and the errors, whose
words are in _barrier_words.py.

The life of a barrier is a row of epochs, 0, 1, 2, …, of which one is the current one:

    open    parties arrive -> all are there: the next epoch, and all of them pass
            a timeout, abort(), a needed party that died or left, an interrupt -> broken
            reset() -> the next epoch, and those who wait fail
    broken  for all who are in it and all who come -> reset(): the next epoch

No arrival is ever taken back, so who gives up breaks the epoch for all: that is threading.Barrier's rule too.
"""

from __future__ import annotations

from datetime import timedelta
from threading import get_ident
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, ClassVar, Final

from shmstore._barrier_words import NAMED_MAX, Break, Missing, named, peer_text, span_text
from shmstore._deadline import DEFAULT, FOREVER, Timeout, as_timedelta, seconds, span_ns
from shmstore._keys import Key, check_int, key_bytes, key_text
from shmstore.errors import BrokenBarrierError, PeerAtBarrierDiedError, TimedOutBarrierError
from shmstore.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

__all__ = ["Barrier"]

PARTIES_MAX: Final = 4096


class Attempt:
    """One call of wait(): since when, until when, in which epoch it arrives, and which is the only one it is for."""

    __slots__ = ("deadline", "epoch", "only", "span", "start")

    def __init__(self, span: int) -> None:
        self.span = span
        self.start = monotonic_ns()
        self.deadline = min(self.start + span, FOREVER)
        self.epoch: int | None = None
        self.only: int | None = None

    def elapsed(self) -> float:
        """Seconds since the call began."""
        return (monotonic_ns() - self.start) / 1e9

    def left_ns(self) -> int:
        """Nanoseconds until the deadline, 0 when it is over; FOREVER for none."""
        return FOREVER if self.deadline == FOREVER else max(self.deadline - monotonic_ns(), 0)


class Barrier:
    """A barrier for `parties` processes or threads, to be used again and again; threading.Barrier over a store.

    Args:
        store: any store of ours, or an object with c10d's set, get, add, wait and check (torch's stores). The barrier
            lives as long as the store, and belongs to all handles that name the same key in it.
        key: str (UTF-8) or bytes, 1 to 8191 bytes and a little less on some stores; the barrier's name. On a store in
            shared memory the name is the barrier's alone; on others it begins the names of a few keys.
        parties: how many meet, 1 to 4096; the same for all.
        rank: this party, 0 to parties - 1; given by all or by none. With ranks an error names who is missing, and a
            rank that arrives twice in an epoch (a restart, a second thread) joins its own arrival. Without, the missing
            are counted.
        timeout: of `wait` where that is given none; a timedelta or seconds; None: the store's own at each call.

    All methods may be called from any thread. A pickled barrier opens the same one, where the store can be pickled.

    Raises:
        TypeError: a wrong type, or the store lacks the verbs. ValueError: a value out of range, or the barrier of that
            name was made for another number of parties, or with ranks and this one without. The store's errors.
    """

    _kinds: ClassVar[list[type[Barrier]]] = []
    _mended_by: str = "broken until reset()"
    """How those who were told of a break meet again, for its text; a barrier that stands on this one sets its own."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "_takes" in cls.__dict__:
            Barrier._kinds.append(cls)
        elif len(cls.__mro__) > 1 and cls.__mro__[1] is Barrier:
            raise TypeError(
                f"{cls.__name__}: Barrier(...) makes an object of the kind that the store takes, so a subclass of "
                "Barrier would be none of them; let your class hold a Barrier"
            )

    def __new__(  # noqa: D102 -- the class says it
        cls,
        store: Any,
        key: Key,
        parties: int,
        rank: int | None = None,
        timeout: Timeout | None = None,  # noqa: ARG004 -- what __init__ takes
    ) -> Self:
        if cls is not Barrier:
            return object.__new__(cls)
        raw = key_bytes(key)
        for kind in cls._kinds:
            if kind._takes(store, raw, parties, rank):  # noqa: SLF001 -- a subclass
                return object.__new__(kind)  # type: ignore[return-value]  # a kind is a Barrier, and Self is Barrier
        raise TypeError(f"no kind of barrier takes a {type(store).__name__}: it needs set, get, add, wait and check")

    def __init__(
        self, store: Any, key: Key, parties: int, rank: int | None = None, timeout: Timeout | None = None
    ) -> None:
        self._raw: Final = key_bytes(key)
        check_party(parties, rank)
        self._store: Final = store
        self._parties: Final = parties
        self._rank: Final = rank
        self._span: Final = None if timeout is None else span_ns(timeout)
        self._timeout: Final = None if timeout is None else as_timedelta(timeout)
        self._told: Final[dict[int, int]] = {}
        """The epoch that was broken, for each thread that was told so and has not come back: see `reset`."""
        self._setup()

    # -- what users call ----------------------------------------------------------------------------------------------

    def wait(self, timeout: Timeout | None = None) -> int:
        """Arrives, and returns when all parties have arrived; blocks meanwhile.

        Args:
            timeout: a timedelta or seconds; None is the barrier's own, and where that is None too, the store's. 0 fails
                at once if others are missing; `inf` waits for ever. Who times out breaks the barrier for all, as with
                threading.Barrier.

        Returns:
            A number, 0 to parties - 1, different for each party that passes: in shared memory the order of arrival, for
            more than 32 parties with ranks within each 32 of them; elsewhere, with ranks, the rank. A second thread of
            a rank shares it.

        Raises:
            BarrierTimeoutError: not all came in time: also a BrokenBarrierError. With ranks it names the missing.
            PeerDiedError: a party that is needed died: also a BrokenBarrierError. Its rank is the one at this barrier.
                Only stores that notice deaths.
            BrokenBarrierError: another party timed out, aborted, was interrupted or left, or the barrier was reset
                meanwhile; the text says which. Or it is broken since before: nothing has happened then.
            TypeError, ValueError: not a timeout; nothing has happened.

        An exception out of a signal handler (Ctrl-C) ends the wait at once on a store of ours; torch's stores let it
        through at the end of a slice, after 1 to 10 s. It breaks the barrier for the others.
        """
        return self._run(Attempt(self._limit(timeout)))

    def abort(self) -> None:
        """Breaks the barrier: all who wait and all who come get BrokenBarrierError, until reset(). Does not block.

        A barrier that is broken stays broken as it was.

        Raises:
            The store's errors.
        """
        epoch = self._break(None, Break("abort", self._rank))
        if epoch is None:
            now, cause = self._now()
            epoch = now if cause is not None else now - 1  # another party has reset it meanwhile
        self._tell(epoch)

    def reset(self) -> None:
        """Moves on to a new epoch, in which the barrier is whole. Those who wait now get BrokenBarrierError.

        All who were told that the barrier is broken, or broke it, may call it, each once, and meet again: a call does
        nothing if, since its thread was told, another has already moved on. A thread that was not told calls for one
        that was, on the same handle. Any further call acts. Does not block.

        Raises:
            The store's errors.
        """
        told = self._told.pop(get_ident(), None)
        if told is None and self._told:
            told = self._told_others()
        self._reset(told)

    def _told_others(self) -> int | None:
        """The epoch that other threads of this handle were told of, if it is the current one or the one before it."""
        now = self._now()[0]
        fresh = None
        for thread, epoch in list(self._told.items()):
            if epoch < now - 1:
                self._told.pop(thread, None)  # of a break that is long over; maybe of a thread, too
            else:
                fresh = thread
        return None if fresh is None else self._told.pop(fresh, None)

    @property
    def key(self) -> str:
        """The barrier's name; bytes that are not UTF-8 are surrogate-escaped."""
        return key_text(self._raw)

    @property
    def parties(self) -> int:
        """How many have to arrive."""
        return self._parties

    @property
    def rank(self) -> int | None:
        """Which party this handle is, or None."""
        return self._rank

    @property
    def timeout(self) -> timedelta | None:
        """How long `wait` waits when it is given no timeout; None: the store's own."""
        return self._timeout

    @property
    def epoch(self) -> int:
        """How often this barrier was passed or reset: the number of the current epoch, from 0."""
        return self._now()[0]

    @property
    def broken(self) -> bool:
        """True from a timeout, abort(), death or interrupt on, until reset()."""
        return self._now()[1] is not None

    @property
    def n_waiting(self) -> int:
        """How many have arrived in the current epoch; 0 when it is broken. Others may arrive at any time."""
        return self._waiting()

    def __repr__(self) -> str:
        rank = "" if self._rank is None else f", rank={self._rank}"
        return f"Barrier({self._store!r}, {self.key!r}, {self._parties}{rank})"

    def __reduce__(self) -> tuple[type[Barrier], tuple[Any, bytes, int, int | None, timedelta | None]]:
        return type(self), (self._store, self._raw, self._parties, self._rank, self._timeout)

    # -- what a kind fills in -----------------------------------------------------------------------------------------
    # A kind may also replace `wait` as a whole; it then does what the one above does, by the helpers below.

    def _wait_in(self, epoch: int, timeout: Timeout | None) -> int:
        """`wait`, in that epoch or not at all: BrokenBarrierError where another one is the current one.

        A kind that can arrives only if the epoch is still the current one; this here looks first and arrives then.
        """
        now = self._now()[0]
        if now != epoch:
            raise self._not_current(epoch, now)
        return self.wait(timeout)

    @classmethod
    def _takes(cls, store: Any, raw: bytes, parties: int, rank: int | None) -> bool:
        """Whether `Barrier(...)` makes one of this kind. Exactly one kind takes a store; defining this registers."""
        raise NotImplementedError

    def _setup(self) -> None:
        """Called once, when the arguments have been checked and stand in the attributes."""

    def _wait(self, attempt: Attempt) -> int:
        """`wait`. Sets attempt.epoch before its first store that others could see, and before each epoch after.

        Where attempt.only is an epoch, it is for that one only: see `_wait_in`.
        """
        raise NotImplementedError

    def _now(self) -> tuple[int, Break | None]:
        """The current epoch, and why it is broken."""
        raise NotImplementedError

    def _waiting(self) -> int:
        """`n_waiting`."""
        raise NotImplementedError

    def _break(self, epoch: int | None, cause: Break) -> int | None:
        """Breaks that epoch if it is the current one and open; None: the current one, whichever it is.

        Returns the current epoch, or None where the kind does not know.
        """
        raise NotImplementedError

    def _reset(self, told: int | None) -> None:
        """Moves on from the epoch `told` if that is still the current one; None: from the current one."""
        raise NotImplementedError

    def _states(self, ranks: Sequence[int]) -> list[Missing]:
        """What is known of each of these ranks, which did not come; in their order."""
        peers = peers_of_store(self._store)
        known = {} if peers is None else {peer.rank: peer for peer in peers()}
        if self._rank not in known:  # the store knows nobody, or by other numbers
            return [Missing(rank, "did not arrive") for rank in ranks]
        return [Missing(rank, peer_text(known.get(rank))) for rank in ranks]

    # -- helpers of the kinds: each error is made in one place --------------------------------------------------------

    def _run(self, attempt: Attempt) -> int:
        """One wait, with what an interrupt of it does."""
        if self._told:
            self._told.pop(get_ident(), None)
        try:
            return self._wait(attempt)
        except BrokenBarrierError:
            raise
        except BaseException as error:
            if attempt.epoch is not None:
                self._interrupted(attempt.epoch, error)
            raise

    def _limit(self, timeout: Timeout | None) -> int:
        """The nanoseconds of a wait that was given this timeout."""
        if timeout is not None:
            return span_ns(timeout)
        if self._span is not None:
            return self._span
        return span_ns(getattr(self._store, "timeout", DEFAULT))

    def _interrupted(self, epoch: int, error: BaseException) -> None:
        """Tells the others that this party, which had arrived, will not wait; whatever comes of it.

        Where the epoch was over by then nothing is broken, and there is nothing to reset.
        """
        try:
            self._break(epoch, Break("interrupt", self._rank, note=type(error).__name__))
            now, cause = self._now()
        except Exception:
            return
        if now == epoch and cause is not None:
            self._tell(epoch)

    def _tell(self, epoch: int) -> None:
        """Remembers that this thread was told of the end of an epoch."""
        self._told[get_ident()] = epoch

    def _timed_out(
        self, epoch: int, arrived: int, missing: Sequence[int] | None, elapsed: float, span: int
    ) -> TimedOutBarrierError:
        """The error of a party whose own time was over.

        Args:
            epoch: which broke.
            arrived: how many had arrived.
            missing: ranks, ascending; None where they are not known.
            elapsed: seconds that it waited.
            span: nanoseconds that it would wait.
        """
        self._tell(epoch)
        if missing:
            states = self._states(missing[:NAMED_MAX])
            names = [f"rank {one.rank} ({one.state})" for one in states]
            who = f"missing {named(names, len(missing) - len(names))}"
        elif self._rank is None:
            who = f"missing {max(self._parties - arrived, 0)}, not known by name, as the parties gave no ranks"
        elif missing is None:
            who = "who was missing is not known any more, as others have reset it and arrived again"
        else:
            who = "the last of them just after that"
        mine = "" if self._rank is None else f" on rank {self._rank}"
        return TimedOutBarrierError(
            f"barrier {self.key!r} timed out{mine} after {span_text(elapsed)}: {arrived} of {self._parties} arrived; "
            f"{who} (epoch {epoch}, limit {seconds(span):g} s, {self._store!r}; {self._mended_by})",
            key=self.key,
            epoch=epoch,
            arrived=arrived,
            world_size=self._parties,
            missing_ranks=missing or (),
            elapsed=elapsed,
            timeout=seconds(span),
        )

    def _broken(self, epoch: int, cause: Break) -> BrokenBarrierError | PeerAtBarrierDiedError:
        """The error of a party that another one broke, or a death."""
        self._tell(epoch)
        text = (
            f"barrier {self.key!r} is broken: {cause.text(self._parties)} "
            f"(epoch {epoch}, {self._store!r}; {self._mended_by})"
        )
        if cause.kind == "died":
            return PeerAtBarrierDiedError(
                text,
                rank=cause.rank,
                pid=cause.pid,
                host=cause.host,
                waiting_on=cause.waiting_on,
                key=self.key,
                epoch=epoch,
            )
        return BrokenBarrierError(text, key=self.key, epoch=epoch, missing_ranks=cause.missing)

    def _was_reset(self, epoch: int) -> BrokenBarrierError:
        """The error of a party that waited when the barrier was reset."""
        self._tell(epoch)
        return BrokenBarrierError(
            f"barrier {self.key!r} was reset while this party waited (in epoch {epoch}, {self._store!r})",
            key=self.key,
            epoch=epoch,
        )

    def _not_current(self, epoch: int, now: int) -> BrokenBarrierError:
        """The error of a party that wanted an epoch which is over for it, or has not begun."""
        self._tell(epoch)
        return BrokenBarrierError(
            f"barrier {self.key!r}: epoch {epoch} is not the current one, which is {now}: the others gave up before "
            f"this party came, or moved on without it ({self._store!r})",
            key=self.key,
            epoch=epoch,
        )


def peers_of_store(store: Any) -> Callable[[], Sequence[Any]] | None:
    """The `peers` of a store, or of the one below its prefixes."""
    while True:
        peers: Callable[[], Sequence[Any]] | None = getattr(store, "peers", None)
        if callable(peers):
            return peers
        store = getattr(store, "underlying_store", None)
        if store is None:
            return None


def store_home(store: Any, raw: bytes) -> tuple[Store, bytes] | None:
    """The store in a segment that has barriers of its own, and the key there; None for any other store."""
    return store._barrier_home(raw) if isinstance(store, Store) else None  # noqa: SLF001 -- Store's hook for just this


def nodes_of(store: Any, raw: bytes, parties: Any, rank: Any) -> tuple[Any, bytes] | None:
    """The HybridStore whose ranks are these parties, and the key there; None for any other store, or other parties."""
    found = store._nodes(raw) if isinstance(store, Store) and rank is not None else None  # noqa: SLF001 -- the same
    return found if found is not None and found[0].world_size == parties else None  # type: ignore[attr-defined]


def check_party(parties: int, rank: int | None, names: tuple[str, str] = ("parties", "rank")) -> None:
    """TypeError, ValueError: no such number of parties, or no such rank among them. `names`: the caller's for both."""
    check_int(parties, names[0])
    if not 1 <= parties <= PARTIES_MAX:
        raise ValueError(f"{names[0]} must be 1 to {PARTIES_MAX}, got {parties}")
    if rank is not None:
        check_int(rank, names[1])
        if not 0 <= rank < parties:
            raise ValueError(f"{names[1]} must be 0 to {parties - 1} in a barrier of {parties}, got {rank}")
