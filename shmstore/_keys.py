"""Keys, values and numbers as people give them: bytes as the core takes them, and what is refused, for all stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from shmstore._native import lib

Key: TypeAlias = str | bytes
"""str is UTF-8 (what list_keys escaped is restored); 1 to 8191 bytes, any content."""

Value: TypeAlias = str | bytes | bytearray | memoryview
"""str is UTF-8; up to 8 MiB, any content, also none."""

Keys: TypeAlias = Sequence[str | bytes]
"""A list or a tuple of keys. A str is refused: its letters would be taken for keys."""

Values: TypeAlias = Sequence[str | bytes | bytearray | memoryview]
"""A list or a tuple of values."""

KEY_MAX: Final = lib.SST_KEY_MAX
VALUE_MAX: Final = lib.SST_VALUE_MAX
WORLD_MAX: Final = 2**32 - 1
SHOWN: Final = 200


def key_bytes(key: Key) -> bytes:
    """The key's bytes.

    Raises:
        TypeError: neither str nor bytes. ValueError: empty, longer than 8191 bytes, or not to be encoded.
    """
    if isinstance(key, str):
        raw = key.encode("utf-8", "surrogateescape")
    elif isinstance(key, bytes):
        raw = key
    else:
        raise TypeError(f"a key must be str or bytes, not {type(key).__name__}")
    if not 1 <= len(raw) <= KEY_MAX:
        raise ValueError(f"a key has 1 to {KEY_MAX} bytes, this one has {len(raw)}")
    return raw


def key_text(raw: bytes) -> str:
    """The key as str; bytes that are not UTF-8 are surrogate-escaped, so that `key_bytes` gives them back."""
    return raw.decode("utf-8", "surrogateescape")


def shown(raw: bytes) -> str:
    """The key for a message: quoted, and cut where nobody would read on."""
    text = repr(key_text(raw[:SHOWN]))
    return text if len(raw) <= SHOWN else f"{text}… ({len(raw)} bytes)"


def value_bytes(value: Value) -> bytes:
    """The value's bytes; `bytes` are not copied.

    Raises:
        TypeError: neither str, bytes, bytearray nor memoryview. ValueError: longer than 8 MiB.
    """
    if isinstance(value, bytes):
        raw, size = value, len(value)
    elif isinstance(value, str):
        raw = value.encode()
        size = len(raw)
    elif isinstance(value, bytearray | memoryview):
        size = memoryview(value).nbytes
        raw = bytes(value) if size <= VALUE_MAX else b""
    else:
        raise TypeError(f"a value must be str, bytes, bytearray or memoryview, not {type(value).__name__}")
    if size > VALUE_MAX:
        raise ValueError(f"a value has at most {VALUE_MAX} bytes, this one has {size}")
    return raw


def check_sequence(things: object, what: str) -> None:
    """TypeError unless `things` is a list or a tuple."""
    if not isinstance(things, list | tuple):
        raise TypeError(f"{what} must be a list or a tuple, not {type(things).__name__}")


def keys_bytes(keys: Keys) -> list[bytes]:
    """The bytes of each key. Raises as `key_bytes`, and TypeError when `keys` is neither list nor tuple."""
    check_sequence(keys, "keys")
    return [key_bytes(key) for key in keys]


def pairs_bytes(keys: Keys, values: Values) -> dict[bytes, bytes]:
    """Keys and values side by side; of a key given twice the last value stays.

    Raises:
        TypeError, ValueError: as `keys_bytes` and `value_bytes`; ValueError for unequal lengths.
    """
    raws = keys_bytes(keys)
    check_sequence(values, "values")
    if len(raws) != len(values):
        raise ValueError(f"as many values as keys: {len(raws)} keys, {len(values)} values")
    return dict(zip(raws, [value_bytes(value) for value in values], strict=True))


def check_int(value: object, what: str) -> None:
    """TypeError unless `value` is an int, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")


def check_addend(raw: bytes, n: int) -> None:
    """TypeError, ValueError: nothing that `add` can add to a key. A bool is an int, as in c10d."""
    if not isinstance(n, int):
        raise TypeError(f"add({shown(raw)}): n must be an int, not {type(n).__name__}")
    if not -(2**63) <= n < 2**63:
        raise ValueError(f"add({shown(raw)}): n must be an int64, got {n}")


def check_world_size(world_size: int) -> None:
    """TypeError, ValueError: no number of processes that c10d's protocol can say."""
    check_int(world_size, "world_size")
    if not 1 <= world_size <= WORLD_MAX:
        raise ValueError(f"world_size must be 1 to {WORLD_MAX}, got {world_size}")
