"""connect: a store by its URL, so that a program runs on any of them unchanged.

    shm://NAME?capacity=1073741824      a ShmStore; its keyword arguments are the options
    shm://                              the same, named by the launcher's environment (`_job`), which says the rank too
    hash://                             a HashStore, a new one with each call
    tcp://HOST:PORT                     a TCPStore; rank 0 hosts the server unless is_master says otherwise
    hybrid://HOST:PORT?local_world_size=8   a HybridStore: a segment in each node, and that TCPStore across them
    hybrid://                           the same, as the launcher's environment says

What follows `?` are options, `name=value` with `&` between; the same names may be given as keyword arguments, with
their Python types. `rank` and `world_size` say who the caller is, and are taken with every scheme. Names and values are
percent-decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from shmstore._deadline import DEFAULT
from shmstore._job import Place, job_of, number_of, place_of
from shmstore._keys import check_int
from shmstore.hybrid import HybridStore
from shmstore.shm import HashStore, ShmStore, check_ranks, sweep
from shmstore.store import Store
from shmstore.tcp.client import TCPStore

__all__ = ["Address", "connect", "parse", "segment_of"]

Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Address:
    """A URL taken apart.

    Attributes:
        scheme: before `://`.
        where: between that and `?`, as it was written: percent-encoded.
        options: after it, decoded; of the types that the store takes.
    """

    scheme: str
    where: str
    options: Options


def connect(url: str, **options: Any) -> Store:
    """Opens the store of a URL: `shm://NAME`, `shm://`, `hash://`, `tcp://HOST:PORT`, `hybrid://…`; options after `?`.

    Args:
        url: see the module's text. A text with `%`, `?`, `#`, `&` or `=` in a name is percent-encoded.
        options: as after `?`; what stands in both is refused.

    Blocks as the store's constructor does: a segment only for others that create or leave it, a TCPStore until there is
    a server, and with `world_size` on rank 0 until all are there; a HybridStore until there is a server.

    Of `hybrid://HOST:PORT`, rank and world_size are needed, and local_world_size: how many ranks each node has, in
    order. Without it LOCAL_WORLD_SIZE of the environment says so. `name` is the node's segment; without it the name is
    made of host, port and the node's number.

    Returns:
        A ShmStore, HashStore, TCPStore or HybridStore.

    Raises:
        ValueError: not such a URL, an option that this store does not have, or a value that is none; says which.
        TypeError. What the store's constructor raises.
    """
    address = parse(url)
    twice = sorted(address.options.keys() & options.keys())
    if twice:
        raise ValueError(f"{url!r} has {', '.join(twice)} already: give it once")
    return _OPENERS[address.scheme](address, {**address.options, **options})


def parse(url: str) -> Address:
    """Takes a URL apart.

    Raises:
        ValueError: an unknown scheme or option, a value of the wrong kind, an option given twice. TypeError.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL must be str, not {type(url).__name__}")
    scheme, colon, rest = url.partition("://")
    if not colon or scheme not in _OPENERS:
        raise ValueError(f"a store's URL begins with {_listed(f'{name}://' for name in _OPENERS)}, got {url!r}")
    if "#" in rest:
        raise ValueError(f"a store's URL has no fragment: write %23 for # in {url!r}")
    where, _, query = rest.partition("?")
    known = _OPTIONS[scheme]
    options: Options = {}
    for pair in filter(None, query.split("&")):
        name, equals, text = pair.partition("=")
        name = unquote(name)
        if name not in known:
            raise ValueError(f"{url!r}: {scheme}:// has no option {name!r}; it has {_listed(sorted(known))}")
        if not equals:
            raise ValueError(f"{url!r}: {name} needs a value, {name}=…")
        if name in options:
            raise ValueError(f"{url!r}: {name} is there twice")
        try:
            options[name] = known[name](unquote(text))
        except ValueError as error:
            raise ValueError(f"{url!r}: {name}: {error}") from None
    return Address(scheme, where, options)


def _listed(names: Any) -> str:
    return ", ".join(names)


def segment_of(address: Address) -> tuple[str, Options]:
    """The name of a shm:// URL's segment, and its options; of one without a name, as the launcher's environment says.

    What attempts of that job before this one have left is removed.

    Raises:
        ValueError: no name, and the environment has none.
    """
    if address.where:
        return unquote(address.where), dict(address.options)
    job = job_of()
    sweep(job.before)
    return job.name, {"rank": job.rank, "world_size": job.world_size, **address.options}


# -- values -----------------------------------------------------------------------------------------------------------


def _number(text: str) -> int:
    if not (text.isascii() and text.lstrip("-").isdigit()):
        raise ValueError(f"must be a whole number, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"must be seconds, or inf, got {text!r}")
    return value


def _flag(text: str) -> bool:
    flags = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in flags:
        raise ValueError(f"must be true or false, got {text!r}")
    return flags[text.lower()]


def _mode(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise ValueError(f"must be octal, such as 0600, got {text!r}") from None


_WHO: Final[dict[str, Callable[[str], Any]]] = {"rank": _number, "world_size": _number}
_OPTIONS: Final[dict[str, dict[str, Callable[[str], Any]]]] = {
    "shm": {
        **_WHO,
        "timeout": _seconds,
        "create": _flag,
        "persist": _flag,
        "capacity": _number,
        "mode": _mode,
        "sync": str,
        "watch_peers": _flag,
    },
    "hash": {**_WHO, "timeout": _seconds},
    "tcp": {
        **_WHO,
        "timeout": _seconds,
        "is_master": _flag,
        "wait_for_workers": _flag,
        "multi_tenant": _flag,
        "use_libuv": _flag,
    },
    "hybrid": {
        **_WHO,
        "local_world_size": _number,
        "name": str,
        "timeout": _seconds,
        "is_master": _flag,
        "capacity": _number,
        "mode": _mode,
        "sync": str,
    },
}


# -- stores -----------------------------------------------------------------------------------------------------------


def _shm(address: Address, options: Options) -> Store:
    name, more = segment_of(address)
    return ShmStore(name, **{**more, **options})


def _hash(address: Address, options: Options) -> Store:
    if address.where:
        raise ValueError(f"hash:// has no name, as each is a store of its own: got {address.where!r}")
    _who(options)
    return HashStore(**options)


def _tcp(address: Address, options: Options) -> Store:
    host, port = _host_and_port(address.where)
    rank, world_size = _who(options)
    hosting = {} if rank is None else {"is_master": rank == 0}
    return TCPStore(host, port, **{"world_size": world_size, **hosting, **options})


def _hybrid(address: Address, options: Options) -> Store:
    if not address.where:
        refused = sorted(options.keys() & {"local_world_size", "is_master"})
        if refused:
            raise ValueError(f"hybrid:// takes {_listed(refused)} from the environment: name a host and port, or not")
        place = place_of()
        for what, mine in (("rank", place.rank), ("world_size", place.world_size)):
            if options.pop(what, mine) != mine:
                raise ValueError(f"hybrid://: the environment says {what} {mine}: name a host and port to say another")
        return HybridStore.at(place, **{"timeout": DEFAULT, **options})
    host, port = _host_and_port(address.where, "hybrid")
    rank, world_size = _who(options)
    if rank is None or world_size is None:
        raise ValueError("hybrid://HOST:PORT needs rank and world_size")
    if port == 0:
        raise ValueError("hybrid://HOST:PORT needs a port that all ranks know, got 0")
    local = options.pop("local_world_size", None)
    if local is None:
        local = number_of("LOCAL_WORLD_SIZE")
    check_int(local, "local_world_size")
    if not 1 <= local <= world_size:
        raise ValueError(f"local_world_size must be 1 to {world_size}, got {local}")
    if world_size % local:
        raise ValueError(f"world_size {world_size} is no multiple of local_world_size {local}: nodes are of one size")
    hosts = options.pop("is_master", rank == 0)
    if not isinstance(hosts, bool):
        raise TypeError(f"is_master must be a bool, not {type(hosts).__name__}")
    name = quote(f"hybrid.{host}.{port}.{rank // local}", safe="")
    return HybridStore.at(
        Place(rank, world_size, local, host, port, hosts, "", name), **{"timeout": DEFAULT, **options}
    )


def _who(options: Options) -> tuple[int | None, int | None]:
    """Takes rank and world_size out of the options of a store that registers no ranks."""
    rank, world_size = options.pop("rank", None), options.pop("world_size", None)
    check_ranks(rank, world_size)
    return rank, world_size


def _host_and_port(where: str, scheme: str = "tcp") -> tuple[str, int]:
    try:
        place = urlsplit(f"//{where}")
        host, port = place.hostname, place.port
    except ValueError:  # brackets that do not close, a port that is none
        host = port = None
    if not host or port is None or place.path or "@" in where:
        raise ValueError(
            f"{scheme}:// needs a host and a port, {scheme}://HOST:PORT or {scheme}://[ADDRESS]:PORT, got {where!r}"
        )
    return unquote(host), port


_OPENERS: Final[dict[str, Callable[[Address, Options], Store]]] = {
    "shm": _shm,
    "hash": _hash,
    "tcp": _tcp,
    "hybrid": _hybrid,
}
