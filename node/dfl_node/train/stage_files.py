"""A stage's snapshot as bytes: the layout half, without numpy, for the trainer's node side and the twin.

A snapshot has one byte form, like every file of ours (`codec.py`): the stage's part of the shared state under
its full names, `optimizer.<what>.<name>` for each of these, and two float64, `stage` and `step`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dfl_ledger.errors import UpdateRefused
from dfl_node.train.codec import MAX_HEADER_BYTES, Schema, TensorSpec, check_layout, header, refusal
from dfl_node.train.stage import OPTIMIZER_SLOTS

MAX_STEPS = 1 << 32
NUMBERS = ("stage", "step")  # of a snapshot, beside its tensors
_NUMBER = struct.Struct("<d")
_ADAMW_MARK = b'"optimizer.first.'


@dataclass(frozen=True, slots=True)
class StageLayout:
    """What one stage holds of the shared state."""

    tensors: tuple[TensorSpec, ...]  # by name; its optimizer steps all of them


@dataclass(frozen=True, slots=True)
class Snapshot:
    stage: int
    steps: int
    tensors: Mapping[str, memoryview]  # weights and optimizer state; the numbers are unchecked


def snapshot_schema(layout: StageLayout, optimizer: str) -> Schema:
    slots = [
        TensorSpec(f"optimizer.{slot}.{tensor.name}", tensor.shape, tensor.dtype)
        for slot in OPTIMIZER_SLOTS[optimizer]
        for tensor in layout.tensors
    ]
    numbers = [TensorSpec(name, (1,), "F64") for name in NUMBERS]
    return Schema(tuple(sorted([*layout.tensors, *slots, *numbers], key=lambda tensor: tensor.name)))


def write_snapshot(
    layout: StageLayout, optimizer: str, stage: int, steps: int, tensors: Mapping[str, bytes]
) -> bytes:
    numbers = {"stage": _NUMBER.pack(stage), "step": _NUMBER.pack(steps)}
    return join(snapshot_schema(layout, optimizer), {**tensors, **numbers})


def read_snapshot(data: bytes, layouts: Sequence[StageLayout], stage: int, optimizer: str) -> Snapshot:
    """Raises UpdateRefused unless this is laid out as a snapshot of that stage."""
    schema = snapshot_schema(layouts[stage], optimizer)
    tensors = cut(data, schema, max_bytes=schema.file_bytes)
    found, steps = [_whole(name, tensors.pop(name)) for name in NUMBERS]
    if found != stage:  # stages of which everything is fixed look alike
        raise refusal(f"a snapshot of stage {found}, not {stage}")
    return Snapshot(stage, steps, tensors)


def find_snapshot(data: bytes, layouts: Sequence[StageLayout]) -> Snapshot:
    """As `read_snapshot`, of any stage and optimizer."""
    optimizer = optimizer_of(data)
    problem: UpdateRefused | None = None
    for stage, layout in enumerate(layouts):
        if data.startswith(header(snapshot_schema(layout, optimizer))):
            try:
                return read_snapshot(data, layouts, stage, optimizer)
            except UpdateRefused as refused:
                problem = refused
    if problem is not None:
        raise problem
    return read_snapshot(data, layouts, 0, optimizer)  # which tells what is wrong


def optimizer_of(data: bytes) -> str:
    """Whose state such a file says it holds."""
    return "adamw" if _ADAMW_MARK in data[:MAX_HEADER_BYTES] else "sgd"


def cut(data: bytes, schema: Schema, *, max_bytes: int) -> dict[str, memoryview]:
    """The tensors' bytes as views of a file. Raises UpdateRefused for any other layout."""
    payload = check_layout(data, schema, max_bytes=max_bytes)
    tensors, start = {}, 0
    for tensor in schema.tensors:
        tensors[tensor.name] = payload[start : start + tensor.size]
        start += tensor.size
    return tensors


def join(schema: Schema, tensors: Mapping[str, bytes | memoryview]) -> bytes:
    return b"".join([header(schema), *(tensors[tensor.name] for tensor in schema.tensors)])


def stack(
    schema: Schema, tensors: Mapping[str, bytes | memoryview], steps: Sequence[int], *, max_update_bytes: int
) -> bytes:
    """The shared-state file of all stages' tensors. Raises UpdateRefused for too large a file, or
    stages that are not of one step."""
    for stage, done in enumerate(steps):
        if done != steps[0]:
            raise blame(stage, refusal(f"it has done {done} steps, stage 0 {steps[0]}"))
    if schema.file_bytes > max_update_bytes:
        raise refusal(f"{schema.file_bytes} bytes, more than the {max_update_bytes} allowed")
    return join(schema, tensors)


def blame(stage: int, refused: UpdateRefused) -> UpdateRefused:
    return UpdateRefused(f"the snapshot of stage {stage} was refused", why=refused.why)


def _whole(name: str, number: memoryview) -> int:
    (value,) = _NUMBER.unpack(number)
    if not (0 <= value <= MAX_STEPS and value == int(value)):  # NaN is not within bounds
        raise refusal(f"tensor {name!r} holds {value:g}, no whole number from 0 to {MAX_STEPS}")
    return int(value)
