"""How alike honest updates are, and from which threshold on likeness means a copy.

    python benchmarks/similarity.py [--write]

Digits in IID parts, MLP and CNN, from the first round on: the cosine between the steps of any two members,
which started from the same model and worked on their own rows. Then what a copier gets who adds noise.
`--write` records benchmarks/results/similarity.json; `dfl_node/value/duplicates.py` has the threshold.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dfl_node.train import aggregation, evaluation, local_sgd, models, network
from dfl_node.train.application import load_application
from dfl_node.train.evaluation import inputs_of
from dfl_node.train.tensors import State
from dfl_node.train.trainer import ModelConfig, TrainingConfig
from dfl_node.value.duplicates import THRESHOLD

RESULTS = Path(__file__).parent / "results" / "similarity.json"
MODELS = (ModelConfig("mlp", {"hidden": 32}), ModelConfig("cnn", {}))
ROUNDS, LOOKED_AT = 12, (1, 2, 3, 5, 8, 12)
NOISE = (0.01, 0.05, 0.1, 0.2, 0.5)  # of the step's length
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """How members work."""

    name: str
    members: int
    local_steps: int
    batch_size: int
    optimizer: str
    lr: float
    momentum: float = 0.0


SETTINGS = (
    Setting("usual: 20 steps of SGD with momentum", 4, 20, 32, "sgd", 0.05, 0.9),
    Setting("many members: 10 steps of AdamW", 12, 10, 32, "adamw", 0.002),
    Setting("long rounds: 60 steps of AdamW", 3, 60, 32, "adamw", 0.002),
    Setting("one step on 256 rows", 4, 1, 256, "sgd", 0.1),
    # The least noise there can be: two members with half of all rows each, and every row in the step.
    Setting("one step on all 1,750 rows", 2, 1, 1750, "sgd", 0.1),
    Setting("five steps on all 1,750 rows", 2, 5, 1750, "sgd", 0.1),
)


def flat(state: State) -> Vector:
    """A step as one vector of length 1."""
    whole = np.concatenate([state[name].reshape(-1).astype(np.float64) for name in sorted(state)])
    return whole / np.linalg.norm(whole)


def rounds(model: ModelConfig, own: Setting, app: str = "digits") -> Iterator[list[State]]:
    """The members' updates, round after round of FedAvg."""
    data, kind = load_application(app), models.kind(model)
    rows = [inputs_of(data.load(None, (i, i, own.members), None), kind) for i in range(1, own.members + 1)]
    config = TrainingConfig(own.local_steps, own.batch_size, own.lr, own.momentum, own.optimizer, 1, 1 << 28)
    net = network.start(replace(model, seed=1), None)
    parent = {name: tensor.copy() for name, tensor in evaluation.get_state(net).items()}
    for round_ in range(1, ROUNDS + 1):
        updates: list[State] = []
        for member, inputs in enumerate(rows):
            evaluation.set_state(net, parent)
            seed = local_sgd.seed_words(1, round_, member, config.seed)
            local_sgd.train(net, inputs, config, steps=own.local_steps, seed=seed, progress=lambda *_: None)
            trained = evaluation.get_state(net)
            updates.append({name: parent[name] - trained[name] for name in parent})
        yield updates
        parent = aggregation.coalition(parent, [(update, 1.0) for update in updates])


def measure(model: ModelConfig, own: Setting) -> dict[str, object]:
    by_round = {}
    for round_, updates in enumerate(rounds(model, own), 1):
        if round_ in LOOKED_AT:
            cosines = [float(a @ b) for a, b in combinations([flat(update) for update in updates], 2)]
            by_round[round_] = round(max(cosines), 4)
    return {"model": model.name, **asdict(own), "largest_cosine_by_round": by_round}


def noisy(step: Vector) -> dict[float, float]:
    """The cosine between a step and its copy with Gaussian noise of a share of its length."""
    noise = np.random.RandomState(1).standard_normal(step.size)
    noise /= np.linalg.norm(noise)
    return {share: round(float(step @ (step + share * noise)) / math.hypot(1, share), 4) for share in NOISE}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true", help="record the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = []
    for model in MODELS:
        for own in SETTINGS:
            found.append(measure(model, own))
            print(f"{model.name}: {own.name}, {own.members} members: {found[-1]['largest_cosine_by_round']}")
    copies = noisy(flat(next(rounds(MODELS[0], SETTINGS[0]))[0]))
    print(f"a copy with noise of so much of its length: {copies}; threshold {THRESHOLD}")
    if options.write:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
        RESULTS.write_text(
            json.dumps(
                {
                    "command": "python benchmarks/similarity.py --write",
                    "machine": machine,
                    "threshold": THRESHOLD,
                    "honest": found,
                    "noisy_copies": copies,
                },
                indent=2,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
