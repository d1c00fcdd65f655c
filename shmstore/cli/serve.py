"""`shmstore serve`: a segment on the wire, until a signal says that it is enough."""

from __future__ import annotations

import signal

import click

from shmstore import ShmStore
from shmstore.errors import StoreError
from shmstore.tcp.server import DRAIN_S, TCPStoreServer

__all__ = ["serve"]

_LOOPBACK = ("127.", "::1", "localhost")


@click.command()
@click.argument("name")
@click.option("--host", default="127.0.0.1", show_default=True, help="Name or address to listen on.")
@click.option("--port", default=29500, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--drain", default=DRAIN_S, show_default=True, type=click.FloatRange(0), help="Seconds for slow readers.")
def serve(name: str, host: str, port: int, drain: float) -> None:
    """Serves the segment NAME to TCPStore clients, torch's and others, until SIGTERM or SIGINT.

    Makes the segment where there is none. A key of a client and of a local process are the same. The protocol has
    neither authentication nor encryption: whoever reaches the port may read and change every key.
    """
    signals = {signal.SIGTERM, signal.SIGINT}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # sigwait takes them, and nobody is interrupted
    try:
        with ShmStore(name) as store, TCPStoreServer(store, host, port) as server:
            click.echo(f"serving {name} on {server.host}:{server.port}")
            if not server.host.startswith(_LOOPBACK):
                click.echo("whoever reaches this port may read and change every key", err=True)
            got = signal.sigwait(signals)
            click.echo(f"{signal.Signals(got).name}: answering what has arrived")
            server.close(drain)
            stats = server.stats()
    except (StoreError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    click.echo(
        f"served {stats.connections:,} connections, {stats.operations:,} operations, "
        f"{stats.bytes_in:,} bytes in, {stats.bytes_out:,} bytes out; refused {stats.refused:,}"
    )
