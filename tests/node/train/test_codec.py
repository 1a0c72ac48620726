"""The byte form of a state, against the safetensors library and against files made to hurt."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_ledger.errors import UpdateRefused
from dfl_node.train import codec, tensors
from dfl_node.train.codec import Schema, TensorSpec
from tests.conformance.trainer import HOSTILE, join, split

SCHEMA = Schema(
    (TensorSpec("a.bias", (3,), "F32"), TensorSpec("a.weight", (2, 3), "F32"), TensorSpec("b", (), "F32"))
)
LIMIT = 1 << 20


def state() -> tensors.State:
    return {
        "a.bias": np.array([1, -2, 3], np.float32),
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(0.5, np.float32),
    }


def good() -> bytes:
    return tensors.encode(state(), SCHEMA)


def test_round_trip() -> None:
    decoded = tensors.decode(good(), SCHEMA, max_bytes=LIMIT)
    assert decoded.keys() == state().keys()
    assert all(np.array_equal(decoded[name], tensor) for name, tensor in state().items())
    assert not decoded["a.bias"].flags.writeable
    assert len(good()) == SCHEMA.file_bytes


def test_bytes_are_those_of_the_safetensors_library() -> None:
    """So that anybody's tools read our files, and write files we take."""
    assert good() == safetensors.numpy.save(state(), metadata={"format": "pt"})
    read = safetensors.numpy.load(good())
    assert all(np.array_equal(read[name], tensor) for name, tensor in state().items())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(name: str) -> None:
    spoil, why = HOSTILE[name]
    bad = spoil(good())
    tracemalloc.start()
    try:
        with pytest.raises(UpdateRefused, match="model file refused") as caught:
            tensors.decode(bad, SCHEMA, max_bytes=LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert why in caught.value.why
    assert caught.value.exit_code == 6
    assert peak < 8 << 20, "memory taken for a file that is refused"


def test_dense_headers_below_the_cap_are_told_quickly() -> None:
    """A megabyte of tiny entries: parsed once, to say what is wrong."""
    entries = b",".join(b'"%d":{}' % i for i in range(80_000))
    with pytest.raises(UpdateRefused, match="metadata"):
        tensors.decode(join(b"{" + entries + b"}", b""), SCHEMA, max_bytes=2 << 20)


def test_magnitude_is_bounded_where_asked() -> None:
    big = tensors.encode({**state(), "b": np.array(-2e6, np.float32)}, SCHEMA)
    assert tensors.decode(big, SCHEMA, max_bytes=LIMIT)["b"] == -2e6
    with pytest.raises(UpdateRefused, match=r"holds 2e\+06, beyond 1e\+06"):
        tensors.decode(big, SCHEMA, max_bytes=LIMIT, max_abs=codec.MAX_DELTA)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_but_finite_numbers_is_written(value: float) -> None:
    with pytest.raises(UpdateRefused):
        tensors.encode({**state(), "b": np.array(value, np.float32)}, SCHEMA)


def test_other_shapes_are_not_written() -> None:
    with pytest.raises(UpdateRefused, match="shape"):
        tensors.encode({**state(), "a.bias": np.zeros(4, np.float32)}, SCHEMA)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: good()[:-30] + tail))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_the_state_or_refused(data: bytes) -> None:
    try:
        decoded = tensors.decode(data, SCHEMA, max_bytes=LIMIT)
    except UpdateRefused:
        return
    assert tensors.encode(decoded, SCHEMA) == data  # one state, one byte form


@given(st.integers(0, len(good()) - 1), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_flipped_byte_is_a_number_or_a_refusal(place: int, flip: int) -> None:
    bad = bytearray(good())
    bad[place] ^= flip
    header_bytes = len(codec.header(SCHEMA))
    try:
        tensors.decode(bytes(bad), SCHEMA, max_bytes=LIMIT)
    except UpdateRefused:
        return
    assert place >= header_bytes


def test_a_pickle_is_not_mistaken_for_a_header_of_its_length() -> None:
    """Byte pairs 80 02 to 80 05 begin pickles, and headers of 640 to 1,408 bytes."""
    header, payload = split(good())
    text = str(header).encode().ljust(0x280)
    with pytest.raises(UpdateRefused, match="not JSON"):
        tensors.decode(struct.pack("<Q", len(text)) + text + payload, SCHEMA, max_bytes=LIMIT)
