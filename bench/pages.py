"""A forked process gets memory of its own, before it is timed.

After a fork, parent and child share all their pages, and the first write to each copies it: some 2 us a page. Python
writes wherever it runs, if only to count references. So a forked process that does anything for the first time pays for
the fork; one that was started and has imported its modules by itself does not.
"""

from __future__ import annotations

import ctypes
import os
from errno import EINVAL
from pathlib import Path
from typing import Final

__all__ = ["make_own"]

POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE: as if each page were written to."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


def make_own() -> None:
    """Copies all pages of this process that it may write to and shares since its fork. Not to be called with threads.

    Raises:
        OSError: not done; Linux has this since 5.14.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        if rights.startswith("rw") and rights.endswith("p"):
            first, end = (int(address, 16) for address in span.split("-"))
            if _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), POPULATE_WRITE) < 0:
                code = ctypes.get_errno()
                hint = ": needs Linux 5.14" if code == EINVAL else ""
                raise OSError(code, f"MADV_POPULATE_WRITE of {line!r}: {os.strerror(code)}{hint}")
