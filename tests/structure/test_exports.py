"""The extension shows the world its init function and nothing else, and is bound to the stable ABI."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from shmstore import _native

SO = Path(_native.__file__)


def test_only_the_init_function_is_exported() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    out = subprocess.run([nm, "-D", "--defined-only", str(SO)], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in out.splitlines()}
    assert "PyInit__native" in names
    assert names <= {"PyInit__native", "_cffi_pypyinit__native"}


def test_one_file_serves_all_pythons() -> None:
    assert SO.name.endswith(".abi3.so")
