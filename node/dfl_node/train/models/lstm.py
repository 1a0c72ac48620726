"""A stack of LSTM layers (Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735) over a sequence;
its last output is classified. By default an image of 28x28 is 28 steps of 28 features, row by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfl_ledger.errors import SpecInvalid
from dfl_node.train.models import CLASSES, Architecture, IntArg

if TYPE_CHECKING:
    from torch import nn

# Steps times layers: a split traces each of them, which takes 3 s for so many and grows faster than they do.
MAX_CELLS = 128


def check_cells(steps: int, layers: int) -> None:
    """Raises SpecInvalid."""
    if steps * layers > MAX_CELLS:
        why = f"is {layers}: times {steps} steps, more than the {MAX_CELLS} cells allowed"
        raise SpecInvalid("model.args.layers", why)


def layer(inputs: int, hidden: int) -> nn.Module:
    """One LSTM layer: (B, T, inputs) -> (B, T, hidden), from a state of zeros.

    Written out: `nn.LSTM` is one opaque operation, into whose input no adapter can go, and whose first state
    stays on the meta device after a split made there. The recurrent weights are no linear layer, since a
    layer that is called at each step cannot be cut into stages.
    """
    import torch
    from torch import Tensor, nn

    class Lstm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input = nn.Linear(inputs, 4 * hidden)
            self.recurrent = nn.Parameter(torch.empty(4 * hidden, hidden))
            nn.init.uniform_(self.recurrent, -(hidden**-0.5), hidden**-0.5)
            with torch.no_grad():  # remember at first (Gers et al. 2000, doi:10.1162/089976600300015015)
                self.input.bias[hidden : 2 * hidden] = 1.0

        def forward(self, x: Tensor) -> Tensor:
            steps = self.input(x).unbind(1)  # T of (B, 4 hidden)
            outputs: list[Tensor] = []
            cell: Tensor | None = None
            for gates in steps:
                if outputs:
                    gates = gates + nn.functional.linear(outputs[-1], self.recurrent)
                i, f, o, g = gates.chunk(4, dim=1)  # (B, hidden) each
                added = i.sigmoid() * g.tanh()
                cell = added if cell is None else f.sigmoid() * cell + added
                outputs.append(o.sigmoid() * cell.tanh())
            return torch.stack(outputs, 1)

    return Lstm()


def _build(hidden: int, layers: int, steps: int, features: int, classes: int) -> nn.Module:
    from torch import Tensor, nn

    class LstmClassifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                layer(inputs, hidden) for inputs in (features, *(hidden,) * (layers - 1))
            )
            self.head = nn.Linear(hidden, classes)

        def forward(self, x: Tensor) -> Tensor:
            for recurrent in self.layers:  # (B, steps, features), then (B, steps, hidden)
                x = recurrent(x)
            logits: Tensor = self.head(x[:, -1])  # (B, classes)
            return logits

    return LstmClassifier()


def _input_shape(steps: int, features: int, layers: int, **_: int) -> tuple[int, ...]:
    check_cells(steps, layers)
    return (steps, features)


def _cuts(layers: int, **_: int) -> tuple[str, ...]:
    return (*(f"layers.{place}" for place in range(1, layers)), "head")


MODEL = Architecture(
    args={
        "hidden": IntArg(64, 1, 1024),
        "layers": IntArg(2, 1, 8),
        "steps": IntArg(28, 1, MAX_CELLS),
        "features": IntArg(28, 1, 4096),
        "classes": CLASSES,
    },
    input_shape=_input_shape,
    build=_build,
    cuts=_cuts,
)
