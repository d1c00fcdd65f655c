"""For people who write a store: the contract, as tests. See `shmstore.testing.contract`."""

import pytest

pytest.register_assert_rewrite("shmstore.testing.contract")  # what a failed assert compares is shown, as in a test module
