"""The doors named sst_fast_* keep the GIL and all others release it: read from the code the compiler makes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from sources import CORE, build_native

from shmstore._native import lib

INCLUDE = Path(sysconfig.get_path("include"))


@pytest.fixture(scope="module")
def wrappers(tmp_path_factory) -> dict[str, str]:
    """Assembly of each generated wrapper, cold parts included."""
    gcc = shutil.which("gcc")
    if gcc is None or not (INCLUDE / "Python.h").exists():
        pytest.skip("needs gcc and the headers of Python")
    source = tmp_path_factory.mktemp("gil") / "_native.c"
    assert build_native().main(["build_native", str(CORE / "sst.h"), str(source)]) == 0
    flags = ["-O2", "-fPIC", "-w", "-DPy_LIMITED_API=0x030A0000", f"-I{INCLUDE}", f"-I{CORE}"]
    command = [gcc, *flags, "-S", "-o", "-", str(source)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    code: dict[str, str] = {}
    for label, body in re.findall(r"^(_cffi_f_sst_\w+)(?:\.[\w.]+)?:\n(.*?)^\s*\.size", text, re.MULTILINE | re.DOTALL):
        name = label.removeprefix("_cffi_f_")
        code[name] = code.get(name, "") + body
    return code


def test_only_fast_doors_keep_the_gil(wrappers: dict[str, str]) -> None:
    assert set(wrappers) == {name for name in dir(lib) if name.startswith("sst_")}
    keeping = {name for name, body in wrappers.items() if "PyEval_SaveThread" not in body}
    assert keeping == {name for name in wrappers if name.startswith("sst_fast_")}
    assert keeping
    assert not {name for name in keeping if "PyEval_RestoreThread" in wrappers[name]}
