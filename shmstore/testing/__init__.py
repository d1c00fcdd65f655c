"""For people who write a store: the contract, as tests. See `shmstore.testing.contract`."""
