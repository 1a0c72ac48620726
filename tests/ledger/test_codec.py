"""One value, one encoding: what `decode` takes is exactly what `encode` gives."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_ledger import codec
from dfl_ledger.errors import VerificationFailed
from dfl_ledger.records import DAG_CBOR, DAG_PB, RAW, Cid

LIMIT = 1 << 20

cids = st.builds(Cid, st.sampled_from((RAW, DAG_PB, DAG_CBOR)), st.binary(min_size=32, max_size=32))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.binary(max_size=20),
    cids,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(values)
def test_values_come_back(value: Any) -> None:
    data = codec.encode(value)
    assert codec.decode(data, max_bytes=LIMIT) == value
    assert codec.encode(codec.decode(data, max_bytes=LIMIT)) == data


def test_a_link_is_tag_42() -> None:
    cid = Cid.of(b"x", DAG_PB)
    assert codec.encode(cid) == b"\xd8\x2a\x58\x25\x00" + bytes(cid)


def test_known_bytes() -> None:
    """Keys by length, then by bytes; tuples are lists."""
    assert codec.encode({"bb": 1, "a": (True, None)}) == bytes.fromhex("a2616182f5f662626201")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_whatever_decodes_is_canonical(data: bytes) -> None:
    try:
        value = codec.decode(data, max_bytes=LIMIT)
    except VerificationFailed:
        return
    assert codec.encode(value) == data


@settings(max_examples=200, deadline=None)
@given(values, st.data())
def test_a_changed_byte_is_refused_or_another_value(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(codec.encode(value))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        other = codec.decode(bytes(encoded), max_bytes=LIMIT)
    except VerificationFailed:
        return
    assert codec.encode(other) == bytes(encoded)


def _nested(depth: int) -> bytes:
    return b"\x81" * depth + b"\x80"


HOSTILE = {
    "nothing": b"",
    "two values": b"\x01\x01",
    "an integer longer than needed": b"\x18\x01",
    "a string with a length longer than needed": b"\x78\x01a",
    "keys out of order": bytes.fromhex("a2616201616101"),
    "a key twice": bytes.fromhex("a2616101616102"),
    "a key that is no string": b"\xa1\x01\x01",
    "a list without end": b"\x9f\x01\xff",
    "a string in pieces": b"\x7f\x61a\xff",
    "NaN": b"\xfb" + struct.pack(">d", math.nan),
    "infinity": b"\xfb" + struct.pack(">d", math.inf),
    "a short float": b"\xf9\x3c\x00",
    "undefined": b"\xf7",
    "another tag": b"\xc1\x01",
    "a list of 2^64 - 1": b"\x9b" + b"\xff" * 8,
    "a string of 2^64 - 1 bytes": b"\x7b" + b"\xff" * 8,
    "bytes of 2^63 - 1": b"\x5b\x7f" + b"\xff" * 7,
    "not UTF-8": b"\x61\xff",
    "an empty link": b"\xd8\x2a\x40",
    "a link without its zero byte": b"\xd8\x2a\x58\x24" + bytes(Cid.of(b"x")),
    "a link to another hash": b"\xd8\x2a\x58\x19\x00\x01\x55\x11\x14" + bytes(20),
    "a link that is text": b"\xd8\x2a\x61a",
    "deeper than anything of ours": _nested(codec.MAX_DEPTH + 1),
    "deeper than the stack": _nested(100_000),
    "cut short": codec.encode({"a": [1, 2, 3]})[:-1],
    "a version 0 link": b"\xd8\x2a\x58\x23\x00\x12\x20" + bytes(32),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused(name: str) -> None:
    with pytest.raises(VerificationFailed, match="canonical") as refused:
        codec.decode(HOSTILE[name], max_bytes=LIMIT)
    assert len(refused.value.why) <= 200


def test_size_is_checked_first() -> None:
    with pytest.raises(VerificationFailed, match="too large"):
        codec.decode(b"\x00" * 11, max_bytes=10)


def test_depth_at_the_limit_is_fine() -> None:
    assert codec.decode(_nested(codec.MAX_DEPTH), max_bytes=LIMIT)


def test_more_links_than_we_have_time_for() -> None:
    link = codec.encode(Cid.of(b"x"))
    count = codec.MAX_LINKS + 1
    with pytest.raises(VerificationFailed, match="links"):
        codec.decode(b"\x99" + struct.pack(">H", count) + link * count, max_bytes=LIMIT)


@pytest.mark.parametrize(
    "value",
    [2**64, -(2**64) - 1, math.nan, math.inf, {1: 2}, {"a": ...}, {1, 2}, "\ud800", {"\ud800": 1}],
    ids=repr,
)
def test_what_has_no_encoding_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        codec.encode(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="levels"):
        codec.encode(value)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**127), 2**256 - 1))
def test_large_numbers_as_text(number: int) -> None:
    assert codec.read_decimal(codec.decimal(number)) == number


@pytest.mark.parametrize(
    "text", ["", "-0", "01", "+1", " 1", "1 ", "1_0", "1.0", "1e3", "٣", "9" * 79, 1, None]
)
def test_one_spelling_for_each_number(text: object) -> None:
    with pytest.raises(ValueError, match="not a decimal number"):
        codec.read_decimal(text)
