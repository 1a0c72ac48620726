"""A convolutional network for 28x28 grey images, after LeNet-5 (LeCun et al. 1998, doi:10.1109/5.726791).

By default 83,514 parameters; `hidden = 1000` makes 1,194,546 of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfl_node.train.models import IntArg, ModelKind

if TYPE_CHECKING:
    from torch import nn

MEAN, STD = 0.13, 0.31  # of a handwritten digit's pixels in [0, 1]
CLASSES = 10


def _build(width: int, hidden: int) -> nn.Module:
    """`width` channels after the first convolution, `hidden` units before the output."""
    from torch import Tensor, nn

    class Cnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, width, kernel_size=5, padding=2)
            self.conv2 = nn.Conv2d(width, 2 * width, kernel_size=5, padding=2)
            self.fc1 = nn.Linear(2 * width * 7 * 7, hidden)
            self.fc2 = nn.Linear(hidden, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = (x - MEAN) / STD  # (B, 1, 28, 28)
            x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)  # (B, width, 14, 14)
            x = nn.functional.max_pool2d(self.conv2(x).relu(), 2)  # (B, 2 width, 7, 7)
            x = self.fc1(x.flatten(1)).relu()  # (B, hidden)
            logits: Tensor = self.fc2(x)  # (B, 10)
            return logits

    return Cnn()


MODEL = ModelKind(
    args={"width": IntArg(12, 1, 128), "hidden": IntArg(64, 1, 4096)},
    input_shape=(1, 28, 28),
    classes=CLASSES,
    build=_build,
)
