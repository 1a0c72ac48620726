"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): a layer computes with W + alpha / rank * B A, where W
stays as it is and only A (rank, inputs) and B (outputs, rank) are trained. B begins as zeros, so that nothing
is changed at first.

A convolution's weight (outputs, inputs, k, k) counts as a matrix (outputs, inputs * k * k). Only the worker
imports this: it needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfl_node.train.trainer import LoraConfig


class LoraLinear(nn.Linear):
    """A linear layer and its adapter; `weight` and `bias` keep their names."""

    def __init__(self, layer: nn.Linear, config: LoraConfig) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_a, self.lora_b = _matrices(layer.weight, config.rank)
        self.scale = config.alpha / config.rank

    def forward(self, x: Tensor) -> Tensor:
        low = functional.linear(x, self.lora_a)  # (…, rank)
        y = functional.linear(x, self.weight, self.bias)
        return y + self.scale * functional.linear(low, self.lora_b)


class LoraConv2d(nn.Conv2d):
    """A convolution and its adapter; `weight` and `bias` keep their names."""

    def __init__(self, layer: nn.Conv2d, config: LoraConfig) -> None:
        size, stride, padding = layer.kernel_size, layer.stride, layer.padding
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            (size[0], size[1]),
            (stride[0], stride[1]),
            padding if isinstance(padding, str) else (padding[0], padding[1]),
            bias=layer.bias is not None,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_a, self.lora_b = _matrices(layer.weight, config.rank)
        self.scale = config.alpha / config.rank

    def forward(self, x: Tensor) -> Tensor:
        change = (self.lora_b @ self.lora_a).reshape(self.weight.shape)
        y: Tensor = self._conv_forward(x, self.weight + self.scale * change, self.bias)
        return y


def layers(model: nn.Module) -> list[str]:
    """Names of the layers that can have an adapter."""
    return [name for name, layer in model.named_modules() if _plain(layer)]


def adapt(model: nn.Module, names: Iterable[str], config: LoraConfig) -> None:
    """Give these layers an adapter, in place; A is drawn from torch's global generator."""
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            model.set_submodule(name, LoraLinear(layer, config))
        elif isinstance(layer, nn.Conv2d):
            model.set_submodule(name, LoraConv2d(layer, config))


def merged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The names of adapted weights, and the weights of plain layers that compute the same."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear | LoraConv2d):
            change = (layer.lora_b.double() @ layer.lora_a.double()).reshape(layer.weight.shape)
            yield f"{name}.weight", (layer.weight.double() + layer.scale * change).float().detach()


def _plain(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return isinstance(layer, nn.Linear)


def _matrices(weight: Tensor, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A, of normal numbers with the variance 1 / inputs, and B, of zeros."""
    outputs, inputs = weight.shape[0], prod(weight.shape[1:])
    a = torch.randn(rank, inputs) / inputs**0.5
    return nn.Parameter(a), nn.Parameter(torch.zeros(outputs, rank))
