"""The command where its extra is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest


def without(module: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a Python in which that module cannot be imported."""
    code = f"import sys; sys.modules[{module!r}] = None; from shmstore.cli.entry import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(module: str) -> None:
    done = without(module)
    assert done.returncode == 2
    assert done.stderr == "shmstore: the command line needs the extra 'cli': pip install 'shmstore[cli]'\n"
    assert done.stdout == ""


def test_another_missing_module_is_not_blamed_on_the_extra() -> None:
    done = without("shmstore.cli.count")
    assert done.returncode == 1
    assert "ModuleNotFoundError: import of shmstore.cli.count halted" in done.stderr
