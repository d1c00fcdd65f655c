"""The group of all commands."""

from __future__ import annotations

import click

import shmstore
from shmstore.cli.demo import demo
from shmstore.cli.serve import serve

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(shmstore.__version__, prog_name="shmstore")
def main() -> None:
    """Processes of one host find each other, share small values and wait for each other in shared memory."""


main.add_command(demo)
main.add_command(serve)
