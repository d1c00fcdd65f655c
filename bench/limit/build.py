"""Compiles the bare limits on demand, into build/bench, where git does not look.

What is compiled is named by a hash of its source, its command and its Python, so that a change makes another file and
an old one is never run by mistake.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from hashlib import blake2b
from importlib import import_module
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

__all__ = ["cannot_compile", "empty_module", "program"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMPILER = "cc"
STRICT = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
EMPTY = "_bench_empty"
EMPTY_SOURCE = 'static void nothing(void) { __asm__ volatile(""); }'
EMPTY_DECLARED = "void nothing(void);"


def cannot_compile() -> str | None:
    """Why nothing can be compiled here, or None."""
    return None if shutil.which(COMPILER) else f"no C compiler: {COMPILER} is not installed"


def program(name: str) -> Path:
    """The program made of `name`.c in this folder."""
    source = HERE / f"{name}.c"
    command = [COMPILER, *STRICT]
    return _made(name, source.read_bytes() + (HERE / "limit.h").read_bytes(), [*command, str(source)], "")


def empty_module() -> Any:
    """A cffi module in API mode whose lib.nothing() does nothing: `lib`."""
    ffi = import_module("cffi").FFI()
    ffi.cdef(EMPTY_DECLARED)
    ffi.set_source(EMPTY, EMPTY_SOURCE)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{EMPTY}.c"
        ffi.emit_c_code(str(source))
        # cffi's code is not ours to be strict with.
        command = [COMPILER, "-O2", "-w", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"]
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        path = _made(EMPTY, source.read_bytes() + sys.version.encode(), [*command, str(source)], suffix)
    spec = spec_from_file_location(EMPTY, path, loader=ExtensionFileLoader(EMPTY, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.lib


def _made(name: str, source: bytes, command: list[str], suffix: str) -> Path:
    """The file that the command makes, made unless it is there; the command wants its output's name only."""
    digest = blake2b(source + " ".join(command[:-1]).encode(), digest_size=8).hexdigest()
    path = _folder() / f"{name}-{digest}{suffix}"
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        done = subprocess.run(  # noqa: S603 -- the compiler, on our own source
            [*command, "-o", str(unfinished)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{name} does not compile: {done.stderr.strip()}")
        unfinished.replace(path)  # whole or not at all: several processes may want it at once
    return path


def _folder() -> Path:
    folder = ROOT / "build" / "bench"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    folder = Path(tempfile.gettempdir()) / f"shmstore-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else; what is in it will not be run")
    return folder
