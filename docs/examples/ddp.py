"""DistributedDataParallel without a server and without a port: it checkpoints each epoch, and says who died.

    python docs/examples/ddp.py                                 # starts 4 processes; nothing else is needed
    torchrun --rdzv-backend=shm --rdzv-id=demo --nproc-per-node=4 docs/examples/ddp.py

    … ddp.py --folder /tmp/ddp --kill 2                         # rank 2 is killed in the middle of an epoch
    … ddp.py --folder /tmp/ddp                                  # goes on from the last whole checkpoint
    torchrun --max-restarts=1 … --folder /tmp/ddp --kill 2      # both in one: the second attempt goes on

One ShmStore serves for three things. The process group finds its addresses in it. The barrier of the checkpoints
lies in it. And it knows who died: of a rank that is gone gloo only says that a connection was closed, and to some it
was by another that left for this reason; the store tells all of them the same rank and pid.

Each rank writes its part of a checkpoint, then all meet; only when all parts are there rank 0 says, in a file of its
own, which checkpoint counts. Who reads trusts that file alone (docs/examples/checkpoint.py has more of it).

In the end a single process trains on what all ranks together had, and must come to the same parameters but for
rounding. So must a run that was resumed: DDP sums in another order in the first step after each start.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import shmstore
from shmstore import PeerDiedError, Store, StoreTimeoutError, elastic
from shmstore.checkpoint import StoreBarrier
from shmstore.torch import C10dStore

PEER_DIED = 3  # exit status of a rank that leaves because another died
STEPS, BATCH, FEATURES = 20, 16, 8
LATEST = "latest.json"


def say(line: str) -> None:
    """A line on stdout, which all ranks share, in one write."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


# -- what is trained --------------------------------------------------------------------------------------------------


class Training:
    """A model, its optimizer, and the random generators of the ranks whose data it sees."""

    def __init__(self, ranks: range, device: torch.device) -> None:
        torch.manual_seed(0)
        layers = torch.nn.Linear(FEATURES, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)
        self.model: Any = torch.nn.Sequential(*layers).double().to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.generators = [torch.Generator().manual_seed(1 + rank) for rank in ranks]
        self.device = device

    def step(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """One step on a batch of each generator; the loss before it."""
        x = torch.cat([torch.randn(BATCH, FEATURES, generator=one, dtype=torch.float64) for one in self.generators])
        y = x.sum(1, keepdim=True).tanh()
        loss = torch.nn.functional.mse_loss(forward(x.to(self.device)), y.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()  # here, with DDP, the ranks meet
        self.optimizer.step()
        return float(loss)

    def parameters(self) -> torch.Tensor:
        return torch.nn.utils.parameters_to_vector(self.model.parameters()).detach().cpu()


def alone(world: int, epochs: int) -> torch.Tensor:
    """The parameters after the same training in one process, without DDP."""
    training = Training(range(world), torch.device("cpu"))
    for _ in range(epochs * STEPS):
        training.step(training.model)
    return training.parameters()


# -- checkpoints ------------------------------------------------------------------------------------------------------


def publish(path: Path, data: bytes) -> None:
    """Puts a file there whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)


def part_of(folder: Path, epoch: int, rank: int) -> Path:
    return folder / f"epoch-{epoch}.rank-{rank}.pt"


def save(training: Training, folder: Path, epoch: int, rank: int, world: int, barrier: StoreBarrier) -> None:
    """Writes a checkpoint, with all others; it counts when rank 0 has said so, after the barrier."""
    part: dict[str, Any] = {"generator": training.generators[0].get_state()}
    if rank == 0:  # what all ranks have in common
        part |= {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
    file = io.BytesIO()
    torch.save(part, file)
    publish(part_of(folder, epoch, rank), file.getvalue())
    barrier.execute_barrier()
    if rank == 0:
        publish(folder / LATEST, json.dumps({"epoch": epoch, "world": world}).encode())
        for old in folder.glob(f"epoch-{epoch - 1}.rank-*.pt"):
            old.unlink()


def load(training: Training, folder: Path, rank: int, world: int) -> int:
    """Goes back to the last whole checkpoint; its epoch, 0 where there is none."""
    if not (folder / LATEST).exists():
        return 0
    latest = json.loads((folder / LATEST).read_bytes())
    if latest["world"] != world:
        raise ValueError(f"{folder} has a checkpoint of {latest['world']} ranks, and there are {world}")
    common = torch.load(part_of(folder, latest["epoch"], 0), map_location=training.device)
    training.model.load_state_dict(common["model"])
    training.optimizer.load_state_dict(common["optimizer"])
    own = torch.load(part_of(folder, latest["epoch"], rank))
    training.generators[0].set_state(own["generator"])
    return int(latest["epoch"])


# -- one rank ---------------------------------------------------------------------------------------------------------


def run(url: str, rank: int, world: int, args: argparse.Namespace) -> int:
    """One rank; its exit status."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this host
    with shmstore.connect(url, watch_peers=True) as store:

        def told_to_stop(*_: object) -> None:
            """torchrun sends SIGTERM to all when one has died. They learn it anyway, and should not be cut short."""
            if the_dead(store) is None:
                sys.exit(128 + signal.SIGTERM)

        signal.signal(signal.SIGTERM, told_to_stop)
        keys = C10dStore(store)
        try:
            dist.init_process_group(args.backend, store=keys, rank=rank, world_size=world)
            train(store, rank, world, args)
            return 0
        except RuntimeError:  # gloo's and nccl's; the store's errors are such too
            dead = the_dead(store, patience=2)  # its connections may close an instant before its death shows
            if dead is None:
                raise
            say(f"rank {rank}: rank {dead.rank} (pid {dead.pid}) died; leaving")
            return PEER_DIED
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # on the way out already
            if dist.is_initialized():
                dist.destroy_process_group()
            keys.close()


def the_dead(store: Store, patience: float = 0) -> PeerDiedError | None:
    """Who died, if anybody did within so many seconds: with watch_peers, that ends any wait."""
    try:
        store.wait(["a key that nobody sets"], patience)
    except PeerDiedError as error:
        return error
    except StoreTimeoutError:
        pass
    return None


def train(store: Store, rank: int, world: int, args: argparse.Namespace) -> None:
    folder = folder_of(store, rank, args)
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    training = Training(range(rank, rank + 1), device)
    done = load(training, folder, rank, world)
    if rank == 0 and done:
        say(f"goes on after epoch {done}")
    ddp = DistributedDataParallel(training.model)
    barrier = StoreBarrier(store, rank, world, "checkpoint", timeout_secs=60)
    for epoch in range(done + 1, args.epochs + 1):
        losses = []
        for step in range(STEPS):
            if (rank, epoch, step) == (args.kill, (args.epochs + 1) // 2 + 1, STEPS // 2) and first_attempt():
                os.kill(os.getpid(), signal.SIGKILL)
            losses.append(training.step(ddp))
        save(training, folder, epoch, rank, world, barrier)
        if rank == 0:
            say(f"epoch {epoch}: loss {sum(losses) / STEPS:.4f} on rank 0, checkpoint of {world} parts in {folder}")
    check(training, store, rank, world, args)


def folder_of(store: Store, rank: int, args: argparse.Namespace) -> Path:
    """Where checkpoints go: a new folder, unless one was given; rank 0 makes it and tells the others."""
    if rank == 0:
        folder = args.folder or Path(tempfile.mkdtemp(prefix="ddp-"))
        folder.mkdir(parents=True, exist_ok=True)
        store.set("folder", str(folder))
    return Path(store.get("folder").decode())


def first_attempt() -> bool:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"


def check(training: Training, store: Store, rank: int, world: int, args: argparse.Namespace) -> None:
    """All ranks have the same parameters, bit by bit, and they are those of a single process but for rounding."""
    digest = hashlib.sha256(repr(training.parameters().tolist()).encode()).hexdigest()
    digests = set(elastic.synchronize(store, digest, rank, world, "digests/"))
    if len(digests) != 1:
        raise ValueError(f"the ranks have {len(digests)} different models")
    if rank == 0:
        torch.testing.assert_close(training.parameters(), alone(world, args.epochs), rtol=1e-6, atol=1e-6)
        say(f"OK: {world} ranks have the same parameters, {digest[:16]}, and a single process comes to them too")


# -- the processes ----------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nproc", type=int, default=4, help="how many processes, where torchrun does not say it (4)")
    parser.add_argument("--epochs", type=int, default=4, help="how many epochs (4)")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are and go (a new temporary one)")
    parser.add_argument("--kill", type=int, metavar="RANK", help="this rank is killed in the middle of an epoch")
    parser.add_argument("--backend", default="gloo", help="gloo, or nccl with --device=cuda and a GPU a rank (gloo)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; with gloo ranks may share a GPU (cpu)")
    parser.add_argument("--name", default=f"ddp-{os.getpid()}", help="the segment, where torchrun does not name it")
    args = parser.parse_args()
    if dist.is_torchelastic_launched():  # this process is one of torchrun's
        return run("shm://", int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), args)

    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=exits_with, args=(args.name, rank, args.nproc, args)) for rank in range(args.nproc)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    print("exit codes:", *(rank.exitcode for rank in ranks))
    return 0 if all(rank.exitcode == 0 for rank in ranks) else 1


def exits_with(name: str, rank: int, world: int, args: argparse.Namespace) -> None:
    sys.exit(run(f"shm://{name}?rank={rank}&world_size={world}", rank, world, args))


if __name__ == "__main__":
    sys.exit(main())
