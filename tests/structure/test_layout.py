"""The layout of the segment cannot drift: a static_assert pins each struct, and the LAYOUT_ID says which it is."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from sources import CORE, without_comments

from shmstore._native import lib

LAYOUT = without_comments((CORE / "layout.h").read_text(encoding="utf-8"))
STRUCTS = re.findall(r"^\}\s*(\w+);", LAYOUT, re.MULTILINE)


def test_layout_id_is_the_same_in_every_process() -> None:
    command = [sys.executable, "-c", "from shmstore._native import lib; print(lib.sst_layout_id())"]
    other = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert lib.sst_layout_id() != 0
    assert int(other) == lib.sst_layout_id() == lib.sst_layout_id()


def test_layout_has_structs() -> None:
    assert len(STRUCTS) >= 5


@pytest.mark.parametrize("struct", STRUCTS)
def test_struct_is_pinned(struct: str) -> None:
    asserts = re.findall(r"static_assert\((.*?)\);", LAYOUT, re.DOTALL)
    assert any(f"sizeof({struct})" in text for text in asserts), f"no static_assert on sizeof({struct})"


@pytest.mark.parametrize("struct", STRUCTS)
def test_struct_holds_fixed_width_members_only(struct: str) -> None:
    body = re.search(rf"typedef struct \{{([^}}]*)\}}\s*{struct};", LAYOUT)
    assert body is not None
    for member in filter(None, (line.strip() for line in body.group(1).split(";"))):
        assert "*" not in member.partition("[")[0], f"a pointer in {struct}: {member}"
        assert re.match(r"(u?int(8|16|32|64)_t|sem_t|sst_\w+)\s", member), f"not of fixed width in {struct}: {member}"
