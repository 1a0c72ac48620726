"""Stages of a model: split, forward, backward, step. Only the worker imports this: it needs torch.

The split is that of torch.distributed.pipelining, on the meta device: only a stage's own tensors are ever in
memory. What goes between the node and a stage goes tensor by tensor, so that no file has to fit in beside it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dfl_ledger.errors import DflError, SpecInvalid
from dfl_node.train import models, network
from dfl_node.train.codec import refusal
from dfl_node.train.evaluation import Inputs, scaled, set_state
from dfl_node.train.local_sgd import seed_words, trainable
from dfl_node.train.optimizers import optimizer
from dfl_node.train.stage import (
    ARRAY_DTYPE_BYTES,
    Array,
    SegmentCost,
    StageConfig,
    array_refusal,
    check_cuts,
)
from dfl_node.train.trainer import ModelConfig

_NUMPY: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "U8": np.dtype("u1"), "I64": np.dtype("<i8")}
COST_ROWS = 4  # that costs are measured with


@dataclass(frozen=True, slots=True)
class Piece:
    """A stage's module on the meta device, and what goes in and out."""

    module: nn.Module
    takes: tuple[int, ...]  # (rows, …)
    gives: tuple[int, ...]


def split(model: ModelConfig, cuts: Sequence[str], rows: int) -> list[Piece]:
    """The model on the meta device in pieces for micro-batches of so many rows. Raises SpecInvalid."""
    check_cuts(cuts, models.cuts(model))
    net = models.build_meta(model)
    x = torch.empty(rows, *models.kind(model).input_shape, device="meta")
    pieces = []
    for module in _pipeline(net, cuts, x) if cuts else [net]:
        y = module(x)
        if not isinstance(y, Tensor):
            raise _no_split(model, cuts, "more than a tensor passes there")
        pieces.append(Piece(module, tuple(x.shape), tuple(y.shape)))
        x = torch.empty_like(y)
    return pieces


def _pipeline(net: nn.Module, cuts: Sequence[str], x: Tensor) -> list[nn.Module]:
    """1 s and 70 MB for the import, once."""
    with warnings.catch_warnings():
        # torch's own pytree, copied by torch's own pipelining: nothing that anybody here could do about.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        from torch.distributed.pipelining import SplitPoint, pipeline

        pipe = pipeline(net, mb_args=(x,), split_spec=dict.fromkeys(cuts, SplitPoint.BEGINNING))
    return [pipe.get_stage_module(index) for index in range(pipe.num_stages)]


def segment_costs(model: ModelConfig) -> list[SegmentCost]:
    """Of every piece there can be: torch counts on the meta device, where nothing is computed."""
    cuts = models.cuts(model)
    pieces = split(model, cuts, COST_ROWS)
    return [_cost(name, piece) for name, piece in zip(("", *cuts), pieces, strict=True)]


def _cost(name: str, piece: Piece) -> SegmentCost:
    from torch.utils.flop_counter import FlopCounterMode

    own = list(piece.module.parameters())
    kept: dict[int, Tensor] = {}  # by storage: a layer's output and the next one's input are one tensor

    def keep(tensor: Tensor) -> Tensor:
        if not any(tensor is p or tensor._base is p for p in own):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    x = torch.empty(piece.takes, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = piece.module(x)
        y.backward(torch.empty_like(y))
    kept[y.untyped_storage()._cdata], kept[x.untyped_storage()._cdata] = y, x
    return SegmentCost(
        name,
        parameter_bytes=sum(p.numel() * p.element_size() for p in own),
        activation_bytes=math.ceil(sum(t.numel() * t.element_size() for t in kept.values()) / COST_ROWS),
        flops=math.ceil(counter.get_total_flops() / COST_ROWS),
        frozen_bytes=sum(p.numel() * p.element_size() for p in own if not p.requires_grad),
        passes_bytes=ARRAY_DTYPE_BYTES["F32"] * math.prod(piece.gives[1:]),
    )


def check_complete(model: ModelConfig, cuts: Sequence[str], pieces: Sequence[Piece]) -> None:
    """Raises SpecInvalid unless each tensor of the model is in exactly one stage."""
    whole = [tensor.name for tensor in models.layout(model).tensors]
    if sorted(name for piece in pieces for name in piece.module.state_dict()) != whole:
        raise _no_split(model, cuts, "not every tensor is in exactly one stage")


def micro_batch(inputs: Inputs, seed: Sequence[int], *, rows: int, first: int) -> tuple[Array, Array]:
    """Rows `first` to `first + rows` - 1 of an endless sequence: one shuffle of all the rows after another.

    Any of them can be had at any time, so that a run goes on from any step with the same rows.
    """
    n = len(inputs.y)
    places: list[int] = []
    while len(places) < rows:
        epoch, start = divmod(first + len(places), n)
        # Its stream is fixed (NEP 19).
        shuffled = np.random.RandomState(seed_words(*seed, epoch)).permutation(n)
        places += shuffled[start : start + rows - len(places)].tolist()
    x, y = inputs.x[places].numpy(), inputs.y[places].numpy()
    dtype = "U8" if x.dtype == np.uint8 else "F32"
    return (
        Array(tuple(x.shape), dtype, _bytes(x, dtype)),
        Array(tuple(y.shape), "I64", _bytes(y, "I64")),
    )


class HeldStage:
    """A stage under training; `stage.Stage` tells what its methods promise. Its tensors are filled one by one
    before the first of them is called."""

    def __init__(self, config: StageConfig, piece: Piece, steps: int) -> None:
        self._config = config
        self._takes, self._gives = piece.takes, piece.gives
        self._module = piece.module.to_empty(device="cpu").train()
        self._parameters = trainable(self._module)
        self._optimizer = optimizer(config.training, self._parameters)
        self._optimizer.steps = steps
        self._tensors = dict(self._module.state_dict())  # and the optimizer's, by their names in a snapshot
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        for slot, values in self._optimizer.slots.items():
            for parameter, value in zip(self._parameters, values, strict=True):
                self._tensors[f"optimizer.{slot}.{names[parameter]}"] = value
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # in and out, by micro-batch
        self._sum: list[Tensor] = []  # of the gradients of micro-batches 0 to `_added` - 1
        self._added = 0
        self._early: dict[int, list[Tensor]] = {}  # gradients that came before their turn

    @property
    def steps(self) -> int:
        return self._optimizer.steps

    def fill_fixed(self, base: Path | None) -> None:
        """Set what nobody trains: from the base, or as the job's seed has it. Raises SpecInvalid if the base
        is of another architecture."""
        names = [name for name, p in self._module.named_parameters() if not p.requires_grad]
        set_state(self._module, network.fixed(self._config.model, base, names))

    def fill(self, name: str, data: bytes) -> None:
        """Set one tensor. Raises UpdateRefused."""
        tensor = self._tensors[name]
        check_finite(data, name)
        values = np.frombuffer(data, _NUMPY["F32"]).reshape(tuple(tensor.shape))
        if name.startswith("optimizer.second.") and values.size and values.min() < 0:
            raise refusal(f"tensor {name!r} holds {values.min():g}: no mean of squares")
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.array(values)))

    def take(self, name: str) -> bytes:
        tensor = self._tensors[name].detach()
        if not bool(tensor.isfinite().all()):
            raise self._diverged(f"tensor {name!r} holds NaN or Inf")
        return _bytes(tensor.numpy(), "F32")

    def forward(self, micro: int, x: Array) -> Array:
        self._check_open(micro)
        inputs = self._inputs(x)
        y = self._module(scaled(inputs))
        self._kept[micro] = (inputs, y)
        return self._outgoing(y)

    def backward(self, micro: int, gradient: Array) -> Array | None:
        if micro not in self._kept:
            raise DflError("a gradient came too early", why=f"micro-batch {micro} did not go forward")
        incoming = _tensor(gradient, self._gives, ("F32",), "the gradient")
        inputs, y = self._kept.pop(micro)
        return self._back(micro, inputs, y, incoming)

    def last(self, micro: int, x: Array, labels: Array) -> tuple[float, Array | None]:
        self._check_open(micro)
        inputs = self._inputs(x)
        wanted = _tensor(labels, self._gives[:1], ("I64",), "the labels")  # (rows,)
        if int(wanted.min()) < 0 or int(wanted.max()) >= self._gives[1]:
            raise array_refusal(f"the labels are not all from 0 to {self._gives[1] - 1}")
        loss = functional.cross_entropy(self._module(scaled(inputs)), wanted)
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}")
        return value, self._back(micro, inputs, loss, None)

    def step(self) -> int:
        if self._added != self._config.micro_batches:
            why = f"{self._added} of {self._config.micro_batches} micro-batches are back"
            raise DflError("the step is not complete", why=why)
        self._optimizer.step([g.div_(self._added) for g in self._sum])
        self._sum, self._added = [], 0
        return self._optimizer.steps

    # -- pieces ---------------------------------------------------------------------------------------
    def _check_open(self, micro: int) -> None:
        """Each micro-batch goes through a step once."""
        done = micro < self._added or micro in self._early or micro in self._kept
        if done or not 0 <= micro < self._config.micro_batches:
            raise DflError(
                "no such micro-batch is due",
                why=f"micro-batch {micro} of {self._config.micro_batches}" + (", for the second time" * done),
            )

    def _inputs(self, x: Array) -> Tensor:
        if self._config.index == 0:
            return _tensor(x, self._takes, ("U8", "F32"), "the rows")
        return _tensor(x, self._takes, ("F32",), "the activations").requires_grad_()

    def _back(self, micro: int, inputs: Tensor, y: Tensor, incoming: Tensor | None) -> Array | None:
        wanted = [*self._parameters, *([inputs] if inputs.requires_grad else [])]
        gradients = list(torch.autograd.grad(y, wanted, incoming)) if wanted else []
        upstream = gradients.pop() if inputs.requires_grad else None
        self._early[micro] = gradients
        # In the order of the micro-batches, whatever order they came back in: rounding depends on it.
        while (next_ := self._early.pop(self._added, None)) is not None:
            if self._added == 0:
                self._sum = [gradient.clone() for gradient in next_]  # which may share memory
            else:
                for total, gradient in zip(self._sum, next_, strict=True):
                    total.add_(gradient)
            self._added += 1
        return None if upstream is None else self._outgoing(upstream)

    def _outgoing(self, tensor: Tensor) -> Array:
        values = tensor.detach().numpy()
        if not np.isfinite(values).all():
            raise self._diverged("its output holds NaN or Inf")
        return Array(tuple(values.shape), "F32", _bytes(values, "F32"))

    def _diverged(self, why: str) -> DflError:
        where = f"stage {self._config.index} at step {self.steps + 1}"
        return DflError(
            "training diverged",
            why=f"{where}: {why}; lr = {self._config.training.lr:g}",
            help_command="dfl-node job submit job.toml  # with a smaller training.lr",
        )


def check_finite(data: bytes, name: str) -> None:
    """Raises UpdateRefused if a float32 tensor's bytes hold NaN or Inf."""
    values = np.frombuffer(data, _NUMPY["F32"])
    if not np.isfinite(values).all():
        raise refusal(f"tensor {name!r} holds {'NaN' if np.isnan(values).any() else 'Inf'}")


def _bytes(values: NDArray[Any], dtype: str) -> bytes:
    return values.astype(_NUMPY[dtype], copy=False).tobytes()


def _tensor(array: Array, shape: tuple[int, ...], dtypes: tuple[str, ...], what: str) -> Tensor:
    """A tensor of its own memory. Raises UpdateRefused."""
    if array.dtype not in dtypes or array.shape != shape:
        found, wanted = f"{array.dtype} {list(array.shape)}", f"{' or '.join(dtypes)} {list(shape)}"
        raise array_refusal(f"{what} must be {wanted}, not {found}")
    values = np.frombuffer(array.data, _NUMPY[array.dtype]).reshape(shape)
    if array.dtype == "F32" and not np.isfinite(values).all():
        raise array_refusal(f"{what} hold NaN or Inf")
    return torch.from_numpy(np.array(values))


def _no_split(model: ModelConfig, cuts: Sequence[str], why: str) -> SpecInvalid:
    return SpecInvalid("pipeline.stages", f"{model.name} cannot be cut at {', '.join(cuts)[:200]}: {why}")
