"""State <-> safetensors bytes (https://github.com/huggingface/safetensors), the layout half, without numpy.

A state has exactly one byte form: metadata `{"format": "pt"}`, tensors sorted by name, no gaps. So a copied
update cannot be dressed up as another file, and a hostile header is told from the right one by comparing
bytes: it is only parsed, below 1 MiB, to say what is wrong with it. Everything here runs before any memory
is taken for tensors; `dfl_node.train.tensors` checks the numbers.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from typing import Any

from dfl_ledger.errors import UpdateRefused

MAX_HEADER_BYTES = 1 << 20  # a header of 66 MB keeps a JSON parser busy for half a minute
DTYPE_BYTES = {"F16": 2, "F32": 4, "F64": 8}
METADATA = {"format": "pt"}

# No step of training that converges moves a parameter by a thousand, and float32 adds a hundred thousand such
# updates without overflow: beyond this an update can only destroy. Models are bound by float32 alone, so that
# no accepted update can make the next parent unreadable.
MAX_DELTA = 1e6
MAX_WEIGHT = 1 << 53  # samples of an update: whole numbers that float64 holds exactly

_LENGTH = struct.Struct("<Q")

# What people send instead, by its first bytes.
_FORMATS = (
    (b"PK\x03\x04", "a zip file (torch.save or NPZ)"),
    (b"PK\x05\x06", "an empty zip file"),
    (b"\x93NUMPY", "an NPY file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"GGUF", "a GGUF file"),
)
_PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    dtype: str  # a key of DTYPE_BYTES

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Schema:
    """What a state of a model must hold, sorted by name."""

    tensors: tuple[TensorSpec, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def payload_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    @property
    def file_bytes(self) -> int:
        return len(header(self)) + self.payload_bytes


def header(schema: Schema) -> bytes:
    """The one header of this schema, with its length before it."""
    entries: dict[str, Any] = {"__metadata__": METADATA}
    start = 0
    for tensor in schema.tensors:
        end = start + tensor.size
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text


def check_layout(data: bytes, schema: Schema, *, max_bytes: int) -> memoryview:
    """The payload of a file that is laid out exactly as the schema says.

    Raises UpdateRefused, which names the first thing that is wrong.
    """
    if len(data) > max_bytes:
        raise refusal(f"{len(data)} bytes, more than the {max_bytes} allowed")
    expected = header(schema)
    if not data.startswith(expected):
        raise refusal(_what_is_wrong(data, schema))
    payload = memoryview(data)[len(expected) :]
    if len(payload) < schema.payload_bytes:
        raise refusal(f"truncated: {len(payload)} of {schema.payload_bytes} bytes of tensors")
    if len(payload) > schema.payload_bytes:
        raise refusal(f"{len(payload) - schema.payload_bytes} bytes after the last tensor")
    return payload


def check_weight(samples: object) -> None:
    """An update's samples are its weight. Raises UpdateRefused unless they are a whole number above 0."""
    if type(samples) is not int or not 1 <= samples <= MAX_WEIGHT:
        raise refusal(f"it claims {samples!r:.40} samples")


def refusal(why: str) -> UpdateRefused:
    return UpdateRefused("model file refused", why=why)


def _what_is_wrong(data: bytes, schema: Schema) -> str:
    """Why a file does not begin with the schema's header."""
    if not data:
        return "an empty file"
    for magic, name in _FORMATS:
        if data.startswith(magic):
            return f"{name}, not safetensors"
    if data.startswith(_PICKLE_STARTS) and data[8:9] != b"{":
        return "a pickle file, not safetensors"
    if len(data) < _LENGTH.size:
        return f"truncated: {len(data)} bytes"
    (length,) = _LENGTH.unpack_from(data)
    if length > MAX_HEADER_BYTES:
        if data[8:9] == b"{" or length < 1 << 40:
            return f"a header of {length} bytes, more than the {MAX_HEADER_BYTES} allowed"
        return "not safetensors"
    if len(data) < _LENGTH.size + length:
        return f"truncated: {len(data) - _LENGTH.size} of {length} bytes of header"
    try:
        entries = _parse(data[_LENGTH.size : _LENGTH.size + length])
    except _Duplicate as bad:
        return f"duplicate key {bad.args[0]!r:.80} in the header"
    except (ValueError, RecursionError):
        return "not safetensors: the header is not JSON"
    return _compare(entries, schema)


def _parse(text: bytes) -> Any:
    return json.loads(text.decode(), object_pairs_hook=_unique)


class _Duplicate(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Duplicate(key)
        found[key] = value
    return found


def _compare(entries: Any, schema: Schema) -> str:
    """The first difference between a parsed header and the schema, in words."""
    if not isinstance(entries, dict):
        return "not safetensors: the header is not a JSON object"
    if entries.get("__metadata__") != METADATA:
        return f"the metadata is not {json.dumps(METADATA)}"
    wanted = {tensor.name for tensor in schema.tensors}
    for name in entries:
        if name not in wanted and name != "__metadata__":
            return f"tensor {name!r:.80} is not in the model"
    start = 0
    for tensor in schema.tensors:
        entry = entries.get(tensor.name)
        if not isinstance(entry, dict):
            return f"tensor {tensor.name!r} is missing"
        if entry.get("dtype") != tensor.dtype:
            return f"tensor {tensor.name!r} has dtype {entry.get('dtype')!r:.20}, not {tensor.dtype}"
        if entry.get("shape") != list(tensor.shape):
            return f"tensor {tensor.name!r} has shape {entry.get('shape')!r:.80}, not {list(tensor.shape)}"
        if entry.get("data_offsets") != [start, start + tensor.size]:
            return f"tensor {tensor.name!r} is not at its place: the tensors must follow each other by name"
        start += tensor.size
    return "the header is not in its one canonical form"
