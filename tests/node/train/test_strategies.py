"""Strategies: each against its paper's formula or torch's own optimizer; the files that carry their state."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from dfl_ledger.errors import SpecInvalid, UpdateRefused
from dfl_node.train import aggregation, strategies, tensors
from dfl_node.train.codec import Schema, TensorSpec
from dfl_node.train.strategies import scaffold
from dfl_node.train.tensors import State
from dfl_node.train.trainer import PLAIN, AggregationConfig

SHARED = Schema((TensorSpec("b", (4,), "F32"), TensorSpec("w", (5, 3), "F32")))
Updates = list[tuple[State, float]]


def rule(strategy: str, **args: float) -> AggregationConfig:
    return AggregationConfig(strategy, args)


def state(seed: int, scale: float = 1.0) -> State:
    random = np.random.RandomState(seed)
    return {
        "w": (random.standard_normal((5, 3)) * scale).astype(np.float32),
        "b": (random.standard_normal(4) * scale).astype(np.float32),
    }


def rounds(config: AggregationConfig, deltas: Sequence[State]) -> list[State]:
    """The model files of rounds with one update each."""
    files = [aggregation.first_file(state(0), config)]
    for delta in deltas:
        files.append(aggregation.next_file(files[-1], [(delta, 32.0)], config))
    return files


# -- FedAvg -----------------------------------------------------------------------------------------------
def test_mean_is_that_of_exact_arithmetic() -> None:
    parent = state(0)
    updates: Updates = [(state(1, 0.1), 1280), (state(2, 0.1), 640), (state(3, 0.1), 1)]
    result = aggregation.next_file(parent, updates, PLAIN)
    for name in parent:
        for place in np.ndindex(parent[name].shape):
            total = sum(Fraction(float(delta[name][place])) * Fraction(n) for delta, n in updates)
            exact = Fraction(float(parent[name][place])) - total / 1921
            assert result[name][place] == np.float32(float(exact))
        assert result[name].dtype == np.float32


def test_nothing_added_is_the_parent() -> None:
    parent = state(0)
    for result in (aggregation.next_file(parent, [], PLAIN), aggregation.coalition(parent, [])):
        assert all(result[name].tobytes() == parent[name].tobytes() for name in parent)


def test_equal_updates_are_their_own_mean() -> None:
    """parent - mean(delta, delta, delta) is parent - delta whatever the weights."""
    parent, delta = state(0), state(1)
    result = aggregation.next_file(parent, [(delta, 3), (delta, 1000), (delta, 77)], PLAIN)
    for name in parent:
        expected = (parent[name].astype(np.float64) - delta[name]).astype(np.float32)
        np.testing.assert_allclose(result[name], expected, rtol=1e-6)


def test_fedprox_is_fedavg_at_the_server() -> None:
    deltas = [state(1, 0.1), state(2, 0.1)]
    for mine, plain in zip(rounds(rule("fedprox", mu=1), deltas), rounds(PLAIN, deltas), strict=True):
        assert all(mine[name].tobytes() == plain[name].tobytes() for name in plain)


# -- adaptive servers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_adaptive_servers_follow_the_paper(name: str) -> None:
    """Reddi et al.'s Algorithm 2 number by number, in the paper's sign: delta is trained minus parent."""
    lr, beta1, beta2, tau = 0.03, 0.8, 0.95, 1e-2
    sent = [state(seed, 0.1) for seed in (1, 2, 3)]
    found = rounds(rule(name, lr=lr, beta1=beta1, beta2=beta2, tau=tau), sent)[-1]
    for tensor in ("w", "b"):
        for place in np.ndindex(found[tensor].shape):
            x, m, v = float(state(0)[tensor][place]), 0.0, tau**2
            for delta in (-float(one[tensor][place]) for one in sent):
                m = beta1 * m + (1 - beta1) * delta
                if name == "fedadam":
                    v = beta2 * v + (1 - beta2) * delta**2
                else:
                    v = v - (1 - beta2) * delta**2 * math.copysign(1, v - delta**2)
                x += lr * m / (math.sqrt(v) + tau)
            assert found[tensor][place] == pytest.approx(x, rel=1e-5, abs=1e-6)
            assert found[f"server.v.{tensor}"][place] == pytest.approx(v, rel=1e-5)
            assert found[f"server.m.{tensor}"][place] == pytest.approx(-m, rel=1e-4, abs=1e-7)


def test_yogi_forgets_a_large_step_more_slowly() -> None:
    quiet = [state(9, 1e-4)] * 20
    adam, yogi = (rounds(rule(name), [state(1), *quiet])[-1] for name in ("fedadam", "fedyogi"))
    assert (yogi["server.v.w"] > adam["server.v.w"]).all()


def test_a_hostile_server_state_gives_no_model() -> None:
    """A negative v has no root: NaN, which no file may hold."""
    config = rule("fedadam")
    file = aggregation.first_file(state(0), config) | {"server.v.w": np.full((5, 3), -1e6, np.float32)}
    result = aggregation.next_file(file, [(state(1), 1.0)], config)
    with pytest.raises(UpdateRefused, match="NaN"):
        tensors.encode(result, strategies.model_file(SHARED, config))


# -- DiLoCo -----------------------------------------------------------------------------------------------
def test_diloco_is_torchs_nesterov() -> None:
    sent = [state(seed, 0.1) for seed in (1, 2, 3, 4)]
    found = rounds(rule("diloco", lr=0.5, momentum=0.8), sent)[-1]
    for name in ("w", "b"):
        parameter = torch.nn.Parameter(torch.from_numpy(state(0)[name]))
        outer = torch.optim.SGD([parameter], lr=0.5, momentum=0.8, nesterov=True)
        for delta in sent:
            parameter.grad = torch.from_numpy(delta[name])
            outer.step()
        np.testing.assert_allclose(found[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_diloco_without_momentum_is_fedavg() -> None:
    deltas = [state(1, 0.1), state(2, 0.1)]
    found, plain = rounds(rule("diloco", lr=1, momentum=0), deltas)[-1], rounds(PLAIN, deltas)[-1]
    assert all(found[name].tobytes() == plain[name].tobytes() for name in plain)


# -- SCAFFOLD ---------------------------------------------------------------------------------------------
# Members with losses curvature_i / 2 * (x - centre_i)^2: far from alike, in slope and in place.
MEMBERS = ((1.0, -3.0), (4.0, 2.0), (0.2, 10.0))
OPTIMUM = sum(a * b for a, b in MEMBERS) / sum(a for a, _ in MEMBERS)
LR, STEPS = 0.1, 10


def toy(strategy: str, momentum: float, taking_part: Sequence[Sequence[int]], **args: float) -> float:
    """Where rounds of the toy end: one number, trained with heavy-ball SGD at each member."""
    config = rule(strategy, **args)
    controlled = strategies.find(strategy).control
    own = [0.0 for _ in MEMBERS]
    file = aggregation.first_file({"x": np.zeros(1)}, config)
    for members in taking_part:
        updates: Updates = []
        for i in members:
            curvature, centre = MEMBERS[i]
            server = float(file["server.control.x"][0]) if controlled else 0.0
            start = float(file["x"][0])
            x, velocity = start, 0.0
            for _ in range(STEPS):
                gradient = curvature * (x - centre) + (server - own[i] if controlled else 0.0)
                velocity = momentum * velocity + gradient
                x -= LR * velocity
            update: State = {"x": np.array([start - x])}
            if controlled:
                after = scaffold.control(own[i], server, start - x, scaffold.reach(STEPS, LR, momentum))
                update["control.x"] = np.array([after - own[i]])
                own[i] = after
            updates.append((update, 1.0))
        file = aggregation.next_file(file, updates, config)
    return float(file["x"][0])


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_scaffold_has_no_drift_where_fedavg_has(momentum: float) -> None:
    everyone = [range(3)] * 300
    assert abs(toy("fedavg", momentum, everyone) - OPTIMUM) > 0.25
    assert toy("scaffold", momentum, everyone) == pytest.approx(OPTIMUM, abs=1e-6)


def test_scaffold_with_drawn_members() -> None:
    """Two of three a round: c moves by 2 / 3 of their mean change; the rounds still end at the optimum."""
    random = np.random.RandomState(5)
    drawn = [random.permutation(3)[:2].tolist() for _ in range(1500)]
    assert toy("scaffold", 0.0, drawn, clients=3, lr=0.5) == pytest.approx(OPTIMUM, abs=1e-3)


def test_scaffold_against_the_algorithm_in_exact_arithmetic() -> None:
    """One round of Algorithm 1, option II, of three clients of which two take part."""
    x, c, own = Fraction(1), Fraction(1, 4), {0: Fraction(1, 2), 1: Fraction(-1, 3)}
    eta, k = Fraction(1, 8), 3
    moved, changed, updates = [], [], Updates()
    for i, slope in ((0, Fraction(1, 2)), (1, Fraction(2))):
        y = x
        for _ in range(k):
            y -= eta * (slope * y - own[i] + c)
        after = own[i] - c + (x - y) / (k * eta)
        moved.append(y - x)
        changed.append(after - own[i])
        ours = scaffold.control(float(own[i]), float(c), float(x - y), scaffold.reach(k, float(eta), 0.0))
        assert ours == pytest.approx(float(after))
        updates.append(({"x": np.array([float(x - y)]), "control.x": np.array([float(after - own[i])])}, 1.0))
    file: State = {"x": np.array([1.0]), "server.control.x": np.array([0.25])}
    found = aggregation.next_file(file, updates, rule("scaffold", clients=3, lr=0.5))
    assert found["x"][0] == pytest.approx(float(x + Fraction(1, 2) * sum(moved) / 2))
    assert found["server.control.x"][0] == pytest.approx(float(c + Fraction(2, 3) * sum(changed) / 2))


def test_more_updates_than_clients_count_as_all() -> None:
    """|S| / N is a share, also when the job has grown beyond what its spec says."""
    update: State = state(1) | {f"control.{name}": tensor for name, tensor in state(2).items()}
    grown, all_of_them = (
        aggregation.next_file(
            aggregation.first_file(state(0), rule("scaffold")),
            [(update, 1.0)] * 4,
            rule("scaffold", clients=clients),
        )
        for clients in (2, 0)
    )
    assert all((grown[name] == all_of_them[name]).all() for name in grown)


# -- files ------------------------------------------------------------------------------------------------
FILES = {
    "fedavg": ((), False),
    "fedprox": ((), False),
    "fedadam": (("m", "v"), False),
    "fedyogi": (("m", "v"), False),
    "diloco": (("momentum",), False),
    "scaffold": (("control",), True),
}


def test_every_strategy_is_known() -> None:
    assert set(strategies.NAMES) == set(FILES)


@pytest.mark.parametrize("name", strategies.NAMES)
def test_layouts(name: str) -> None:
    """Server state travels with the model, control variates with updates; each file has its schema."""
    kept, control = FILES[name]
    config = rule(name)
    server = {f"server.{what}.{tensor}" for what in kept for tensor in ("b", "w")}
    controls = {"control.b", "control.w"} if control else set()
    model, update = strategies.model_file(SHARED, config), strategies.update_file(SHARED, config)
    assert {t.name for t in model.tensors} == {"b", "w"} | server
    assert {t.name for t in update.tensors} == {"b", "w"} | controls
    assert {t.name for t in strategies.local_file(SHARED, config).tensors} == controls
    assert list(model.tensors) == sorted(model.tensors, key=lambda t: t.name)
    file = aggregation.first_file(state(0), config)
    sent: State = state(1, 0.1) | {n: np.ones_like(state(0)[n.removeprefix("control.")]) for n in controls}
    for _ in range(2):
        read = tensors.decode(tensors.encode(file, model), model, max_bytes=model.file_bytes)
        assert {n: t.tobytes() for n, t in read.items()} == {n: t.tobytes() for n, t in file.items()}
        file = aggregation.next_file(read, [(sent, 1.0)], config)
    assert aggregation.shared_part(file).keys() == {"b", "w"}


@pytest.mark.parametrize("aggregator", ["median", "multi-krum", "geometric-median"])
@pytest.mark.parametrize("name", strategies.NAMES)
def test_strategies_go_with_robust_aggregators(name: str, aggregator: str) -> None:
    """Control variates are combined by the same rule: one hostile change does not reach the server's c."""
    config = AggregationConfig(name, {}, aggregator, {"f": 1, "mixing": 1})
    controls = [{f"control.{n}": t for n, t in state(seed, 0.1).items()} for seed in range(1, 5)]
    controls[0] = {n: np.full_like(t, 1e6) for n, t in controls[0].items()}
    updates: Updates = [(state(seed, 0.1) | control, 1.0) for seed, control in enumerate(controls)]
    file = aggregation.next_file(aggregation.first_file(state(0), config), updates, config)
    assert all(abs(t).max() < 10 for t in file.values())


# -- arguments --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "args", "field"),
    [
        ("fedsgd", {}, "training.strategy"),
        ("../fedavg", {}, "training.strategy"),
        ("fedavg", {"mu": 0.1}, "training.strategy_args.mu"),
        ("fedprox", {"mu": -0.1}, "training.strategy_args.mu"),
        ("fedprox", {"mu": "much"}, "training.strategy_args.mu"),
        ("fedadam", {"beta2": 1}, "training.strategy_args.beta2"),
        ("fedyogi", {"tau": 0}, "training.strategy_args.tau"),
        ("diloco", {"lr": math.nan}, "training.strategy_args.lr"),
        ("scaffold", {"clients": 2.5}, "training.strategy_args.clients"),
    ],
)
def test_impossible_arguments(name: str, args: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        strategies.check(name, args)
    assert caught.value.field == field


def test_optimizers_that_fit() -> None:
    for name in strategies.NAMES:
        strategies.check_optimizer(name, "sgd")
    with pytest.raises(SpecInvalid, match="must be sgd with strategy scaffold") as caught:
        strategies.check_optimizer("scaffold", "adamw")
    assert caught.value.field == "training.optimizer"


def test_a_spec_is_checked_without_numpy_and_torch() -> None:
    program = (
        "import sys; from dfl_node.train import aggregators, strategies;"
        "[strategies.check(name, {}) for name in strategies.NAMES];"
        "[aggregators.check(name, {}) for name in aggregators.NAMES];"
        "print({'torch', 'numpy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
