"""An event's arguments, for the projections. Each raises KeyError, TypeError or ValueError for what is not
ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from dfl_ledger.records import Cid


def int_arg(args: Mapping[str, object], name: str) -> int:
    value = args[name]
    if not isinstance(value, int):
        raise TypeError(f"{name} is not a number")
    return value


def number_arg(args: Mapping[str, object], name: str) -> str:
    """A number that may exceed the 63 bits of SQLite's integers."""
    return str(int_arg(args, name))


def text_arg(args: Mapping[str, object], name: str) -> str:
    value = args[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a string")
    return value


def bytes_arg(args: Mapping[str, object], name: str) -> bytes:
    return bytes.fromhex(text_arg(args, name).removeprefix("0x"))


def list_arg(args: Mapping[str, object], name: str, kind: type) -> list[object]:
    value = args[name]
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise TypeError(f"{name} is not a list of {kind.__name__}")
    return value


def cid_arg(args: Mapping[str, object], name: str) -> str:
    return _cid_text(text_arg(args, name))


@lru_cache(maxsize=1024)
def _cid_text(digest: str) -> str:
    """Base32 is slow, and all of a round name the same parent."""
    return str(Cid.from_digest(bytes.fromhex(digest.removeprefix("0x"))))


def round_arg(args: Mapping[str, object]) -> tuple[int, int]:
    return int_arg(args, "job"), int_arg(args, "round")
