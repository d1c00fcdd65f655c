"""The contract of every store, as pytest tests; needs pytest, which shmstore itself does not.

Subclass `StoreContract` in a test module and say how a handle is made:

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store_factory(self):
            shared = MyServer()
            handles = []
            def make():
                handles.append(MyStore(shared))
                return handles[-1]
            yield make
            for handle in handles:
                handle.close()

Each call of the factory gives one more handle of the same, at first empty store. Override `key_overhead` where the
store spends bytes of the key limit itself (a prefix), and `parked` where it can tell who waits on what. What a store
cannot do it says in its `capabilities`; nothing else makes a difference here.
"""

from __future__ import annotations

from shmstore.testing.contract.handles import HandleContract
from shmstore.testing.contract.keys import KeyContract
from shmstore.testing.contract.limits import LimitsContract
from shmstore.testing.contract.many import ManyKeysContract
from shmstore.testing.contract.queues import QueueContract
from shmstore.testing.contract.support import VALUE_MAX, Later, blocked, in_threads, release

__all__ = ["VALUE_MAX", "Later", "StoreContract", "blocked", "in_threads", "release"]


class StoreContract(KeyContract, ManyKeysContract, QueueContract, HandleContract, LimitsContract):
    """Every row of the verb table with its corner cases."""
