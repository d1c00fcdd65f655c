"""torch's TCPStore client with our verbs: as much of an adapter as a contract test needs, and no more.

    what is wanted                                  what torch's client has, and how it is reached
    a wait in a thread holds up no other verb       a call at a time: each thread gets a client of its own
    get and multi_get with a timeout of their own   one of the client: set before each call
    timeouts in seconds, to the nanosecond          timedeltas, cut to milliseconds: rounded up
    timeout 0: what is there is seen                its wait may be over before the answer comes: CHECK first, and
                                                    after a barrier a look at its count
    errors                                          its DistStoreError, DistNetworkError, QueueEmptyError, as ours
    after a lost connection the next call connects  the client stays dead: the next call gets a new one
    close                                           none: the clients are dropped
    memoryview                                      str, bytes, bytearray: copied

Whatever else it does otherwise is left as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from kinds import torchs

from shmstore import (
    Capabilities,
    DistStoreError,
    QueueEmptyError,
    Store,
    StoreClosedError,
    StoreConnectionError,
    StoreTimeoutError,
)
from shmstore._deadline import as_timedelta

FOREVER = timedelta(days=36500)  # its milliseconds overflow beyond
UNIT = timedelta(milliseconds=1)
SOON = timedelta(seconds=30)
CAN = Capabilities(cross_process=True, cross_host=True, bad_add_disconnects=True)


class TorchClient(Store):
    """A handle on a server on the loopback.

    Args:
        port: the server's.
        waits: gets a note for each call that is waiting, or about to, and loses it at the end.
    """

    def __init__(self, port: int, timeout: Any = 30, waits: list[Any] | None = None) -> None:
        self._dist = torchs("torch.distributed", "torch's client")
        self._port = port
        self._waits: list[Any] = [] if waits is None else waits
        self._clients: dict[int, Any] = {}  # by thread: a new one of the same number takes over a dead one's
        self._closed = False
        self.set_timeout(timeout)

    @property
    def capabilities(self) -> Capabilities:
        return CAN

    @property
    def timeout(self) -> timedelta:
        return self._timeout

    def set_timeout(self, timeout: Any) -> None:
        self._timeout = as_timedelta(timeout)

    # -- calls --------------------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        if self._closed:
            raise StoreClosedError("closed")
        me = threading.get_ident()
        if me not in self._clients:
            self._clients[me] = self._connect()
        return self._clients[me]

    def _connect(self) -> Any:
        return self._dist.TCPStore("127.0.0.1", self._port, is_master=False, wait_for_workers=False, timeout=SOON)

    def _call(self, call: Callable[[Any], Any]) -> Any:
        try:
            return call(self._client())
        except self._dist.QueueEmptyError as error:
            raise QueueEmptyError(str(error)) from None
        except self._dist.DistStoreError as error:
            raise (StoreTimeoutError if "timeout" in str(error) else DistStoreError)(str(error)) from None
        except self._dist.DistNetworkError as error:
            del self._clients[threading.get_ident()]
            raise StoreConnectionError(str(error)) from None

    def _waiting(self, keys: Sequence[Any], timeout: Any, call: Callable[[Any, timedelta], Any]) -> Any:
        """A call that may wait for the keys."""
        limit = min(self._timeout if timeout is None else as_timedelta(timeout), FOREVER)
        if not limit and not self.check(keys):
            raise StoreTimeoutError(f"wait timeout after 0ms, keys: {keys}", keys=map(str, keys))
        milliseconds = -(-(limit or FOREVER) // UNIT)

        def bounded(client: Any) -> Any:
            client.set_timeout(milliseconds * UNIT)
            return call(client, milliseconds * UNIT)

        note = (threading.get_ident(), tuple(keys))
        self._waits.append(note)
        try:
            return self._call(bounded)
        except StoreTimeoutError as error:
            error.keys = tuple(map(str, keys))  # those it names: all, there or not
            raise
        finally:
            self._waits.remove(note)

    # -- verbs --------------------------------------------------------------------------------------------------------

    def set(self, key: Any, value: Any) -> None:
        return self._call(lambda client: client.set(key, _plain(value)))

    def get(self, key: Any, timeout: Any = None) -> bytes:
        return self._waiting([key], timeout, lambda client, _: client.get(key))

    def add(self, key: Any, n: int) -> int:
        return self._call(lambda client: client.add(key, n))

    def compare_set(self, key: Any, expected: Any, desired: Any) -> bytes:
        return self._call(lambda client: client.compare_set(key, _plain(expected), _plain(desired)))

    def append(self, key: Any, value: Any) -> None:
        return self._call(lambda client: client.append(key, _plain(value)))

    def delete_key(self, key: Any) -> bool:
        return self._call(lambda client: client.delete_key(key))

    def check(self, keys: Any) -> bool:
        return self._call(lambda client: client.check(keys))

    def wait(self, keys: Any, timeout: Any = None) -> None:
        return self._waiting(keys, timeout, lambda client, limit: client.wait(keys, limit))

    def multi_get(self, keys: Any, timeout: Any = None) -> list[bytes]:
        return self._waiting(keys, timeout, lambda client, _: client.multi_get(keys))

    def multi_set(self, keys: Any, values: Any) -> None:
        return self._call(lambda client: client.multi_set(keys, [_plain(value) for value in values]))

    def num_keys(self) -> int:
        return self._call(lambda client: client.num_keys())

    def list_keys(self) -> list[str]:
        return self._call(lambda client: client.list_keys())

    def queue_push(self, key: Any, value: Any) -> None:
        return self._call(lambda client: client.queue_push(key, _plain(value)))

    def queue_pop(self, key: Any, block: bool = True) -> bytes:
        if not block:
            return self._call(lambda client: client.queue_pop(key, False))
        return self._waiting([key], None, lambda client, _: client.queue_pop(key))

    def queue_len(self, key: Any) -> int:
        return self._call(lambda client: client.queue_len(key))

    def barrier(self, key: Any, world_size: int, timeout: Any = None) -> None:
        limit = min(self._timeout if timeout is None else as_timedelta(timeout), FOREVER)
        note = (threading.get_ident(), (key,))
        self._waits.append(note)
        try:
            self._call(lambda client: client.barrier(key, world_size, -(-limit // UNIT) * UNIT))
        except StoreTimeoutError:
            if limit or int(self.get(key, SOON)) < world_size:
                raise
        finally:
            self._waits.remove(note)

    def has_extended_api(self) -> bool:
        return self._call(lambda client: client.has_extended_api())

    # -- the handle ---------------------------------------------------------------------------------------------------

    def clone(self) -> TorchClient:
        self._client()
        return TorchClient(self._port, self._timeout, self._waits)

    def close(self) -> None:
        self._closed = True
        self._clients = {}

    def __enter__(self) -> TorchClient:
        self._client()
        return self


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value
