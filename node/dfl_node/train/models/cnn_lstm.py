"""Convolutions that see, an LSTM that reads (Donahue et al. 2015, arXiv:1411.4389): a picture's features,
column after column, are a sequence, whose last state is classified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfl_node.train.models import IMAGE, Architecture, IntArg, image_shape
from dfl_node.train.models.lstm import check_cells, layer

if TYPE_CHECKING:
    from torch import nn

MEAN, STD = 0.13, 0.31  # of a handwritten digit's pixels in [0, 1]


def _build(width: int, hidden: int, layers: int, side: int, channels: int, classes: int) -> nn.Module:
    """`width` channels after the first convolution, `hidden` units of each LSTM layer."""
    from torch import Tensor, nn

    class CnnLstm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(channels, width, kernel_size=3, padding=1)
            self.conv2 = nn.Conv2d(width, 2 * width, kernel_size=3, padding=1)
            features = 2 * width * (side // 4)  # of a column
            self.layers = nn.ModuleList(
                layer(inputs, hidden) for inputs in (features, *(hidden,) * (layers - 1))
            )
            self.head = nn.Linear(hidden, classes)

        def forward(self, x: Tensor) -> Tensor:
            x = (x - MEAN) / STD  # (B, channels, side, side)
            x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)  # (B, width, side / 2, side / 2)
            x = nn.functional.max_pool2d(self.conv2(x).relu(), 2)  # (B, 2 width, side / 4, side / 4)
            x = x.permute(0, 3, 1, 2).flatten(2)  # (B, side / 4 columns, features)
            for recurrent in self.layers:
                x = recurrent(x)
            logits: Tensor = self.head(x[:, -1])  # (B, classes)
            return logits

    return CnnLstm()


def _input_shape(side: int, layers: int, **args: int) -> tuple[int, ...]:
    check_cells(side // 4, layers)
    return image_shape(side, **args)


def _cuts(layers: int, **_: int) -> tuple[str, ...]:
    return ("conv2", *(f"layers.{place}" for place in range(layers)), "head")


MODEL = Architecture(
    args={
        "width": IntArg(12, 1, 128),
        "hidden": IntArg(64, 1, 1024),
        "layers": IntArg(1, 1, 8),
        **IMAGE,
    },
    input_shape=_input_shape,
    build=_build,
    cuts=_cuts,
)
