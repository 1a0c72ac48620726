"""Near-duplicates among real updates of digits: copies are found, honest work is not taken for one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch

from dfl_node.train import aggregation, likeness
from dfl_node.train.aggregators import arrays
from dfl_node.train.application import load_application
from dfl_node.train.evaluation import get_state, inputs_of, set_state
from dfl_node.train.local_sgd import seed_words, train
from dfl_node.train.models import kind
from dfl_node.train.network import start
from dfl_node.train.tensors import State
from dfl_node.train.trainer import ModelConfig, TrainingConfig
from dfl_node.value.duplicates import THRESHOLD

SGD = TrainingConfig(10, 32, 0.05, 0.9, "sgd", 1, 1 << 28)
WHOLE = TrainingConfig(1, 1750, 0.1, 0.0, "sgd", 1, 1 << 28)  # a step on half of all rows: the most alike


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def honest(model: ModelConfig, config: TrainingConfig, members: int, rounds: int) -> list[list[State]]:
    """The updates of each round of FedAvg on IID parts of the digits."""
    app = load_application("digits")
    rows = [inputs_of(app.load(None, (i, i, members), None), kind(model)) for i in range(1, members + 1)]
    net = start(model, None)
    parent = {name: tensor.copy() for name, tensor in get_state(net).items()}
    found = []
    for round_ in range(rounds):
        updates = []
        for member, inputs in enumerate(rows):
            set_state(net, parent)
            seed = seed_words(1, round_, member, 1)
            train(net, inputs, config, steps=config.local_steps, seed=seed, progress=lambda *_: None)
            trained = get_state(net)
            updates.append({name: parent[name] - trained[name] for name in parent})
        found.append(updates)
        parent = aggregation.coalition(parent, [(update, 1.0) for update in updates])
    return found


def cosine(one: State, other: State) -> float:
    dot, squares = arrays.dot(one, other), arrays.dot(one, one) * arrays.dot(other, other)
    return float(dot / squares**0.5)


@pytest.mark.parametrize(
    ("model", "config", "members", "rounds"),
    [
        (ModelConfig("mlp", {"hidden": 32}), SGD, 4, 6),
        (ModelConfig("mlp", {"hidden": 32}), WHOLE, 2, 3),
        (ModelConfig("cnn", {}), SGD, 3, 3),
    ],
    ids=["mlp", "mlp, whole parts", "cnn"],
)
def test_honest_updates_are_no_duplicates(
    model: ModelConfig, config: TrainingConfig, members: int, rounds: int
) -> None:
    """With a margin: two thirds of the angle between the most alike are still no copy's."""
    for updates in honest(model, config, members, rounds):
        assert likeness.groups(updates) == tuple(range(members))
        largest = max(cosine(one, other) for one, other in combinations(updates, 2))
        assert np.arccos(largest) > 1.5 * np.arccos(THRESHOLD)


def test_copies_are_found_whatever_their_scale() -> None:
    (updates,) = honest(ModelConfig("mlp", {"hidden": 32}), SGD, 4, 1)
    noise = np.random.RandomState(1)
    own = updates[2]
    length = arrays.dot(own, own) ** 0.5
    count = sum(tensor.size for tensor in own.values())

    def noisy(share: float) -> State:
        size = share * length / count**0.5
        return {name: t + size * noise.standard_normal(t.shape).astype(t.dtype) for name, t in own.items()}

    copies = [
        own,
        {name: (tensor * np.float32(1e-20)) for name, tensor in own.items()},
        {name: tensor * np.float32(1e5) for name, tensor in own.items()},
        noisy(0.01),
        noisy(0.1),
    ]
    assert likeness.groups([*updates, *copies]) == (0, 1, 2, 3, 2, 2, 2, 2, 2)
    others = [noisy(0.2), {name: -tensor for name, tensor in own.items()}]
    assert likeness.groups([*updates, *others]) == (0, 1, 2, 3, 4, 5)
    nothing = {name: np.zeros_like(tensor) for name, tensor in own.items()}
    assert likeness.groups([nothing, own, nothing]) == (0, 1, 0)
    assert likeness.groups([]) == ()


def test_copies_are_one_player_that_weighs_what_its_heaviest_does() -> None:
    (updates,) = honest(ModelConfig("mlp", {"hidden": 32}), SGD, 2, 1)
    one, other = updates
    twice = {name: tensor * 2 for name, tensor in one.items()}
    weighted = [(one, 10.0), (other, 7.0), (one, 30.0), (twice, 10.0)]
    (step, weight), alone = likeness.players(weighted, (0, 1, 0, 0))
    assert alone == (other, 7.0)
    assert weight == 30.0
    for name, tensor in one.items():
        assert step[name] == pytest.approx(tensor.astype(np.float64) * (10 + 30 + 2 * 10) / 50)
    same, _ = likeness.players([(one, 13.0), (one, 13.0), (other, 7.0)], (0, 0, 2))[0]
    assert all((same[name] == tensor).all() for name, tensor in one.items())


def test_the_decision_is_that_of_the_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the threshold the quick product only says where to look."""
    one = {"a": np.array([1.0, 0.0])}
    for apart, alike in ((np.arccos(THRESHOLD) - 1e-9, True), (np.arccos(THRESHOLD) + 1e-9, False)):
        other = {"a": np.array([np.cos(apart), np.sin(apart)])}
        assert likeness.groups([one, other]) == ((0, 0) if alike else (0, 1))
    monkeypatch.setattr(likeness, "_cosines", lambda steps: np.full((2, 2), THRESHOLD - 1e-12))
    assert likeness.groups([one, one]) == (0, 0)
