"""The README's two processes, started in either order, do what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_processes(name: str, order: tuple[int, int]) -> None:
    blocks = re.findall(r"```python\n(# \w+\.py\n.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    started = {
        i: subprocess.Popen(
            [sys.executable, "-c", blocks[i].replace("job-17", name)], stdout=subprocess.PIPE, text=True
        )
        for i in order
    }
    one, two = (started[i].communicate(timeout=60)[0].splitlines() for i in (0, 1))
    assert [process.returncode for process in started.values()] == [0, 0]
    counts = sorted(int(line.split()[0]) for line in (one[0], two[1]))
    assert counts in ([5, 12], [7, 12])
    assert two[0] == "b'lr=0.1'"
    assert one[0].endswith("[b'left', b'right']")
    assert two[1].endswith("[b'left', b'right']")
