"""_native.pyi names what sst.h declares and nothing else: functions, parameters in order, results, constants."""

from __future__ import annotations

import ast
import re

import pytest
from sources import CORE, ROOT, build_native, without_comments

from shmstore._native import ffi, lib

REGION = without_comments(build_native().declarations((CORE / "sst.h").read_text(encoding="utf-8")))


def class_body(name: str) -> list[ast.stmt]:
    tree = ast.parse((ROOT / "shmstore" / "_native.pyi").read_text(encoding="utf-8"))
    return next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


STUB = {node.name: node for node in class_body("_Lib") if isinstance(node, ast.FunctionDef)}
CONSTANTS = {node.target.id for node in class_body("_Lib") if isinstance(node, ast.AnnAssign)}

# One declaration: the result's type, the name, the parameters.
DECLARATION = re.compile(r"^([a-z][\w ]*[ *])(sst_\w+)\(([^)]*)\);", re.MULTILINE)
DECLARED = {name: (result.strip(), parameters) for result, name, parameters in DECLARATION.findall(REGION)}


def test_functions_are_the_headers() -> None:
    assert set(STUB) == set(DECLARED)


def test_constants_are_the_headers() -> None:
    assert CONSTANTS == set(re.findall(r"\b(SST_\w+)\s*=", REGION))


def test_the_module_has_them_all() -> None:
    assert set(dir(lib)) == set(STUB) | CONSTANTS


def python_type(c_type: str) -> str:
    if c_type == "const char *":
        return "Bytes"
    return "CData" if "*" in c_type else "int"


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_signature(name: str) -> None:
    result, parameters = DECLARED[name]
    wanted = []
    for parameter in (" ".join(text.split()) for text in parameters.split(",")):
        if parameter != "void":
            match = re.fullmatch(r"(.*?[ *])(\w+)", parameter)
            assert match is not None
            wanted.append((match.group(2), python_type(match.group(1).strip())))
    arguments = STUB[name].args
    given = [(a.arg, ast.unparse(a.annotation)) for a in arguments.posonlyargs + arguments.args if a.annotation]
    assert given == wanted
    assert not wanted or arguments.posonlyargs, "cffi takes no keywords: the parameters are positional only"
    assert ast.unparse(STUB[name].returns) == {"void": "None"}.get(result, "CData" if "*" in result else "int")


def test_the_ffi_has_what_the_stub_says() -> None:
    for node in class_body("_FFI"):
        name = node.name if isinstance(node, ast.FunctionDef) else node.target.id
        assert hasattr(ffi, name)
