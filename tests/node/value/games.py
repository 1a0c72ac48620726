"""Games to value: the value of every coalition, by its bit mask."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

Value = Callable[[int], int]


def members(coalition: int) -> list[int]:
    return [player for player in range(coalition.bit_length()) if coalition >> player & 1]


def averaging(n: int, seed: int, *, hostile: int = 0) -> Value:
    """Like training: a coalition goes its mean step towards a minimum; a hostile one far the other way."""
    source = random.Random(seed)  # noqa: S311  a game, not a secret
    steps = [[source.gauss(1.0, 0.6) for _ in range(6)] for _ in range(n)]
    for player in range(hostile):
        steps[player] = [-2.5 * number for number in steps[player]]

    def value(coalition: int) -> int:
        own = [steps[player] for player in members(coalition)]
        mean = [sum(column) / len(own) for column in zip(*own, strict=True)] if own else []
        return round(1e7 * sum(x - 0.4 * x * x for x in mean))

    return value


def saturating(n: int, seed: int) -> Value:
    """Everybody helps, and the more there are the less."""
    source = random.Random(seed)  # noqa: S311  a game, not a secret
    skill = [source.uniform(0.2, 1.0) for _ in range(n)]
    return lambda coalition: round(5e8 * (1 - math.exp(-math.fsum(skill[p] for p in members(coalition)))))


def additive(n: int, seed: int) -> Value:
    source = random.Random(seed)  # noqa: S311  a game, not a secret
    worth = [source.randrange(10**6, 10**8) for _ in range(n)]
    return lambda coalition: sum(worth[player] for player in members(coalition))
