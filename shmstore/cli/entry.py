"""What the installed command `shmstore` calls: says in one line what is missing where the extra "cli" is.

`pip install shmstore` installs the command too, but neither click nor rich. They are imported when the command runs,
and not when this module does: the processes that the demo starts import this module, and need neither.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Runs the command line; returns 2 when its extra is not installed. Otherwise click ends the process."""
    try:
        from shmstore.cli.main import main as command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        print("shmstore: the command line needs the extra 'cli': pip install 'shmstore[cli]'", file=sys.stderr)
        return 2
    command(prog_name="shmstore")
    return 0
