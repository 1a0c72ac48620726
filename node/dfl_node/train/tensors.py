"""State <-> safetensors bytes, the numbers: finite, within bounds, one byte form for each state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfl_node.train.codec import Schema, check_layout, header, refusal

Array = NDArray[np.floating]
State = dict[str, Array]

_DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


def decode(data: bytes, schema: Schema, *, max_bytes: int, max_abs: float | None = None) -> State:
    """The tensors as read-only views of `data`, which is not copied. Raises UpdateRefused."""
    payload = check_layout(data, schema, max_bytes=max_bytes)
    state: State = {}
    start = 0
    for spec in schema.tensors:
        tensor = np.frombuffer(payload[start : start + spec.size], _DTYPES[spec.dtype]).reshape(spec.shape)
        check_numbers(spec.name, tensor, max_abs)
        state[spec.name] = tensor
        start += spec.size
    return state


def scaled(state: State, factor: float) -> State:
    """Times a factor, in float64; the state itself for 1."""
    return state if factor == 1 else {name: t.astype(np.float64) * factor for name, t in state.items()}


def encode(state: Mapping[str, Array], schema: Schema) -> bytes:
    """The one byte form of a state. Raises UpdateRefused for NaN and Inf: such a state must not travel."""
    parts: list[bytes | memoryview] = [header(schema)]
    for spec in schema.tensors:
        tensor = np.asarray(state[spec.name], _DTYPES[spec.dtype], order="C")
        if tensor.shape != spec.shape:
            raise refusal(f"tensor {spec.name!r} has shape {list(tensor.shape)}, not {list(spec.shape)}")
        check_numbers(spec.name, tensor)
        parts.append(tensor.reshape(-1).view(np.uint8).data)  # no copy: the whole may be large
    return b"".join(parts)


def check_numbers(name: str, tensor: Array, max_abs: float | None = None) -> None:
    """Raises UpdateRefused for NaN, Inf, and what is beyond a bound."""
    if not tensor.size:
        return
    low, high = tensor.min(), tensor.max()  # NaN if any element is
    if np.isnan(low) or np.isnan(high):
        raise refusal(f"tensor {name!r} holds NaN")
    if np.isinf(low) or np.isinf(high):
        raise refusal(f"tensor {name!r} holds Inf")
    if max_abs is not None and max(-float(low), float(high)) > max_abs:
        raise refusal(f"tensor {name!r} holds {max(-float(low), float(high)):g}, beyond {max_abs:g}")
