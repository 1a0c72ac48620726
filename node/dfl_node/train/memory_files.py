"""The twin's states: lists of numbers, and the same bytes for them as anywhere."""

from __future__ import annotations

import math
from array import array

from dfl_node.train import codec
from dfl_node.train.codec import Schema

Numbers = list[float]
Tensors = dict[str, Numbers]  # by name, flat


def sizes(schema: Schema) -> dict[str, int]:
    """How many numbers each tensor holds."""
    return {tensor.name: math.prod(tensor.shape) for tensor in schema.tensors}


def rounded(tensors: Tensors) -> Tensors:
    """To float32, as a file has them."""
    return {name: list(array("f", numbers)) for name, numbers in tensors.items()}


def encode(tensors: Tensors, layout: Schema) -> bytes:
    numbers = [number for tensor in layout.tensors for number in tensors[tensor.name]]
    return codec.header(layout) + array("f", numbers).tobytes()


def decode(data: bytes, layout: Schema, max_bytes: int, max_abs: float = math.inf) -> Tensors:
    """Raises UpdateRefused."""
    numbers = list(array("f", bytes(codec.check_layout(data, layout, max_bytes=max_bytes))))
    if any(map(math.isnan, numbers)):
        raise codec.refusal("a tensor holds NaN")
    if any(map(math.isinf, numbers)):
        raise codec.refusal("a tensor holds Inf")
    if (worst := max(map(abs, numbers), default=0.0)) > max_abs:
        raise codec.refusal(f"a tensor holds {worst:g}, beyond {max_abs:g}")
    left = iter(numbers)
    return {name: [next(left) for _ in range(size)] for name, size in sizes(layout).items()}
