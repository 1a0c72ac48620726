"""What the worker can do with a model at rest, one method an operation; a part of `operations.Operations`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from dfl_node.train import models, strategies, transfer
from dfl_node.train.frames import Frame
from dfl_node.train.requests import base_of, model_of, rule_of

if TYPE_CHECKING:
    from torch import nn

    from dfl_node.train.evaluation import Inputs
    from dfl_node.train.trainer import AggregationConfig, Evaluation, ModelConfig


class ModelOperations:
    """Answers as `Operations` does. `torch` imports it, deterministic; `progress` hears of steps."""

    def __init__(self, torch: Callable[[], None], progress: Callable[[int, float], None]) -> None:
        self._torch = torch
        self._progress = progress
        self.by_name: dict[str, Callable[[Frame], Frame]] = {
            "check": self.check,
            "evaluate": self.evaluate,
            "loss": self.loss,
            "export": self.export,
            "personalize": self.personalize,
        }

    def check(self, request: Frame) -> Frame:
        self._torch()
        from dfl_node.train import network

        network.check(model_of(request), base_of(request))
        return Frame({})

    def evaluate(self, request: Frame) -> Frame:
        """A shared state on rows."""
        from dfl_node.train.trainer import PLAIN

        return Frame(asdict(self._measure(request, PLAIN)))

    def loss(self, request: Frame) -> Frame:
        """A model file on rows."""
        return Frame({"loss": self._measure(request, rule_of(request)).loss})

    def export(self, request: Frame) -> Frame:
        self._torch()
        from dfl_node.train import network, tensors

        model = model_of(request)
        net = self._filled(request, rule_of(request))
        return Frame({}, (tensors.encode(network.merged(net, model), models.full_schema(model)),))

    def personalize(self, request: Frame) -> Frame:
        self._torch()
        from dfl_node.train import evaluation, fitting, network, tensors

        model = transfer.plain(model_of(request))
        schema = models.full_schema(model)
        parameters, data = request.payloads
        net = network.start(model, None)
        evaluation.set_state(net, tensors.decode(parameters, schema, max_bytes=schema.file_bytes))
        fields = request.header
        before, after = fitting.personalize(
            net,
            _inputs(data, model),
            steps=fields["steps"],
            lr=fields["lr"],
            patterns=fields["patterns"],
            seed=fields["seed"],
            progress=self._progress,
        )
        fitted = tensors.encode(evaluation.get_state(net), schema)
        return Frame({"before": asdict(before), "after": asdict(after)}, (fitted,))

    def _measure(self, request: Frame, rule: AggregationConfig) -> Evaluation:
        self._torch()
        from dfl_node.train import fitting, network

        net = self._filled(request, rule)
        inputs = _inputs(request.payloads[1], model_of(request))
        return fitting.measure(net, network.copy(net, network.parts(net, model_of(request)).personal), inputs)

    def _filled(self, request: Frame, rule: AggregationConfig) -> nn.Module:
        """The model with the shared state of the first payload, a model file."""
        from dfl_node.train import aggregation, evaluation, network, tensors

        model = model_of(request)
        layout = strategies.model_file(models.schema(model), rule)
        file = tensors.decode(request.payloads[0], layout, max_bytes=layout.file_bytes)
        net = network.start(model, base_of(request))
        evaluation.set_state(net, aggregation.shared_part(file))
        return net


def _inputs(data: bytes, model: ModelConfig) -> Inputs:
    from dfl_node.train.evaluation import inputs_of
    from dfl_node.train.rows import read_npz

    return inputs_of(read_npz(data), models.kind(model))
