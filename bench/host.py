"""The machine: what a result was measured on, and which cores its processes run on.

Every figure of a benchmark is one of a machine, a kernel and of versions; a result carries them all, so that nobody has
to remember. Nothing is assumed where it cannot be read: what is not found out is not stamped.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from bench.records import Pin

__all__ = ["allowed_cpus", "cpus_for", "pin_to", "shm_free_bytes", "stamp"]

PACKAGES = ("shmstore", "cffi", "torch", "redis", "hiredis", "lmdb", "mpi4py", "matplotlib")
PROGRAMS = {"cc": "--version", "redis-server": "--version", "mpirun": "--version"}
SHM = Path("/dev/shm")  # noqa: S108 -- the tmpfs itself is meant, not a file in it
ROOT = Path(__file__).resolve().parents[1]


def stamp(cpus: Sequence[int]) -> dict[str, object]:
    """What can be said of this machine now: names, versions, sizes in bytes, and the load of the last minute."""
    found: dict[str, object] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "kernel": f"{platform.system()} {platform.release()} {platform.version()}",
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "cpu": _field("/proc/cpuinfo", "model name"),
        "virtual": "hypervisor" in _field("/proc/cpuinfo", "flags").split(),
        "cpus": os.cpu_count(),
        "cpus_used": list(cpus),
        "governor": _text(f"/sys/devices/system/cpu/cpu{cpus[0]}/cpufreq/scaling_governor"),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "shm_free_bytes": shm_free_bytes(),
        "load_1min_before": os.getloadavg()[0],
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gil_switch_s": sys.getswitchinterval(),
        "packages": {name: version for name in PACKAGES if (version := _package(name))},
        "programs": {name: line for name, flag in PROGRAMS.items() if (line := _first_line([name, flag]))},
        "commit": _first_line(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
    }
    return {name: value for name, value in found.items() if value not in ("", None, {})}


def allowed_cpus() -> list[int]:
    """The cores this process may use, ascending."""
    return sorted(os.sched_getaffinity(0))


def cpus_for(pin: Pin, cpus: Sequence[int], index: int | None) -> set[int]:
    """The cores for process `index` of a session, or for its servers (None)."""
    if pin == "one":
        return {cpus[-1]}  # the first core of a machine usually takes its interrupts
    if pin == "free" or index is None:
        return set(cpus)
    return {cpus[index % len(cpus)]}


def pin_to(cpus: set[int]) -> None:
    """Keeps this process, and the threads and processes it starts from now on, on these cores."""
    os.sched_setaffinity(0, cpus)


def shm_free_bytes() -> int:
    """What is free on /dev/shm, 0 where there is none."""
    try:
        found = os.statvfs(SHM)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _first_line(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603 -- ours
    return (done.stdout.splitlines() or [""])[0] if done.returncode == 0 else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _field(path: str, name: str) -> str:
    """The value of the first `name : value` line of a file of /proc."""
    for line in _text(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
