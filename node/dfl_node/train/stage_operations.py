"""What the worker can do for mode pipeline, one method an operation; a part of `operations.Operations`.

Stages are held by session number: a number unknown here belonged to another worker, and the answer is `lost`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dfl_node.train import models
from dfl_node.train.frames import Frame
from dfl_node.train.requests import base_of, data_of, model_of
from dfl_node.train.stage import Array, StageConfig
from dfl_node.train.trainer import DataConfig, ModelConfig, TrainingConfig

if TYPE_CHECKING:
    from dfl_node.train.evaluation import Inputs
    from dfl_node.train.stages import HeldStage, Piece

LOST = Frame({"lost": True})


class StageOperations:
    """Answers as `Operations` does. `torch` imports it, deterministic; `inputs` are a node's rows."""

    def __init__(
        self,
        torch: Callable[[], None],
        inputs: Callable[[DataConfig, ModelConfig], Inputs],
    ) -> None:
        self._torch = torch
        self._node_inputs = inputs
        self._held: dict[int, HeldStage] = {}
        self._last_layouts: tuple[tuple[ModelConfig, list[str]], dict[str, Any]] | None = None
        self._last_split: tuple[tuple[ModelConfig, list[str], int], list[Piece]] | None = None
        self.by_name: dict[str, Callable[[Frame], Frame]] = {
            "stage_costs": self.costs,
            "stage_layouts": self.layouts,
            "stage_open": self.open,
            "stage_fill": self.fill,
            "stage_take": self.take,
            "stage_forward": self.forward,
            "stage_backward": self.backward,
            "stage_last": self.last,
            "stage_step": self.step,
            "stage_close": self.close,
            "stage_numbers": self.numbers,
            "feed_batch": self.batch,
        }

    def costs(self, request: Frame) -> Frame:
        self._torch()
        from dfl_node.train import stages

        return Frame({"costs": [asdict(cost) for cost in stages.segment_costs(model_of(request))]})

    def layouts(self, request: Frame) -> Frame:
        """The tensors of the shared state, and the names of all that each stage holds."""
        self._torch()
        model, cuts = model_of(request), request.header["cuts"]
        if self._last_layouts is None or self._last_layouts[0] != (model, cuts):
            pieces = self._split(model, cuts, request.header["rows"])
            header = {
                "shared": [(spec.name, spec.shape, spec.dtype) for spec in models.schema(model).tensors],
                "stages": [sorted(piece.module.state_dict()) for piece in pieces],
            }
            self._last_layouts = (model, cuts), header
        return Frame(dict(self._last_layouts[1]))

    def open(self, request: Frame) -> Frame:
        """A stage whose shared tensors are still to be filled."""
        self._torch()
        from dfl_node.train import stages

        fields = request.header
        config = StageConfig(
            model_of(request),
            TrainingConfig(**fields["training"]),
            tuple(fields["cuts"]),
            fields["index"],
            fields["micro_batches"],
            fields["rows"],
        )
        piece = self._split(config.model, fields["cuts"], config.rows)[config.index]
        self._last_split = None  # the stage takes it
        stage = stages.HeldStage(config, piece, fields["steps"])
        stage.fill_fixed(base_of(request))
        self._held[fields["session"]] = stage
        return Frame({})

    def fill(self, request: Frame) -> Frame:
        if (stage := self._stage(request)) is None:
            return LOST
        stage.fill(request.header["name"], request.payloads[0])
        return Frame({})

    def take(self, request: Frame) -> Frame:
        if (stage := self._stage(request)) is None:
            return LOST
        return Frame({}, (stage.take(request.header["name"]),))

    def forward(self, request: Frame) -> Frame:
        if (stage := self._stage(request)) is None:
            return LOST
        return _answer(stage.forward(request.header["micro"], _array(request)))

    def backward(self, request: Frame) -> Frame:
        if (stage := self._stage(request)) is None:
            return LOST
        return _answer(stage.backward(request.header["micro"], _array(request)))

    def last(self, request: Frame) -> Frame:
        if (stage := self._stage(request)) is None:
            return LOST
        loss, gradient = stage.last(request.header["micro"], _array(request), _array(request, 1))
        return _answer(gradient, loss=loss)

    def step(self, request: Frame) -> Frame:
        if (stage := self._stage(request)) is None:
            return LOST
        return Frame({"steps": stage.step()})

    def close(self, request: Frame) -> Frame:
        for session in request.header["sessions"]:
            self._held.pop(session, None)
        gc.collect()  # a module of a graph is full of cycles, and another stage may need its memory now
        return Frame({})

    def numbers(self, request: Frame) -> Frame:
        """Whether a tensor that the worker need not keep is finite."""
        self._torch()
        from dfl_node.train import stages

        stages.check_finite(request.payloads[0], request.header["name"])
        return Frame({})

    def batch(self, request: Frame) -> Frame:
        self._torch()
        from dfl_node.train import stages

        fields = request.header
        x, y = stages.micro_batch(
            self._node_inputs(data_of(fields["data"]), model_of(request)),
            fields["seed"],
            rows=fields["rows"],
            first=(fields["step"] * fields["micro_batches"] + fields["micro"]) * fields["rows"],
        )
        return _answer(x, y)

    def _split(self, model: ModelConfig, cuts: list[str], rows: int) -> list[Piece]:
        """Kept until it is used: tracing takes time, and who asks for the layouts opens a stage next."""
        from dfl_node.train import stages

        if self._last_split is None or self._last_split[0] != (model, cuts, rows):
            pieces = stages.split(model, cuts, rows)
            stages.check_complete(model, cuts, pieces)
            self._last_split = (model, cuts, rows), pieces
        return self._last_split[1]

    def _stage(self, request: Frame) -> HeldStage | None:
        return self._held.get(request.header["session"])


def _array(request: Frame, place: int = 0) -> Array:
    shape, dtype = request.header["arrays"][place]
    return Array(tuple(shape), dtype, request.payloads[place])


def _answer(*arrays: Array | None, **fields: Any) -> Frame:
    there = [array for array in arrays if array is not None]
    return Frame(
        {"arrays": [(array.shape, array.dtype) for array in there], **fields},
        tuple(array.data for array in there),
    )
