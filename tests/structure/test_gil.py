"""The doors of doors.c keep the GIL and every call of cffi releases it: read from the code the compiler makes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from sources import CORE, build_native

from shmstore import HashStore, _native
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
    for label, body in re.findall(
        r"^(_cffi_f_sst_\w+|door_\w+)(?:\.[\w.]+)?:\n(.*?)^\s*\.size", text, re.MULTILINE | re.DOTALL
    ):
        name = label.removeprefix("_cffi_f_")
        code[name] = code.get(name, "") + body
    return code


def test_cffi_releases_the_gil(wrappers: dict[str, str]) -> None:
    cffi = {name: body for name, body in wrappers.items() if name.startswith("sst_")}
    assert set(cffi) == {name for name in dir(lib) if name.startswith("sst_")}
    assert not {name for name, body in cffi.items() if "PyEval_SaveThread" not in body}


def test_doors_keep_the_gil(wrappers: dict[str, str]) -> None:
    doors = {name: body for name, body in wrappers.items() if name.startswith("door_")}
    assert set(doors) == {name for name in dir(_native) if name.startswith("door_")}
    assert {name for name, body in doors.items() if "PyEval_" in body} == {
        "door_wait",
        "door_barrier",
    }, "they give up the GIL to yield"


@pytest.mark.parametrize("store_of", [HashStore])
def test_doors_decline_whatever_is_not_plainly_right(store_of: type[HashStore]) -> None:
    with store_of() as store:
        store.set("k", b"v")
        inside = store._door
        for call in (
            lambda door: _native.door_get(door, "gone"),
            lambda door: _native.door_get(door, 3),
            lambda door: _native.door_get(door, ""),
            lambda door: _native.door_get(door, "k" * 8192),
            lambda door: _native.door_get(door, "\ud800"),
            lambda door: _native.door_get(door),
            lambda door: _native.door_set(door, "k", bytearray(b"x")),
            lambda door: _native.door_set(door, "k", b"x" * 65537),
            lambda door: _native.door_add(door, "k", 1),
            lambda door: _native.door_add(door, "n", 1 << 63),
            lambda door: _native.door_add(door, "n", 1.0),
            lambda door: _native.door_compare_set(door, "k", b"v", bytearray(b"x")),
            lambda door: _native.door_compare_set(door, "k", None, b"x"),
            lambda door: _native.door_compare_set(door, "k", b"v", b"x" * 65537),
            lambda door: _native.door_compare_set(door, "k", b"v"),
            lambda door: _native.door_check(door, "k"),
            lambda door: _native.door_check(door, ["k", 3]),
            lambda door: _native.door_delete(door, None),
        ):
            assert call(inside) is None
        for closed in (None, "no door", 7, object()):
            assert _native.door_get(closed, "k") is None
            assert _native.door_set(closed, "k", b"x") is None
            assert _native.door_check(closed, ["k"]) is None
        assert store.get("k") == b"v"
        assert store.num_keys() == 1
