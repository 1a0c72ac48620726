"""What flows between stages: tensors, losses, and the end, each a small binary header and raw bytes.

tag u8 | step u32 | micro u32 | then
tensor: dtype u8 | dimensions u8 | sides u32 each | elements, C order
loss:   f64
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from dfl_ledger.errors import VerificationFailed
from dfl_node.train.stage import ARRAY_DTYPE_BYTES, MAX_ARRAY_DIMENSIONS, Array

MAX_FRAME_BYTES = 64 * 2**20  # of one micro-batch between two stages

_HEAD = struct.Struct("<BII")
_KIND = struct.Struct("<BB")
_LOSS = struct.Struct("<d")
_DTYPES = tuple(ARRAY_DTYPE_BYTES)
_TENSOR, _LOSS_TAG, _END = range(3)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A micro-batch's rows, labels, activations or gradients."""

    step: int
    micro: int
    array: Array


@dataclass(frozen=True, slots=True)
class Loss:
    """From the last stage to the feed: a micro-batch's mean loss."""

    step: int
    micro: int
    loss: float


@dataclass(frozen=True, slots=True)
class End:
    """Instead of a step's first micro-batch: the run ends with `step` steps done."""

    step: int


Frame = Tensor | Loss | End


def encode(frame: Frame) -> bytes:
    match frame:
        case Tensor(step, micro, array):
            sides = struct.pack(f"<{len(array.shape)}I", *array.shape)
            kind = _KIND.pack(_DTYPES.index(array.dtype), len(array.shape))
            return b"".join((_HEAD.pack(_TENSOR, step, micro), kind, sides, array.data))
        case Loss(step, micro, loss):
            return _HEAD.pack(_LOSS_TAG, step, micro) + _LOSS.pack(loss)
        case End(step):
            return _HEAD.pack(_END, step, 0)


def decode(data: bytes) -> Frame:
    """Raises VerificationFailed (UpdateRefused from the array itself)."""
    try:
        tag, step, micro = _HEAD.unpack_from(data)
        if tag == _END and len(data) == _HEAD.size:
            return End(step)
        if tag == _LOSS_TAG and len(data) == _HEAD.size + _LOSS.size:
            (loss,) = _LOSS.unpack_from(data, _HEAD.size)
            if not math.isfinite(loss):
                raise ValueError("a loss that is not finite")
            return Loss(step, micro, loss)
        if tag == _TENSOR:
            dtype, dimensions = _KIND.unpack_from(data, _HEAD.size)
            if dtype >= len(_DTYPES) or dimensions > MAX_ARRAY_DIMENSIONS:
                raise ValueError("an array of no known type")
            start = _HEAD.size + _KIND.size
            shape = struct.unpack_from(f"<{dimensions}I", data, start)
            return Tensor(step, micro, Array(shape, _DTYPES[dtype], data[start + 4 * dimensions :]))
    except (struct.error, ValueError) as bad:
        raise VerificationFailed("a frame between stages is malformed", why=str(bad)) from bad
    raise VerificationFailed("a frame between stages is malformed", why=f"tag {tag}, {len(data)} bytes")
