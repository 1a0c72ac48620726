"""FedAvg against exact rational arithmetic, and its order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from dfl_node.train.strategies import fedavg
from dfl_node.train.tensors import State


def state(seed: int, scale: float = 1.0) -> State:
    random = np.random.RandomState(seed)
    return {
        "w": (random.standard_normal((5, 3)) * scale).astype(np.float32),
        "b": (random.standard_normal(4) * scale).astype(np.float32),
    }


def average(parent: State, updates: list[tuple[State, int]]) -> State:
    total = fedavg.init(parent)
    for delta, samples in updates:
        total = fedavg.apply(total, delta, samples)
    return fedavg.model(total, parent)


def test_mean_is_that_of_exact_arithmetic() -> None:
    parent = state(0)
    updates = [(state(1, 0.1), 1280), (state(2, 0.1), 640), (state(3, 0.1), 1)]
    result = average(parent, updates)
    for name in parent:
        for place in np.ndindex(parent[name].shape):
            total = sum(Fraction(float(delta[name][place])) * n for delta, n in updates)
            exact = Fraction(float(parent[name][place])) - total / 1921
            assert result[name][place] == np.float32(float(exact))
        assert result[name].dtype == np.float32


def test_same_order_same_bits() -> None:
    parent, updates = state(0), [(state(n), n) for n in range(1, 9)]
    first, second = average(parent, updates), average(parent, updates)
    assert all(first[name].tobytes() == second[name].tobytes() for name in parent)


def test_nothing_added_is_the_parent() -> None:
    parent = state(0)
    result = average(parent, [])
    assert all(result[name].tobytes() == parent[name].tobytes() for name in parent)


def test_equal_updates_are_their_own_mean() -> None:
    """parent - mean(delta, delta, delta) is parent - delta whatever the weights."""
    parent, delta = state(0), state(1)
    result = average(parent, [(delta, 3), (delta, 1000), (delta, 77)])
    for name in parent:
        expected = (parent[name].astype(np.float64) - delta[name]).astype(np.float32)
        np.testing.assert_allclose(result[name], expected, rtol=1e-6)
