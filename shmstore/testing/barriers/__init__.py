"""What every Barrier does, on any store, as pytest tests; needs pytest, which shmstore itself does not.

Subclass `BarrierContract` in a test module and say how a handle of the store is made:

    class TestMyStore(BarrierContract):
        @pytest.fixture
        def store_factory(self):
            shared = MyServer()
            return lambda: MyStore(shared)

Each call gives one more handle of the same, at first empty store; each thread of a test has its own. The fixture closes
them. A kind of barrier that passes `BarrierContract` on one store needs only `BarrierOnStoreContract` on the others on
which it runs the same code. Override `make` to test one kind of barrier, where `shmstore.Barrier` would choose another
for the store.
"""

from __future__ import annotations

from shmstore.testing.barriers.on_store import BarrierOnStoreContract
from shmstore.testing.barriers.support import until, waiting
from shmstore.testing.barriers.whole import BarrierContract

__all__ = ["BarrierContract", "BarrierOnStoreContract", "until", "waiting"]
