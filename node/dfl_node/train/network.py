"""A job's model in memory: from the base or the seed, with what travels and what is personal put in. Only the
worker imports this: it needs torch.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dfl_ledger.errors import SpecInvalid, UpdateRefused
from dfl_node.train import lora, models, tensors, transfer
from dfl_node.train.codec import check_layout, header
from dfl_node.train.evaluation import get_state, set_state
from dfl_node.train.tensors import State
from dfl_node.train.trainer import ModelConfig
from dfl_node.train.transfer import Parts


def start(config: ModelConfig, base: Path | None) -> nn.Module:
    """The model as it begins: every parameter of the base, and from the seed what no base gives. Raises
    SpecInvalid for a base of another architecture."""
    torch.manual_seed(config.seed)
    net = models.build(config)
    if base is not None:
        set_state(net, read_base(config, base))
    return net


def fixed(config: ModelConfig, base: Path | None, names: Collection[str]) -> State:
    """Some of the parameters that stay as they began. Of a base only these are read; a seed's are drawn for
    the whole model at once, which then has to fit in."""
    if not names:
        return {}
    return take(start(config, None), names) if base is None else read_base(config, base, names)


def parts(net: nn.Module, config: ModelConfig) -> Parts:
    return transfer.parts([name for name, _ in net.named_parameters()], config)


def take(net: nn.Module, names: Collection[str]) -> State:
    """Some of a model's parameters, as views of its own memory."""
    state = get_state(net)
    return {name: state[name] for name in names}


def copy(net: nn.Module, names: Collection[str]) -> State:
    """The same as they are now."""
    return {name: tensor.copy() for name, tensor in take(net, names).items()}


def merged(net: nn.Module, config: ModelConfig) -> State:
    """The parameters of the plain model that computes the same."""
    state = take(net, [tensor.name for tensor in models.full_schema(config).tensors])
    return state | {name: weight.numpy() for name, weight in lora.merged(net)}


def read_base(config: ModelConfig, path: Path, names: Collection[str] | None = None) -> State:
    """Tensors of a full model file, all of them by default, as read-only views of the file on disk. Raises
    SpecInvalid."""
    schema = models.full_schema(config)
    expected = header(schema)
    try:
        with path.open("rb") as file:
            sound = file.read(len(expected)) == expected and path.stat().st_size == schema.file_bytes
        if not sound:  # the whole of it is only read to say what is wrong
            check_layout(found := path.read_bytes(), schema, max_bytes=len(found))
        data = np.memmap(path, np.uint8, "r", offset=len(expected))
        state: State = {}
        first = 0
        for tensor in schema.tensors:
            if names is None or tensor.name in names:
                values = data[first : first + tensor.size].view("<f4").reshape(tensor.shape)
                tensors.check_numbers(tensor.name, values)
                state[tensor.name] = values
            first += tensor.size
    except UpdateRefused as bad:
        raise SpecInvalid("model.base", f"is no {config.name} with these arguments: {bad.why}") from bad
    return state


def check(config: ModelConfig, base: Path | None) -> None:
    """Raises SpecInvalid with the field's name for a model that nobody could train. Takes no memory."""
    plain_names = [tensor.name for tensor in models.full_schema(config).tensors]
    transfer.check(plain_names, [tensor.name for tensor in models.layout(config).tensors], config)
    if base is not None:
        read_base(config, base)
