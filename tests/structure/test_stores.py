"""Every store into the segment goes through atomics.h, where the fault build counts it: none hides from a crash test.

A heuristic over the text: it knows the structs of layout.h and finds assignments through pointers to them, and the
atomic builtins and byte copies anywhere outside atomics.h. It cannot see a store through a bare ``uint32_t *``; the
named order in the wrappers makes those stand out to a reader.
"""

from __future__ import annotations

import re

import pytest
from sources import C_FILES, CORE, functions, without_comments

STRUCTS = re.findall(
    r"^\}\s*(sst_\w+);", without_comments((CORE / "layout.h").read_text(encoding="utf-8")), re.MULTILINE
)
STORING = re.compile(
    r"\b(__atomic_(store|exchange|compare_exchange|fetch_\w+|\w+_fetch|clear|test_and_set)|__sync_\w+)"
)
OTHERS = [path for path in C_FILES if path.name != "atomics.h"]
POINTER = re.compile(rf"\b(?:{'|'.join(STRUCTS)})\s*\*\s*(?:const\s+)?(\w+)")
# What looks like a store into the segment and is none, with the reason.
PRIVATE = {
    ("segment.c", "memset(h"),  # read_header(): h is a copy of the header on its caller's stack
}
ASSIGN = r"\s*(?:[-+*/|&^%]|<<|>>)?=(?!=)|\s*(?:\+\+|--)"


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_atomic_builtins_stand_in_atomics_h(path) -> None:
    text = without_comments(path.read_text(encoding="utf-8"))
    assert not re.search(r"\b__(atomic|sync)_\w+", text)
    assert "stdatomic.h" not in text


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_no_plain_store_into_a_segment_struct(path) -> None:
    found = []
    for start, code in functions(without_comments(path.read_text(encoding="utf-8"))):
        for name in set(POINTER.findall(code)):
            member = rf"\b{name}\s*(?:->|\[[^\]]*\]\s*\.)\s*\w+(?:\[[^\]]*\]|\.\w+)*"
            whole = rf"(?<![\w*]\s)(?<!\w)\*\s*{name}"
            copied = rf"\bmem(?:cpy|move|set)\s*\(\s*(?:\([^)]*\)\s*)?&?\s*{name}\b"
            for match in re.finditer(rf"(?:{member}|{whole})(?:{ASSIGN})|{copied}", code):
                if whole_is_declaration(code, match.start()) or (path.name, match.group().strip()) in PRIVATE:
                    continue
                found.append(f"{path.name}:{start + code[: match.start()].count(chr(10))}: {match.group().strip()}")
    assert not found


def whole_is_declaration(code: str, at: int) -> bool:
    """``sst_entry *e = ...`` sets a pointer of ours, not the segment."""
    return re.search(rf"\b(?:{'|'.join(STRUCTS)})\s*$", code[:at]) is not None


def test_every_wrapper_counts() -> None:
    """All but own_*, which are for words private to a process and must not be counted."""
    text = without_comments((CORE / "atomics.h").read_text(encoding="utf-8"))
    storing = [code.strip() for _, code in functions(text) if STORING.search(code)]
    silent = [code for code in storing if "sst_fault_store()" not in code and not re.search(r"\bown_\w+\(", code)]
    assert not silent
    assert storing
