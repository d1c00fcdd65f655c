"""shmstore under torch: a torch.distributed.Store over any of ours, and init_method="shm://…".

    import shmstore.torch  # registers shm://
    torch.distributed.init_process_group("gloo", init_method="shm://job-7?rank=0&world_size=4")

    _errors       torch's exceptions that are ours too
    store         C10dStore
    rendezvous    shm:// for init_process_group
    torchrun      torchrun --rdzv-backend=shm: the entry point, which torch loads by itself
    agents        the rendezvous behind it
    checkpoint    our barriers in torch's registry; not imported here, as torch's checkpointing is large

Nothing else of shmstore imports torch. Written against torch 2.13.
"""

from shmstore.torch.rendezvous import group_store, register
from shmstore.torch.store import C10dStore

__all__ = ["C10dStore", "group_store"]

register()
