"""Canonical bytes of our records: strict DAG-CBOR (https://ipld.io/specs/codecs/dag-cbor/spec/).

The one place where records become bytes. Equal values always have equal bytes, hence equal CIDs, and bytes
that are not the one canonical encoding of their value are refused. Money and other numbers beyond 64 bits
travel as decimal strings, because DAG-CBOR has no larger integers: see `decimal` and `read_decimal`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import dag_cbor
from multiformats import CID

from dfl_ledger.errors import VerificationFailed
from dfl_ledger.records import DAG_CBOR, DAG_PB, RAW, Cid

MAX_DEPTH = 32  # maps and lists within each other
MAX_LINKS = 10_000  # a link takes the library a tenth of a millisecond
_CODEC_NAMES = {RAW: "raw", DAG_PB: "dag-pb", DAG_CBOR: "dag-cbor"}
_DECIMAL = re.compile(r"0|-?[1-9][0-9]{0,77}", re.ASCII)


def encode(value: Any) -> bytes:
    """None, bool, int (64 bits), finite float, str, bytes, Cid, lists and tuples, maps with string keys.

    A Cid becomes a link (tag 42). Raises ValueError for anything else.
    """
    encoded: bytes = dag_cbor.encode(_to_ipld(value, 0))
    return encoded


def decode(data: bytes, *, max_bytes: int) -> Any:
    """The value of canonical bytes; lists come back as lists, links as Cid.

    Raises VerificationFailed for more than max_bytes, bytes that are not canonical DAG-CBOR, duplicate keys,
    NaN and infinities, more than MAX_DEPTH levels or MAX_LINKS links, and links other than a CIDv1 over
    SHA2-256.
    """
    if len(data) > max_bytes:
        raise VerificationFailed(
            "a record is too large", why=f"{len(data)} bytes, at most {max_bytes} allowed"
        )
    links = 0

    def count_links(value: object, num_bytes_read: int) -> None:
        nonlocal links
        links += isinstance(value, CID)
        if links > MAX_LINKS:
            raise ValueError(f"more than {MAX_LINKS} links")

    try:
        raw = dag_cbor.decode(data, callback=count_links)
        value = _from_ipld(raw, 0)
        canonical = dag_cbor.encode(raw) == data
    except Exception as bad:  # hostile bytes can make the parser stumble in ways that it does not list
        first_line = str(bad).partition("\n")[0]
        raise VerificationFailed("a record is not canonical DAG-CBOR", why=first_line[:200]) from bad
    if not canonical:
        raise VerificationFailed("a record is not canonical DAG-CBOR", why="the same value has other bytes")
    return value


def decimal(number: int) -> str:
    """The one way we write a number that may exceed 64 bits."""
    return str(number)


def read_decimal(text: object) -> int:
    """Back from `decimal`. Raises ValueError for any other spelling and beyond 78 digits (256 bits)."""
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text):
        raise ValueError(f"not a decimal number: {text!r:.60}")
    return int(text)


def _to_ipld(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    match value:
        case None | bool() | bytes():
            return value
        case int():
            if not -(2**64) <= value < 2**64:
                raise ValueError(f"{value} does not fit in 64 bits")
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{value} is not a finite number")
            return value
        case str():
            value.encode()  # a lone surrogate has no UTF-8: UnicodeEncodeError, a ValueError
            return value
        case Cid():
            return CID("base32", 1, _CODEC_NAMES[value.codec], ("sha2-256", value.digest))
        case list() | tuple():
            return [_to_ipld(item, depth + 1) for item in value]
        case Mapping():
            if any(not isinstance(key, str) for key in value):
                raise ValueError("a map key is not a string")
            return {_to_ipld(key, depth): _to_ipld(item, depth + 1) for key, item in value.items()}
        case _:
            raise ValueError(f"DAG-CBOR has no {type(value).__name__}")


def _from_ipld(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    match value:
        case CID():
            cid = Cid.from_bytes(bytes(value))
            if bytes(cid) != bytes(value):  # read as the CIDv1 of the same block, which has other bytes
                raise ValueError("a link to a version 0 CID")
            return cid
        case list():
            return [_from_ipld(item, depth + 1) for item in value]
        case dict():
            return {key: _from_ipld(item, depth + 1) for key, item in value.items()}
        case _:
            return value
