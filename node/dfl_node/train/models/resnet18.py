"""ResNet-18 (He et al. 2015, arXiv:1512.03385) for images, with the 3x3 stem that small ones want.

Group normalisation (Wu and He 2018, arXiv:1803.08494) in place of batch normalisation: statistics of a batch
are a node's own, do not average, and cost accuracy wherever nodes hold different labels (Hsieh et al. 2020,
arXiv:1910.00189, which also takes two groups). `width = 64` is the paper's; 16 makes 700 thousand parameters.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

from dfl_node.train.models import IMAGE, Architecture, IntArg, image_shape

if TYPE_CHECKING:
    from torch import nn

GROUPS = 2
BLOCKS = 8  # two at each of four widths
MEAN, STD = 0.13, 0.31  # of a handwritten digit's pixels in [0, 1]


def _build(width: int, side: int, channels: int, classes: int) -> nn.Module:
    """`width` channels after the stem, doubled three times, each time with half the side."""
    from torch import Tensor, nn

    def norm(features: int) -> nn.Module:
        return nn.GroupNorm(gcd(GROUPS, features), features)

    def conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.norm1 = conv(inputs, outputs, 3, stride), norm(outputs)
            self.conv2, self.norm2 = conv(outputs, outputs, 3, 1), norm(outputs)
            self.shortcut: nn.Module = nn.Identity()
            if inputs != outputs:
                self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm1(self.conv1(x)).relu()  # (B, outputs, side / stride, side / stride)
            y = self.norm2(self.conv2(y))
            out: Tensor = (y + self.shortcut(x)).relu()
            return out

    class ResNet18(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = conv(channels, width, 3, 1), norm(width)
            self.blocks = nn.ModuleList()
            inputs = width
            for place in range(BLOCKS):
                outputs = width << place // 2
                self.blocks.append(Block(inputs, outputs, stride=1 if inputs == outputs else 2))
                inputs = outputs
            self.head = nn.Linear(inputs, classes)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem((x - MEAN) / STD)).relu()  # (B, width, side, side)
            for block in self.blocks:
                x = block(x)
            logits: Tensor = self.head(x.mean((2, 3)))  # (B, 8 width) -> (B, classes)
            return logits

    return ResNet18()


def _cuts(**_: int) -> tuple[str, ...]:
    return (*(f"blocks.{place}" for place in range(BLOCKS)), "head")


MODEL = Architecture(
    args={"width": IntArg(16, 1, 128), **IMAGE}, input_shape=image_shape, build=_build, cuts=_cuts
)
