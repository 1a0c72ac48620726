"""A transformer encoder over an image's patches (Vaswani et al. 2017, arXiv:1706.03762; Dosovitskiy et al.
2020, arXiv:2010.11929): normalised before each part (Xiong et al. 2020, arXiv:2002.04745), learned places,
the mean of all tokens classified.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from dfl_ledger.errors import SpecInvalid
from dfl_node.train.models import IMAGE, Architecture, IntArg, image_shape

if TYPE_CHECKING:
    from torch import nn

MEAN, STD = 0.13, 0.31  # of a handwritten digit's pixels in [0, 1]
EXPANSION = 4  # of the feed-forward part
PLACE_STD = 0.02  # of the learned places, at first
MAX_TOKENS = 1024  # attention takes memory by their square


def _build(
    depth: int, heads: int, head_width: int, patch: int, side: int, channels: int, classes: int
) -> nn.Module:
    """`depth` blocks of `heads` heads, on tokens of heads * head_width numbers."""
    import torch
    from torch import Tensor, nn

    width, tokens = heads * head_width, (side // patch) ** 2

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                part(x).reshape(-1, tokens, heads, head_width).transpose(1, 2)  # (B, heads, tokens, head)
                for part in (self.query, self.key, self.value)
            )
            weights = (q @ k.transpose(2, 3) / sqrt(head_width)).softmax(-1)  # (B, heads, tokens, tokens)
            y: Tensor = self.out((weights @ v).transpose(1, 2).reshape(-1, tokens, width))
            return y

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attention = nn.LayerNorm(width), Attention()
            self.norm2 = nn.LayerNorm(width)
            self.fc1, self.fc2 = nn.Linear(width, EXPANSION * width), nn.Linear(EXPANSION * width, width)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(self.norm1(x))  # (B, tokens, width)
            y: Tensor = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
            return y

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
            self.places = nn.Parameter(PLACE_STD * torch.randn(1, tokens, width))
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, classes)

        def forward(self, x: Tensor) -> Tensor:
            x = (x - MEAN) / STD  # (B, channels, side, side)
            x = self.embed(x).flatten(2).transpose(1, 2) + self.places  # (B, tokens, width)
            for block in self.blocks:
                x = block(x)
            logits: Tensor = self.head(self.norm(x).mean(1))  # (B, classes)
            return logits

    return Transformer()


def _input_shape(side: int, patch: int, **args: int) -> tuple[int, ...]:
    if side % patch:
        raise SpecInvalid("model.args.patch", f"is {patch}, which does not divide model.args.side = {side}")
    if (side // patch) ** 2 > MAX_TOKENS:
        why = f"is {patch}, which makes more than {MAX_TOKENS} tokens of an image of {side}x{side}"
        raise SpecInvalid("model.args.patch", why)
    return image_shape(side, **args)


def _cuts(depth: int, **_: int) -> tuple[str, ...]:
    return (*(f"blocks.{place}" for place in range(depth)), "head")


MODEL = Architecture(
    args={
        "depth": IntArg(2, 1, 32),
        "heads": IntArg(4, 1, 32),
        "head_width": IntArg(16, 1, 128),
        "patch": IntArg(7, 1, 64),
        **IMAGE,
    },
    input_shape=_input_shape,
    build=_build,
    cuts=_cuts,
)
