"""The rendezvous of torchrun's agents in a segment, and a server of each round's own segment for their workers.

    torchrun --rdzv-backend=shm --rdzv-id=JOB --nproc-per-node=8 train.py

    torchrun.JOB          the agents' segment: torch's rendezvous state, and what agents tell each other. Each agent of
                          the job on this host opens it; the last one out removes it
    torchrun.JOB.N.TOKEN  the workers' segment of round N: rank 0's agent makes it and tells the others its name. Each
                          agent serves it on a port of the loopback that it picks itself, so that no worker depends on
                          another's agent; it goes when the round is over

A round has a segment of its own, so a restart never meets the keys of the attempt before, and no worker that is left of
that attempt is in it: of two rounds neither name nor port is the same. Unmodified workers come over the wire, with
torch's own client: MASTER_ADDR and MASTER_PORT are the agent's server's, and TORCHELASTIC_USE_AGENT_STORE says that it
is there. Workers that say shm:// find the same keys without it: SHMSTORE_JOB is the segment's name, in the environment
of the agent, which they inherit.

Torch's own state machine, heartbeats and all, decides who is in a round (DynamicRendezvousHandler); here is only where
its state lies and what a round gets.
"""

from __future__ import annotations

import os
import re
import secrets
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

from shmstore._job import NAME_VARIABLE, PORT_VARIABLE
from shmstore._names import check_name, listed
from shmstore.errors import StoreError
from shmstore.shm import ShmStore, sweep
from shmstore.tcp.server import TCPStoreServer
from shmstore.torch.store import C10dStore

__all__ = ["ShmRendezvousBackend", "ShmRendezvousHandler", "create_handler"]

HOST: Final = "127.0.0.1"
READ_TIMEOUT_S: Final = 60
NAME_KEY: Final = "shmstore/job"
ROUNDS_MAX: Final = 999_999
"""For the length of names; no job restarts that often."""


class ShmRendezvousBackend(C10dRendezvousBackend):
    """Torch's rendezvous state under a key of a store; tokens, conflicts and corrupt state as with torch's c10d.

    Args:
        store: a C10dStore.
        run_id: the job.
    """

    @property
    def name(self) -> str:
        """What --rdzv-backend says."""
        return "shm"


class ShmRendezvousHandler(DynamicRendezvousHandler):
    """The rendezvous of a job's agents on one host: torch's, with its state and its workers' store in segments."""

    _agents: C10dStore
    _segment: dict[str, Any]
    _round: tuple[ShmStore, TCPStoreServer] | None = None

    @property
    def use_agent_store(self) -> bool:
        """True: workers are told to use the server of their agent."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Blocks until this agent is in a round; serves the round's segment to this agent's workers from then on.

        The segment of the round before is closed first: workers that are left of it lose their store.

        Raises:
            Torch's rendezvous errors; RendezvousConnectionError also where the round's segment cannot be had.
        """
        self._leave_round()
        self._shared_tcp_store_server = self._bootstrap_store_info = None  # as in the first round: torch keeps them
        try:
            info = super().next_rendezvous()
            if info.rank == 0:
                name = self._make_round()[0].name
                info.store.set(NAME_KEY, name)
            else:
                name = info.store.get(NAME_KEY).decode()
                self._round = _served(ShmStore(name, create=False, timeout=self._agents.timeout))
        except (StoreError, OSError) as error:
            self._leave_round()
            raise RendezvousConnectionError(f"no segment for the workers of {self.get_run_id()!r}: {error}") from error
        assert self._round is not None
        os.environ[NAME_VARIABLE], os.environ[PORT_VARIABLE] = name, str(self._round[1].port)
        return RendezvousInfo(info.store, info.rank, info.world_size, RendezvousStoreInfo(HOST, self._round[1].port))

    def _create_tcp_store_server(self, master_addr: str, master_port: int) -> TCPStoreServer:  # noqa: ARG002 -- torch's
        """Torch's hook, for rank 0 of a round, unless its environment says that stores are not shared."""
        return self._make_round()[1]

    def _make_round(self) -> tuple[ShmStore, TCPStoreServer]:
        """Rank 0's: the round's segment, made and served, if it is not yet."""
        if self._round is None:
            name = _round_of(self.get_run_id(), self._state_holder.state.round)
            self._round = _served(ShmStore(name, create=True, timeout=self._agents.timeout, **self._segment))
        return self._round

    def shutdown(self) -> bool:
        """Closes the rendezvous for all agents of the job, then the segments and the server. Idempotent."""
        done = bool(super().shutdown())
        self._leave_round()
        self._agents.close()
        _sweep(self.get_run_id())
        return done

    def _leave_round(self) -> None:
        if self._round is not None:
            store, server = self._round
            self._round = None
            if os.environ.get(NAME_VARIABLE) == store.name:
                del os.environ[NAME_VARIABLE], os.environ[PORT_VARIABLE]
            server.close(drain=0)
            store.close()


def create_handler(parameters: RendezvousParameters) -> ShmRendezvousHandler:
    """Makes the rendezvous that torchrun's arguments ask for.

    Args:
        parameters: torch's. Of --rdzv-conf: `capacity` (bytes) and `sync` ("futex" or "semaphore") of the segments,
            `read_timeout` (60 s) of the agents' store, and torch's own for its dynamic rendezvous, with its defaults:
            join_timeout, last_call_timeout, close_timeout, heartbeat_timeout, keep_alive_interval,
            keep_alive_max_attempt.

    Raises:
        ValueError: an endpoint, which there is none of; a value that is none. RendezvousConnectionError: the agents'
            segment cannot be had, or is another user's.
    """
    if parameters.endpoint:
        raise ValueError(
            f"--rdzv-endpoint={parameters.endpoint}: the shm backend has no endpoint; the agents of a job are on one "
            "host, and find each other by --rdzv-id"
        )
    whole = {option: parameters.get_as_int(option) for option in ("capacity",) if option in parameters.config}
    segment = {**whole, **({"sync": parameters.get("sync")} if "sync" in parameters.config else {})}
    spans = {name: _seconds(parameters, f"{name}_timeout") for name in ("join", "last_call", "close", "heartbeat")}
    read_timeout = parameters.get_as_int("read_timeout", READ_TIMEOUT_S)
    check_name(_round_of(parameters.run_id, ROUNDS_MAX))
    _sweep(parameters.run_id)
    try:
        agents = C10dStore(ShmStore(_segment_of(parameters.run_id), timeout=read_timeout, **segment))
    except (StoreError, OSError) as error:
        raise RendezvousConnectionError(f"the agents' segment cannot be had: {error}") from error
    try:
        handler = ShmRendezvousHandler.from_backend(
            parameters.run_id,
            agents,
            ShmRendezvousBackend(agents, parameters.run_id),
            parameters.min_nodes,
            parameters.max_nodes,
            parameters.local_addr,
            RendezvousTimeout(**spans),
            keep_alive_interval=parameters.get_as_int("keep_alive_interval", 5),
            keep_alive_max_attempt=parameters.get_as_int("keep_alive_max_attempt", 3),
        )
    except BaseException:
        agents.close()
        raise
    handler._agents, handler._segment = agents, segment  # noqa: SLF001 -- torch's constructor takes no more
    return handler


def _served(store: ShmStore) -> tuple[ShmStore, TCPStoreServer]:
    try:
        return store, TCPStoreServer(store, HOST)
    except BaseException:
        store.close()
        raise


def _segment_of(run_id: str) -> str:
    return f"torchrun.{quote(run_id, safe='')}"


def _round_of(run_id: str, number: int) -> str:
    return f"{_segment_of(run_id)}.{number}.{secrets.token_hex(4)}"


def _sweep(run_id: str) -> None:
    """Removes what killed agents left of rounds of this job."""
    mine = re.compile(re.escape(_segment_of(run_id)) + r"\.\d+\.[0-9a-f]{8}")
    sweep(filter(mine.fullmatch, listed()))


def _seconds(parameters: RendezvousParameters, option: str) -> timedelta | None:
    value = parameters.get_as_int(option)
    return None if value is None else timedelta(seconds=value)
