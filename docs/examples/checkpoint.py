"""A checkpoint that is whole or not there: N processes write an array in parts, meet, and one publishes the manifest.

    python docs/examples/checkpoint.py                      # 4 processes, 3 checkpoints, in a new folder
    python docs/examples/checkpoint.py --kill 2             # rank 2 is killed in the middle of the last one

Each rank keeps a part of one array of doubles, works on it, and writes it for each step: to a temporary file, flushed,
then renamed, so that a part is there whole or not at all. Then it meets the others. Only when all have met, and so all
parts are there, rank 0 writes the manifest, in the same way. Who reads trusts the manifest alone: a checkpoint that
was cut short has none, and the one before stays what it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import zlib
from array import array
from pathlib import Path

from shmstore import BrokenBarrierError, PeerDiedError
from shmstore.checkpoint import ShmStoreBarrier

MANIFEST = "manifest.json"


def publish(path: Path, data: bytes) -> None:
    """Puts a file there whole or not at all, also when the machine stops."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def say(line: str) -> None:
    """A line on stdout, which all ranks share, in one write."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def part_name(step: int, rank: int) -> str:
    return f"step-{step}.part-{rank}"


def expected(step: int, start: int, stop: int) -> array[float]:
    """What the array holds between start and stop after so many steps of `work`."""
    return array("d", (i * 2.0**step for i in range(start, stop)))


def work(part: array[float]) -> None:
    for i, value in enumerate(part):
        part[i] = value * 2.0


def bounds(length: int, rank: int, world: int) -> tuple[int, int]:
    return length * rank // world, length * (rank + 1) // world


def run(rank: int, world: int, folder: Path, name: str, steps: int, length: int, kill: int | None) -> int:
    """One rank; its exit status."""
    part = expected(0, *bounds(length, rank, world))
    barrier = ShmStoreBarrier(
        global_rank=rank,
        global_world_size=world,
        barrier_prefix="checkpoint",
        timeout_barrier_init_secs=60,
        store_name=name,
        timeout_secs=60,
    )
    with barrier:
        for step in range(1, steps + 1):
            work(part)
            if step == steps and rank == kill:
                (folder / f".{part_name(step, rank)}.{os.getpid()}").write_bytes(part.tobytes()[: len(part) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            publish(folder / part_name(step, rank), part.tobytes())
            try:
                barrier.execute_barrier()
            except BrokenBarrierError as error:
                who = error.rank if isinstance(error, PeerDiedError) else error.missing_ranks
                say(f"rank {rank}: no checkpoint of step {step}, for want of rank {who}: {error}")
                return 3
            if rank == 0:
                publish_manifest(folder, step, world, length)
    return 0


def publish_manifest(folder: Path, step: int, world: int, length: int) -> None:
    """Called when all parts are there: says which they are. What no manifest names any more goes."""
    parts = [part_name(step, rank) for rank in range(world)]
    sums = {name: zlib.crc32((folder / name).read_bytes()) for name in parts}
    publish(folder / MANIFEST, json.dumps({"step": step, "length": length, "parts": sums}).encode())
    for old in folder.glob(f"step-{step - 1}.part-*"):
        old.unlink()
    say(f"checkpoint of step {step}: {world} parts")


def read(folder: Path) -> tuple[int, array[float]]:
    """The last checkpoint: its step and the whole array. ValueError where a part is not what the manifest says."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    whole = array("d")
    for name, checksum in manifest["parts"].items():
        data = (folder / name).read_bytes()
        if zlib.crc32(data) != checksum:
            raise ValueError(f"{name} is not what the manifest says")
        whole.frombytes(data)
    if len(whole) != manifest["length"]:
        raise ValueError(f"{len(whole)} numbers, the manifest says {manifest['length']}")
    return manifest["step"], whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nproc", type=int, default=4, help="how many processes (4)")
    parser.add_argument("--steps", type=int, default=3, help="how many checkpoints (3)")
    parser.add_argument("--length", type=int, default=100_000, help="numbers in the array (100000)")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go (a new temporary one)")
    parser.add_argument("--name", default=f"checkpoint-{os.getpid()}", help="the segment in which they meet")
    parser.add_argument("--kill", type=int, metavar="RANK", help="this rank is killed in the last step")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="checkpoint-"))
    folder.mkdir(exist_ok=True)

    spawn = multiprocessing.get_context("spawn")
    ranks = [
        spawn.Process(target=exits_with, args=(i, args.nproc, folder, args.name, args.steps, args.length, args.kill))
        for i in range(args.nproc)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    print("exit codes:", *(rank.exitcode for rank in ranks))

    step, whole = read(folder)
    sound = whole == expected(step, 0, args.length)
    print(f"{folder}: the checkpoint of step {step} is {'whole' if sound else 'WRONG'}")
    return 0 if sound and all(rank.exitcode == 0 for rank in ranks) else 1


def exits_with(rank: int, *args: object) -> None:
    sys.exit(run(rank, *args))  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
