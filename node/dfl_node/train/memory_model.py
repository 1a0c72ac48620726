"""The twin's model: one layer of 36 numbers, of which any part may be fixed, personal or adapted. Its loss is
the mean squared distance to a target.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from dfl_ledger.errors import SpecInvalid, UpdateRefused
from dfl_node.train import transfer
from dfl_node.train.codec import Schema, TensorSpec
from dfl_node.train.memory_files import Numbers, Tensors, decode, sizes
from dfl_node.train.trainer import ModelConfig
from dfl_node.train.transfer import ADAPTER_A, ADAPTER_B, Parts

LAYER, ROWS, COLUMNS = "layer", 4, 8
WEIGHT = f"{LAYER}.weight"  # (ROWS, COLUMNS)
SCHEMA = Schema((TensorSpec(f"{LAYER}.bias", (ROWS,), "F32"), TensorSpec(WEIGHT, (ROWS, COLUMNS), "F32")))
SIZE = SCHEMA.payload_bytes // 4
_A, _B = f"{LAYER}.{ADAPTER_A}", f"{LAYER}.{ADAPTER_B}"
_PROBE = 0.8  # of their way to the target that personal tensors are fitted before a measurement


def draw(seed: str, spread: float) -> Numbers:
    """SIZE numbers. `random()` of a seeded Random is the same in every version of Python."""
    source = random.Random(seed)  # noqa: S311  a toy, not a secret
    return [(2 * source.random() - 1) * spread for _ in range(SIZE)]


def named(flat: Numbers) -> Tensors:
    """A plain state of its numbers in the order of SCHEMA."""
    numbers = iter(flat)
    return {name: [next(numbers) for _ in range(size)] for name, size in sizes(SCHEMA).items()}


TARGET = named(draw("target", 1.0))


def layout(config: ModelConfig) -> Schema:
    """All that a node holds, adapters too."""
    tensors = list(SCHEMA.tensors)
    if config.lora is not None and transfer.adapted([LAYER], config):
        rank = config.lora.rank
        tensors += [TensorSpec(_A, (rank, COLUMNS), "F32"), TensorSpec(_B, (ROWS, rank), "F32")]
    return Schema(tuple(sorted(tensors, key=lambda tensor: tensor.name)))


def parts(config: ModelConfig) -> Parts:
    return transfer.parts([tensor.name for tensor in layout(config).tensors], config)


def schema(config: ModelConfig) -> Schema:
    """Of the shared state."""
    return transfer.some(layout(config), parts(config).shared)


def personal_schema(config: ModelConfig) -> Schema:
    """Of a node's own state."""
    return transfer.some(layout(config), parts(config).personal, transfer.PERSONAL)


def start(config: ModelConfig, base: bytes | None) -> Tensors:
    """The model as it begins: of the base, and from the seed what no base gives."""
    state = named(draw(f"init {config.seed}", 1.0))
    if base is not None:
        state = decode(base, SCHEMA, SCHEMA.file_bytes)
    held = sizes(layout(config))
    if _A in held:
        numbers = random.Random(f"adapter {config.seed}")  # noqa: S311  a toy, not a secret
        state |= {_A: [2 * numbers.random() - 1 for _ in range(held[_A])], _B: [0.0] * held[_B]}
    return state


def merged(state: Mapping[str, Numbers], config: ModelConfig) -> Tensors:
    """The plain model that is worth the same: W + alpha / rank * B A."""
    plain = {name: state[name] for name in sizes(SCHEMA)}
    if _A in state and config.lora is not None:
        rank, scale = config.lora.rank, config.lora.alpha / config.lora.rank
        a, b = state[_A], state[_B]
        for place in range(ROWS * COLUMNS):
            row, column = divmod(place, COLUMNS)
            change = math.fsum(b[row * rank + k] * a[k * COLUMNS + column] for k in range(rank))
            plain[WEIGHT] = [
                *plain[WEIGHT][:place],
                plain[WEIGHT][place] + scale * change,
                *plain[WEIGHT][place + 1 :],
            ]
    return plain


def pull(state: Mapping[str, Numbers], config: ModelConfig, target: Mapping[str, Numbers]) -> Tensors:
    """For each tensor a step that takes it as far towards the target as is safe: this toy's gradient."""
    plain = merged(state, config)
    found = {
        name: [number - wanted for number, wanted in zip(plain[name], target[name], strict=True)]
        for name in plain
    }
    if _A in state and config.lora is not None:
        rank, a, miss = config.lora.rank, state[_A], found[WEIGHT]
        # The gradient of B, by the largest step that cannot pass the lowest point. A stays.
        largest = config.lora.alpha / rank * math.fsum(number * number for number in a)
        found[_A] = [0.0] * len(a)
        found[_B] = [
            math.fsum(miss[row * COLUMNS + i] * a[k * COLUMNS + i] for i in range(COLUMNS)) / largest
            for row in range(ROWS)
            for k in range(rank)
        ]
    return found


def loss(state: Mapping[str, Numbers], config: ModelConfig) -> float:
    misses = pull(merged(state, config), transfer.plain(config), TARGET)
    return math.fsum(miss * miss for numbers in misses.values() for miss in numbers) / SIZE


def probed(state: Tensors, config: ModelConfig) -> Tensors:
    """With the personal tensors fitted to the rows that a measurement has for it."""
    steps = pull(state, config, TARGET)
    return state | {
        name: [number - _PROBE * step for number, step in zip(state[name], steps[name], strict=True)]
        for name in parts(config).personal
    }


def check(config: ModelConfig, base: bytes | None) -> None:
    """As `network.check`, by the names of this toy."""
    plain_names = [tensor.name for tensor in SCHEMA.tensors]
    transfer.check(plain_names, [tensor.name for tensor in layout(config).tensors], config)
    if base is not None:
        try:
            decode(base, SCHEMA, SCHEMA.file_bytes)
        except UpdateRefused as bad:
            raise SpecInvalid("model.base", f"is no {config.name} with these arguments: {bad.why}") from bad
