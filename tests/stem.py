"""Fresh processes without an interpreter's start for each: a process that has imported, has nothing open, and forks.

What a stem forks is where a fresh interpreter is after its imports: it has no store, no thread, no lock and nothing of
the test process, and it ends as an interpreter does, exit handlers and all. It is a child of the test process, as one
that was started would be: a process between forks it and ends, and the test process takes orphans in meanwhile.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
_BOOT = "import sys; sys.path[:] = {path!r}; import stem; stem._main({fd}, {more!r})"


class Stem:
    """The test process's end; `start` is for `harness.Team`.

    Args:
        more: modules that children import, beside those that they all do.
    """

    def __init__(self, *more: str) -> None:
        self._line, theirs = socket.socketpair()
        boot = _BOOT.format(path=[str(Path(__file__).parent), *filter(None, sys.path)], fd=theirs.fileno(), more=more)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", boot],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.pid = self._process.pid

    def start(self, conn: int, *main: Any) -> int:
        """The pid of a new process, a child of this one, that does harness._child_main(conn, *main)."""
        # What is of the test process as it is now, and what a module of the test's own may stand in the way of reading.
        surroundings = [p for p in sys.path if p], os.getcwd(), dict(os.environ)
        with os.fdopen(os.memfd_create("asked"), "wb") as asked:
            pickle.dump((surroundings, pickle.dumps(main)), asked)
            asked.flush()
            _take_orphans(yes=True)
            try:
                socket.send_fds(self._line, [b"."], [conn, 1, 2, asked.fileno()])
                pid = int.from_bytes(self._line.recv(4), "little")
            finally:
                _take_orphans(yes=False)
        assert pid, "the stem is gone"
        return pid

    def close(self) -> None:
        self._line.close()
        assert self._process.wait(20) == 0, "the stem does not end, or ends badly"


def _take_orphans(*, yes: bool) -> None:
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0) == 0


# -- the stem itself --------------------------------------------------------------------------------------------------


def _main(fd: int, more: Sequence[str]) -> None:
    """Forks on demand, until the line is closed."""
    import harness

    for module in ("inside", "pytest", "workers", *more):  # what children import
        importlib.import_module(module)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test process; children have a handler again
    gc.collect()
    gc.freeze()
    line = socket.socket(fileno=fd)
    while (asked := socket.recv_fds(line, 1, 4))[0]:
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid != 0:
                os.write(tell, pid.to_bytes(4, "little"))
                os._exit(0)
            for mine in (line.detach(), told, tell):
                os.close(mine)
            conn, main = _become(asked[1])
            harness._child_main(conn, *main)
        for theirs in (*asked[1], tell):
            os.close(theirs)
        os.waitpid(between, 0)
        line.send(os.read(told, 4))
        os.close(told)


def _become(fds: list[int]) -> tuple[int, Any]:
    """Takes over what the test process had when it asked."""
    conn, out, err, asked = fds
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    with os.fdopen(asked, "rb") as file:
        file.seek(0)
        (path, cwd, environ), main = pickle.load(file)
    sys.path[:] = [str(Path(__file__).parent), *path]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    return conn, pickle.loads(main)
