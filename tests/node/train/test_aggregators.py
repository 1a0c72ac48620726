"""Robust aggregators: against byzfl's values, against exact arithmetic, and against hostile updates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfl_ledger.errors import SpecInvalid
from dfl_node.train import aggregators
from dfl_node.train.aggregators import Middle, Sum, arrays
from dfl_node.train.aggregators.arrays import Vector
from dfl_node.train.tensors import State

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("aggregators.json").read_text())
ROBUST = tuple(name for name in aggregators.NAMES if name != "mean")


def state(vector: Sequence[float]) -> State:
    """A vector of at least 4 as two tensors."""
    values = np.array(vector, np.float64)
    return {"b": values[:4].reshape(2, 2), "a": values[4:]}


def vector(found: Vector) -> list[float]:
    return [*found["b"].reshape(-1).tolist(), *found["a"].tolist()]


def combine(
    name: str,
    args: dict[str, Any],
    vectors: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
) -> list[float]:
    states = [state(v) for v in vectors]
    chosen = [1.0] * len(states) if weights is None else weights
    plan = aggregators.plan(name, args, chosen, lambda: arrays.distances(states))
    return vector(arrays.execute(plan, states))


def drawn(n: int, seed: int, spread: float = 0.1) -> list[list[float]]:
    """Honest updates: a direction that all share, and noise."""
    random = np.random.RandomState(seed)
    updates: list[list[float]] = (
        random.standard_normal(20) + spread * random.standard_normal((n, 20))
    ).tolist()
    return updates


# -- golden values ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("round_", GOLDEN["rounds"], ids=lambda round_: f"{len(round_['vectors'])} updates")
def test_values_of_byzfl(round_: dict[str, Any]) -> None:
    """Its definitions are ours while n > 2 f. (Of Multi-Krum it takes a variant, see `geometry.multi_krum`.
    When n <= 2 f it raises, where a round must still end: see `test_too_few_updates`.)"""
    for answer in round_["answers"]:
        found = combine(answer["aggregator"], answer["args"], round_["vectors"])
        np.testing.assert_allclose(found, answer["result"], rtol=1e-9, atol=1e-12, err_msg=str(answer))


def test_golden_values_cover_every_rule() -> None:
    asked = {(a["aggregator"], a["args"]["mixing"]) for r in GOLDEN["rounds"] for a in r["answers"]}
    assert asked == {(name, mixing) for name in aggregators.NAMES for mixing in (0, 1)}


# -- arithmetic -------------------------------------------------------------------------------------------
def test_distances_are_sums_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what Python's own floats give in lanes folded by halves, whatever the processor."""
    monkeypatch.setattr(arrays, "LANES", 8)
    random = np.random.RandomState(7)
    states: list[State] = [
        {
            "w": random.standard_normal((5, 7)).astype(np.float32),
            "b": random.standard_normal(11).astype(np.float32),
        }
        for _ in range(3)
    ]
    found = arrays.distances(states)
    zero: State = {name: np.zeros_like(tensor) for name, tensor in states[0].items()}
    points = [*states, zero]
    for i, one in enumerate(points):
        for j, other in enumerate(points):
            lanes = [0.0] * 8
            for name in ("b", "w"):
                pairs = zip(one[name].reshape(-1).tolist(), other[name].reshape(-1).tolist(), strict=True)
                for place, (x, y) in enumerate(pairs):
                    lanes[place % 8] += (x - y) * (x - y)
            for half in (4, 2, 1):
                lanes = [lanes[k] + lanes[k + half] for k in range(half)]
            assert found[i][j] == lanes[0]


def test_distances_are_those_of_exact_arithmetic() -> None:
    random = np.random.RandomState(8)
    one, other = (random.standard_normal(40_000).astype(np.float32) for _ in range(2))
    found = arrays.distances([{"w": one}, {"w": other}])
    exact = sum((Fraction(x) - Fraction(y)) ** 2 for x, y in zip(one.tolist(), other.tolist(), strict=True))
    assert found[0][1] == pytest.approx(float(exact), rel=1e-14)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_middle_by_pieces_is_that_of_numpy(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "LANES", 4)
    values = drawn(n, 3)
    np.testing.assert_array_equal(combine("median", {}, values), np.median(values, axis=0))


def test_a_negative_zero_leaves_no_trace() -> None:
    """0.0 and -0.0 are equal, so that sorting may leave either: the sign must not reach the model's bytes."""
    for zeros in ([0.0, -0.0, -0.0], [-0.0, 0.0, -0.0], [-0.0, -0.0, -0.0]):
        found = combine("median", {}, [[zero] * 5 for zero in zeros])
        assert all(math.copysign(1, value) == 1 for value in found)


def test_plain_mean_weighs_samples() -> None:
    assert combine("mean", {}, [[3.0] * 5, [0.0] * 5], [100.0, 50.0]) == [2.0] * 5


def test_a_stale_update_counts_for_less_by_itself() -> None:
    assert [aggregators.discount(staleness) for staleness in (0, 3)] == [1.0, 0.5]


@pytest.mark.parametrize("mixing", [0, 1])
@pytest.mark.parametrize("name", ROBUST)
def test_robust_rules_count_heads(name: str, mixing: int) -> None:
    """Samples are what a node says of itself."""
    values, args = drawn(6, 4), {"f": 1, "mixing": mixing}
    boasting = combine(name, args, values, [1e9, 1, 1, 1, 1, 1])
    assert boasting == combine(name, args, values)


@pytest.mark.parametrize("mixing", [0, 1])
@pytest.mark.parametrize("name", ROBUST)
def test_nobody_gains_by_coming_first(name: str, mixing: int) -> None:
    values, args = drawn(7, 5), {"f": 2, "mixing": mixing}
    order = [3, 0, 6, 2, 5, 1, 4]
    np.testing.assert_allclose(
        combine(name, args, [values[k] for k in order]), combine(name, args, values), rtol=1e-12
    )


# -- hostile updates --------------------------------------------------------------------------------------
ATTACKS: dict[str, Callable[[list[list[float]]], list[float]]] = {
    "as far as may be": lambda honest: [1e6] * 20,
    "sign flipped": lambda honest: (-3 * np.mean(honest, axis=0)).tolist(),
    "nothing": lambda honest: [0.0] * 20,
    "a little": lambda honest: (np.mean(honest, axis=0) - 1.5 * np.std(honest, axis=0)).tolist(),
    "one coordinate": lambda honest: [1e6, *np.mean(honest, axis=0).tolist()[1:]],
}


@pytest.mark.parametrize("mixing", [0, 1])
@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_minority_moves_little(attack: str, name: str, mixing: int) -> None:
    """The step stays within what honest updates differ by, from their mean."""
    honest = drawn(8, 6)
    hostile = [ATTACKS[attack](honest)] * 3
    found = combine(name, {"f": 3, "mixing": mixing}, [*hostile, *honest])
    mean = np.mean(honest, axis=0)
    apart = np.linalg.norm(np.array(found) - mean)
    spread = max(np.linalg.norm(np.array(one) - mean) for one in honest)
    # Clipping bounds each pull by a radius as long as an update, and a minority pulls for three steps: what
    # is left is a step smaller than the honest one, but in its direction.
    if name == "centered-clip":
        assert float(np.dot(found, mean)) > 0.3 * float(np.dot(mean, mean))
        assert np.linalg.norm(found) < 1.5 * np.linalg.norm(mean)
    else:
        assert apart < 1.5 * spread


def test_the_mean_does_not_stand_that() -> None:
    honest = drawn(8, 6)
    found = combine("mean", {}, [[1e6] * 20] * 3 + honest)
    assert np.linalg.norm(found) > 1e5


@pytest.mark.parametrize("mixing", [0, 1])
@pytest.mark.parametrize("name", ["trimmed-mean", "multi-krum"])
def test_too_few_updates(name: str, mixing: int) -> None:
    """With n <= 2 f the coordinate median is taken."""
    for n in (1, 2, 3, 4):
        values = drawn(n, 9)
        found = combine(name, {"f": 2, "mixing": mixing}, values)
        np.testing.assert_array_equal(found, np.median(values, axis=0))


@pytest.mark.parametrize("mixing", [0, 1])
@pytest.mark.parametrize("name", aggregators.NAMES)
def test_one_update_alone_is_the_step(name: str, mixing: int) -> None:
    values = drawn(1, 10)
    np.testing.assert_allclose(combine(name, {"f": 1, "mixing": mixing}, values), values[0], rtol=1e-12)


@pytest.mark.parametrize("mixing", [0, 1])
@pytest.mark.parametrize("name", aggregators.NAMES)
def test_equal_updates_are_the_step(name: str, mixing: int) -> None:
    """All distances are 0: nothing is divided by them."""
    values = drawn(1, 11) * 5
    np.testing.assert_allclose(combine(name, {"f": 1, "mixing": mixing}, values), values[0], rtol=1e-12)


@pytest.mark.parametrize("mixing", [0, 1])
@pytest.mark.parametrize("name", aggregators.NAMES)
def test_updates_that_do_nothing(name: str, mixing: int) -> None:
    assert combine(name, {"f": 1, "mixing": mixing}, [[0.0] * 6] * 4) == [0.0] * 6


# -- arguments --------------------------------------------------------------------------------------------
def test_defaults_are_filled_in() -> None:
    assert aggregators.check("median", {}) == {"f": 1.0, "mixing": 0.0}
    assert aggregators.check("geometric-median", {"steps": 4})["steps"] == 4.0


@pytest.mark.parametrize(
    ("name", "args", "field"),
    [
        ("krum", {}, "training.aggregator"),
        ("", {}, "training.aggregator"),
        ("mean", {"tau": 1}, "training.aggregator_args.tau"),
        ("trimmed-mean", {"f": -1}, "training.aggregator_args.f"),
        ("trimmed-mean", {"f": 1.5}, "training.aggregator_args.f"),
        ("trimmed-mean", {"f": True}, "training.aggregator_args.f"),
        ("trimmed-mean", {"f": "2"}, "training.aggregator_args.f"),
        ("trimmed-mean", {"f": 10**400}, "training.aggregator_args.f"),
        ("trimmed-mean", {"f": 10**5000}, "training.aggregator_args.f"),
        ("median", {"mixing": 2}, "training.aggregator_args.mixing"),
        ("geometric-median", {"nu": 0}, "training.aggregator_args.nu"),
        ("geometric-median", {"nu": math.nan}, "training.aggregator_args.nu"),
        ("centered-clip", {"tau": math.inf}, "training.aggregator_args.tau"),
        ("centered-clip", {"steps": 0}, "training.aggregator_args.steps"),
    ],
)
def test_impossible_arguments(name: str, args: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        aggregators.check(name, args)
    assert caught.value.field == field


def test_rules_without_distances_ask_for_none() -> None:
    """They cost a pass over every pair of updates."""

    def never() -> list[list[float]]:
        raise AssertionError

    assert aggregators.plan("mean", {}, [1.0, 2.0], never) == Sum((1.0, 2.0), 3.0)
    assert aggregators.plan("median", {}, [1.0] * 4, never) == Middle(1, ((0,), (1,), (2,), (3,)))
    assert aggregators.plan("trimmed-mean", {"f": 1}, [1.0] * 3, never) == Middle(1, ((0,), (1,), (2,)))
    assert isinstance(aggregators.plan("multi-krum", {"f": 2}, [1.0] * 4, never), Middle)
