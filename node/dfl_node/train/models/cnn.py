"""A convolutional network for images, after LeNet-5 (LeCun et al. 1998, doi:10.1109/5.726791).

By default for 28x28 grey ones, with 83,514 parameters; `hidden = 1000` makes 1,194,546 of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfl_node.train.models import IMAGE, Architecture, IntArg, image_shape

if TYPE_CHECKING:
    from torch import nn

MEAN, STD = 0.13, 0.31  # of a handwritten digit's pixels in [0, 1]


def _build(width: int, hidden: int, side: int, channels: int, classes: int) -> nn.Module:
    """`width` channels after the first convolution, `hidden` units before the output."""
    from torch import Tensor, channels_last, nn

    class Cnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(channels, width, kernel_size=5, padding=2)
            self.conv2 = nn.Conv2d(width, 2 * width, kernel_size=5, padding=2)
            self.fc1 = nn.Linear(2 * width * (side // 4) ** 2, hidden)
            self.fc2 = nn.Linear(hidden, classes)

        def forward(self, x: Tensor) -> Tensor:
            x = (x - MEAN) / STD  # (B, channels, side, side)
            x = nn.functional.max_pool2d(self.conv1(x), 2).relu()  # (B, width, side / 2, side / 2)
            x = nn.functional.max_pool2d(self.conv2(x), 2).relu()  # (B, 2 width, side / 4, side / 4)
            x = self.fc1(x.flatten(1)).relu()  # (B, hidden)
            logits: Tensor = self.fc2(x)  # (B, classes)
            return logits

    net = Cnn()
    for conv in (net.conv1, net.conv2):  # channels innermost: a training step takes a third less time
        conv.weight.data = conv.weight.data.contiguous(memory_format=channels_last)
    return net


def _cuts(**_: int) -> tuple[str, ...]:
    return ("conv2", "fc1", "fc2")


MODEL = Architecture(
    args={"width": IntArg(12, 1, 128), "hidden": IntArg(64, 1, 4096), **IMAGE},
    input_shape=image_shape,
    build=_build,
    cuts=_cuts,
)
