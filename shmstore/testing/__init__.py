"""For people who write a store: the contract, as tests, in `shmstore.testing.contract`; Barrier's in `.barriers`."""

import pytest

# What a failed assert compares is shown, as in a test module.
pytest.register_assert_rewrite("shmstore.testing.contract", "shmstore.testing.barriers")
