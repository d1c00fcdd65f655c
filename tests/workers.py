"""What the children of process tests run; imported by fresh interpreters, so it imports nothing it does not need."""

from __future__ import annotations

import os
import pickle
import random
import signal
import threading
import time
from typing import Any

from shmstore import ShmStore, StoreTimeoutError

LONG = 20


def opened(name: str, engine: str | None = None, **kwargs: Any) -> ShmStore:
    kwargs.setdefault("timeout", LONG)
    return ShmStore(name, sync=engine, **kwargs)


def add_many(me: Any, name: str, each: int) -> list[int]:
    with opened(name) as store:
        me.ready()
        return [store.add("n", 1) for _ in range(each)]


def swap_many(me: Any, name: str, each: int) -> list[int]:
    """Counts a key up by compare_set; the numbers this process put there."""
    mine = []
    with opened(name) as store:
        me.ready()
        while len(mine) < each:
            now = store.get("cell")
            new = int(now) + 1
            tagged = b"%d" % new + b" " * me.index  # tells who put it
            if store.compare_set("cell", now, tagged) == tagged:
                mine.append(new)
    return mine


def append_many(me: Any, name: str, each: int) -> None:
    with opened(name) as store:
        me.ready()
        for i in range(each):
            store.append("log", f"<{me.index}:{i}>")


def push_many(me: Any, name: str, each: int) -> int:
    with opened(name) as store:
        me.ready()
        for i in range(each):
            store.queue_push("q", f"{me.index}:{i}")
    return me.index


def pop_many(me: Any, name: str, each: int) -> list[bytes]:
    with opened(name) as store:
        me.ready()
        return [store.queue_pop("q") for _ in range(each)]


def barriers(me: Any, name: str, n: int, rounds: int) -> list[int]:
    """Counts of arrivals seen after each barrier; all must be n."""
    with opened(name) as store:
        me.ready()
        seen = []
        for i in range(rounds):
            store.add(f"arrived-{i}", 1)
            store.barrier(f"barrier-{i}", n)
            seen.append(int(store.get(f"arrived-{i}", 0)))
    return seen


def write_until_told(me: Any, name: str, size: int) -> int:
    """Writes one key over and over; how often."""
    with opened(name) as store:
        me.ready()
        me.say("writing")
        value, n = b"w" * size, 0
        while not store.check(["stop"]):
            store.set("k", value)
            n += 1
        return n


def mixed(me: Any, name: str, threads: int, each: int) -> int:
    """Threads that keep to keys of their own, each against a dict; how many keys this process left."""
    errors: list[BaseException] = []
    left = []
    with opened(name) as store:
        me.ready()

        def work(t: int) -> None:
            rng = random.Random(me.index * 1000 + t)
            model: dict[str, bytes] = {}
            try:
                for _ in range(each):
                    key = f"{me.index}/{t}/{rng.randrange(12)}"
                    verb = rng.randrange(6)
                    value = bytes([rng.randrange(256)]) * rng.choice((0, 1, 40, 700, 9000))
                    if verb == 0:
                        store.set(key, value)
                        model[key] = value
                    elif verb == 1:
                        store.append(key, value)
                        model[key] = model.get(key, b"") + value
                    elif verb == 2:
                        assert store.delete_key(key) is (model.pop(key, None) is not None)
                    elif verb == 3:
                        store.multi_set([key, key + "x"], [value, b"x"])
                        model[key], model[key + "x"] = value, b"x"
                    elif verb == 4:
                        now = model.get(key)
                        if now is not None:
                            assert store.compare_set(key, now, value) == value
                            model[key] = value
                    else:
                        assert store.check([key]) is (key in model)
                    if key in model:
                        assert store.get(key, 0) == model[key]
                    store.add("shared", 1)
                left.append(len(model))
            except BaseException as error:
                errors.append(error)

        team = [threading.Thread(target=work, args=(t,)) for t in range(threads)]
        for thread in team:
            thread.start()
        for thread in team:
            thread.join()
        if errors:
            raise errors[0]
    return sum(left)


def call(me: Any, name: str, verb: str, args: tuple[Any, ...], timeout: float = LONG) -> Any:
    """One verb."""
    with opened(name) as store:
        store.set_timeout(timeout)  # an open may wait for a lock file that all segments of the user share
        me.ready()
        return getattr(store, verb)(*args)


def call_timed_out(me: Any, name: str, verb: str, args: tuple[Any, ...], timeout: float) -> tuple[float, str]:
    """One verb that times out: how long it took, and the text."""
    with opened(name) as store:
        store.set_timeout(timeout)
        me.ready()
        start = time.monotonic()
        try:
            getattr(store, verb)(*args)
        except StoreTimeoutError as error:
            return time.monotonic() - start, str(error)
    raise AssertionError("no timeout")


def unpickle(me: Any, data: bytes) -> bytes:
    store = pickle.loads(data)
    try:
        store.set("from child", str(os.getpid()))
        return store.get("from parent", 0)
    finally:
        store.close()


def interrupted(me: Any, name: str, verb: str) -> float:
    """Blocks in the main thread; the CPU-independent proof that SIGINT ended it is that it returns at all."""
    store = opened(name, timeout=1000)
    calls = {
        "get": lambda: store.get("never"),
        "wait": lambda: store.wait(["never"]),
        "multi_get": lambda: store.multi_get(["never"]),
        "queue_pop": lambda: store.queue_pop("never"),
        "barrier": lambda: store.barrier("never", 99),
    }
    me.ready()
    try:
        calls[verb]()
    except KeyboardInterrupt:
        now = time.monotonic()
        store.set("afterwards", b"works")
        store.close()
        return now
    raise AssertionError("not interrupted")


def handler_uses_store(me: Any, name: str) -> tuple[bytes, int]:
    """A signal handler calls verbs while the main thread is parked in one."""
    store = opened(name)
    hits = []

    def on_signal(_sig: int, _frame: Any) -> None:
        hits.append(store.add("handled", 1))
        store.set(f"handled {len(hits)}", b"")
        store.set("in handler", b"x" * 3000)
        assert store.get("in handler", 0) == b"x" * 3000

    signal.signal(signal.SIGUSR2, on_signal)
    me.ready()
    value = store.get("never yet")
    store.close()
    return value, len(hits)


def handler_storm(me: Any, name: str, rounds: int) -> int:
    """A timer's handler reads and writes all the time; no result of the main flow may be another call's."""
    store = opened(name)
    mine, other = b"m" * 500, b"o" * 400
    store.set("mine", mine)
    store.set("other", other)
    bad = []
    hits = [0]

    def on_signal(_sig: int, _frame: Any) -> None:
        hits[0] += 1
        if store.get("other", 0) != other:
            bad.append("handler")
        store.add("n", 1)

    signal.signal(signal.SIGALRM, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    me.ready()
    try:
        i = 0
        while i < rounds or hits[0] < 50:
            i += 1
            if store.get("mine", 0) != mine:
                bad.append("main")
            if store.compare_set("mine", b"no", b"never") != mine:
                bad.append("swap")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert store.add("n", 0) == hits[0]
    store.close()
    assert not bad, bad[:5]
    return hits[0]


def handler_releases(me: Any, name: str, verb: str) -> Any:
    """A timer's handler uses the store; the fifth time it does what its own thread waits for."""
    store = opened(name, timeout=60)
    calls = {
        "get": (lambda: store.get("k"), lambda: store.set("k", b"v")),
        "wait": (lambda: store.wait(["k"]), lambda: store.set("k", b"v")),
        "multi_get": (lambda: store.multi_get(["k"]), lambda: store.set("k", b"v")),
        "queue_pop": (lambda: store.queue_pop("k"), lambda: store.queue_push("k", b"v")),
        "barrier": (lambda: store.barrier("k", 2), lambda: store.barrier("k", 2)),
    }
    call, release = calls[verb]

    def on_signal(_sig: int, _frame: Any) -> None:
        if store.add("handled", 1) == 5:
            signal.setitimer(signal.ITIMER_REAL, 0)
            release()

    signal.signal(signal.SIGALRM, on_signal)
    me.ready()
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    result = call()
    store.close()
    return result


AT_A_LOCK: dict[str, Any] = {
    "set": lambda s: s.set("held", b"x"),
    "add": lambda s: s.add("held", 1),
    "compare_set": lambda s: s.compare_set("held", b"", b"z"),
    "append": lambda s: s.append("held", b"x"),
    "delete_key": lambda s: s.delete_key("held"),
    "multi_set": lambda s: s.multi_set(["held", "other"], [b"", b""]),
    "queue_push": lambda s: s.queue_push("held", b"item"),
    "queue_pop": lambda s: s.queue_pop("held"),
    "barrier": lambda s: s.barrier("held", 1),
}


def interrupted_at_a_lock(me: Any, name: str, verb: str) -> int:
    """A timer's handler runs while the verb waits for a lock; the fifth time it raises. How often it ran."""
    store = opened(name, timeout=1000)
    hits = [0]

    def on_signal(_sig: int, _frame: Any) -> None:
        hits[0] += 1
        if hits[0] == 5:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, on_signal)
    me.ready()
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        AT_A_LOCK[verb](store)
    except KeyboardInterrupt:
        me.say("interrupted")
        me.hear()  # the holder is dead: another key may stand in the same stripe
        store.set("afterwards", b"works")
        store.close()
        return hits[0]
    raise AssertionError("not interrupted")


def signals_do_not_shorten(me: Any, name: str, timeout: float) -> tuple[float, int]:
    store = opened(name)
    hits = [0]

    def on_signal(_sig: int, _frame: Any) -> None:
        hits[0] += 1

    signal.signal(signal.SIGALRM, on_signal)
    me.ready()
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    start = time.monotonic()
    try:
        store.get("never", timeout)
    except StoreTimeoutError:
        took = time.monotonic() - start
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    store.close()
    return took, hits[0]


def stay(me: Any, name: str, kwargs: dict[str, Any]) -> Any:
    """Attaches, says so, and stays until told: "close", "exit" (close by atexit), "_exit"."""
    store = opened(name, **kwargs)
    store.add("attached", 1)
    me.say("attached")
    how = me.hear()
    if how == "_exit":
        os._exit(0)
    if how == "close":
        store.close()
    return how


def stay_with_child(me: Any, name: str) -> None:
    """Attaches and forks; the forked child holds the attachment and sleeps until its pipe is closed."""
    store = opened(name)
    store.set("from", str(os.getpid()))
    pid = os.fork()
    if pid == 0:
        me.hear()  # nobody ever says anything: ends with the test's end of the socket
        os._exit(0)
    hold(store, "stripe")
    me.say(pid)
    me.hear()


def grandchild_works(me: Any, name: str) -> None:
    """Forks a child that goes on working after this process was killed."""
    store = opened(name)
    store.set("parent", str(os.getpid()))
    if os.fork() == 0:
        try:
            store.add("grandchild", 1)
            me.say("ready")
            me.hear()
            for _ in range(100):
                store.add("grandchild", 1)
            store.close()
            me.say("done")
        finally:
            os._exit(0)
    signal.pause()


def hold(store: Any, what: str, key: bytes = b"held") -> None:
    import inside

    inside.hold(store, what, key)


def hold_and_die(me: Any, name: str, what: str) -> None:
    store = opened(name)
    store.add("n", 1)
    hold(store, what)
    me.say("holding")
    signal.pause()


def storm(me: Any, name: str) -> None:
    """Adds and pushes; each acknowledged one is told outside before the next begins. Killed at some point."""
    store = opened(name)
    me.ready()
    i = 0
    while True:
        value = store.add("n", 1)
        store.queue_push("q", f"{me.index}:{i}")
        store.set(f"own/{me.index}", str(i) * 50)
        store.append("log", b"x")
        i += 1
        me.say((value, i))


def executor(me: Any) -> None:
    """Runs verbs of any segment on request; answers ("ok", value) or ("error", class name)."""
    handles: dict[str, ShmStore] = {}
    while (request := me.hear()) is not None:
        segment, verb, args = request
        if verb == "close_if_open":
            if segment in handles:
                handles.pop(segment).close()
            me.say(("ok", None))
            continue
        if segment not in handles:
            handles[segment] = opened(segment)
        try:
            me.say(("ok", getattr(handles[segment], verb)(*args)))
        except Exception as error:
            me.say(("error", type(error).__name__))


# -- for multiprocessing: plain functions of (store, …) ----------------------------------------------------------------


def mp_add(store: Any, n: int, results: Any) -> None:
    values = [store.add("n", 1) for _ in range(n)]
    store.set(f"pid-{os.getpid()}", b"")
    results.send(values)


def mp_wait(store: Any, results: Any) -> None:
    results.send(store.get("for child"))
