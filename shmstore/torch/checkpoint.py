"""Our barriers in the registry of torch's experimental checkpointers.

    import shmstore.torch.checkpoint  # registers them

    config = BarrierConfig(barrier_type="shm_store", barrier_args={"global_rank": rank, "global_world_size": n,
                           "barrier_prefix": "checkpoint", "timeout_barrier_init_secs": 60, "store_name": "job-7"})
    checkpointer = make_sync_checkpointer(CheckpointerConfig(barrier_config=config))

with torch's own BarrierConfig. The types are those of shmstore.checkpoint: "store" (`barrier_args` has the store: any
of ours, or one of torch's), "shm_store" and "hybrid_store". "tcp_store" stays torch's own. All are torch Barriers
to isinstance.

Torch hands `barrier_args` on as they are: rank and world size are among them, whatever its docstring says. Its
checkpointer.close() does not close the barrier: a "shm_store" leaves its segment when the process ends.
"""

from torch.distributed.checkpoint._experimental import barriers

from shmstore import checkpoint

__all__: list[str] = []

barriers.Barrier.register(checkpoint.Barrier)
for name, kind in checkpoint.BARRIER_REGISTRY.items():
    barriers.BARRIER_REGISTRY.setdefault(name, kind)
