"""What a round's combined step does to the model. One file a strategy, found by its name: adding one is
adding `strategies/NAME.py`.

A file exports `STRATEGY: Strategy`, whose functions work element by element on float64, numbers or arrays
alike: the trainer gives them whole tensors, its twin single numbers, and neither numpy nor torch is imported
here, so that a job spec is checked without them. They use + - * / and the square root alone, which IEEE 754
rounds in one way, in the order in which they stand: the same updates give the same bytes on every machine.

A strategy's server state lives in the model file, as tensors `server.WHAT.NAME` beside each shared tensor
NAME: one CID is a complete checkpoint, and any node derives the next model from CIDs alone.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from dfl_ledger.errors import SpecInvalid
from dfl_node.train import arguments
from dfl_node.train.arguments import Arg, Args
from dfl_node.train.codec import Schema, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfl_node.train.trainer import AggregationConfig

    N = TypeVar("N", float, NDArray[np.float64])
else:
    N = TypeVar("N")

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
SERVER = "server."  # before the names of a model file's server state
CONTROL = "control."  # before the names of control variates, in update files and in a node's local state


@dataclass(frozen=True, slots=True)
class Step(Generic[N]):
    """What a round's accepted updates came to, for one tensor."""

    delta: N  # combined pseudo-gradient: parent minus trained
    control: N | None  # combined change of the members' control variates, for a strategy that has them
    updates: int  # accepted


class Apply(Protocol):
    def __call__(
        self, parent: N, server: Mapping[str, N], step: Step[N], args: Args
    ) -> tuple[N, dict[str, N]]:
        """The next value of a tensor, and of its server state. Changes nothing in place."""
        ...


@dataclass(frozen=True, slots=True)
class Strategy:
    """What a strategy file exports."""

    args: Mapping[str, Arg]
    apply: Apply
    server: Mapping[str, Callable[[Args], float]]  # WHAT it keeps per tensor, and what fills it at first
    control: bool = False  # members keep control variates and send their changes (SCAFFOLD)
    optimizers: tuple[str, ...] = ("sgd", "adamw")  # that a member's local steps may use


def find(name: str) -> Strategy:
    """The strategy of this name. Raises SpecInvalid."""
    if name not in NAMES:
        raise SpecInvalid("training.strategy", f"must be one of {', '.join(NAMES)}, not {name!r:.40}")
    found: Strategy = import_module(f"{__name__}.{name}").STRATEGY
    return found


def check(name: str, args: Mapping[str, Any]) -> dict[str, float]:
    """Every argument, defaults filled in. Raises SpecInvalid with the field's name."""
    return arguments.check(name, "training.strategy_args", args, find(name).args)


def check_optimizer(name: str, optimizer: str) -> None:
    """Raises SpecInvalid if this strategy cannot use what members train with."""
    fitting = find(name).optimizers
    if optimizer not in fitting:
        raise SpecInvalid("training.optimizer", f"must be {' or '.join(fitting)} with strategy {name}")


def root(value: N) -> N:
    """The square root, correctly rounded; NaN of a negative number."""
    if isinstance(value, float):
        return math.sqrt(value) if value >= 0 else math.nan
    import numpy as np

    return np.sqrt(value)


# -- files ------------------------------------------------------------------------------------------------
def model_file(shared: Schema, rule: AggregationConfig) -> Schema:
    """The layout of a model file: the shared state and the strategy's server state."""
    kept = (f"{SERVER}{what}." for what in find(rule.strategy).server)
    return joined(shared, *(renamed(shared, prefix) for prefix in kept))


def update_file(shared: Schema, rule: AggregationConfig) -> Schema:
    """The layout of an update: the shared state's deltas and, for SCAFFOLD, the control variate's change."""
    return joined(shared, *((renamed(shared, CONTROL),) if find(rule.strategy).control else ()))


def local_file(shared: Schema, rule: AggregationConfig) -> Schema:
    """What of a node's own state belongs to the strategy: its control variate."""
    return renamed(shared, CONTROL) if find(rule.strategy).control else Schema(())


def renamed(schema: Schema, prefix: str) -> Schema:
    """The same tensors with a prefix before their names."""
    return Schema(tuple(replace(tensor, name=prefix + tensor.name) for tensor in schema.tensors))


def joined(*schemas: Schema) -> Schema:
    """One layout of the tensors of several."""
    tensors: list[TensorSpec] = [tensor for schema in schemas for tensor in schema.tensors]
    return Schema(tuple(sorted(tensors, key=lambda tensor: tensor.name)))
