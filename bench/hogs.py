"""CPU hogs: a process on each core that computes without end, at the priority of those that are timed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

__all__ = ["hogs"]

HOG = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.write(1, b"!")
while True:
    pass
"""


@contextmanager
def hogs(cpus: Sequence[int]) -> Iterator[list[int]]:
    """Keeps each of the cores busy for the length of the block; gives the hogs' process ids. All run when it begins."""
    with ExitStack() as stack:
        running = []
        for cpu in cpus:
            command = [sys.executable, "-I", "-S", "-c", HOG, str(cpu)]
            hog = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # noqa: S603 -- ours
            stack.callback(_end, hog)
            running.append(hog)
        for hog in running:
            assert hog.stdout is not None
            if hog.stdout.read(1) != b"!":
                raise RuntimeError(f"a hog did not start: exit code {hog.wait()}")
        yield [hog.pid for hog in running]


def _end(hog: subprocess.Popen[bytes]) -> None:
    hog.kill()
    hog.communicate()
