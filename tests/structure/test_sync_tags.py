"""Memory order is written in pairs: ``SYNC <tag>:`` stands at both ends, so nobody changes one without the other."""

from __future__ import annotations

import re
from collections import defaultdict

from sources import C_FILES

TAG = re.compile(r"\bSYNC ([a-z0-9]+(?:-[a-z0-9]+)*):")


def places() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in C_FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for tag in TAG.findall(line):
                found[tag].append(f"{path.name}:{number}")
    return found


def test_every_tag_has_two_ends() -> None:
    single = {tag: where for tag, where in places().items() if len(where) < 2}
    assert not single, "a SYNC tag without its other end"


def test_tags_are_there_and_well_formed() -> None:
    assert places(), "no SYNC tag in the core: the pairs are unwritten or written otherwise"
    malformed = [
        f"{path.name}:{number}"
        for path in C_FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"/\*\s*SYNC\b", line) and not TAG.search(line)
    ]
    assert not malformed, "write /* SYNC some-tag: order; pairs with ... */"
