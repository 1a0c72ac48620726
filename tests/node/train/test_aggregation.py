"""A round's rule from bytes to bytes: what reaches an aggregator, and the same file on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
import trio

from dfl_node.train import aggregators, strategies
from dfl_node.train.aggregators import Plan, arrays
from dfl_node.train.aggregators.arrays import Array64, Vector
from dfl_node.train.frames import Frame
from dfl_node.train.operations import Operations
from dfl_node.train.process import open_trainer
from dfl_node.train.trainer import AggregationConfig, WeightedUpdate
from tests.conformance.trainer import HOSTILE, LIMIT, MODEL, TRAINING, assignment, with_last

RULES = [AggregationConfig(strategy, {}, "mean", {}) for strategy in strategies.NAMES] + [
    AggregationConfig("scaffold", {}, aggregator, {"f": 1, "mixing": mixing})
    for aggregator in aggregators.NAMES
    for mixing in (0, 1)
]


def title(rule: AggregationConfig) -> str:
    return f"{rule.strategy} {rule.aggregator} {rule.aggregator_args.get('mixing', 0)}"


@pytest.fixture(scope="module")
def work() -> tuple[bytes, list[bytes]]:
    """A first model file of SCAFFOLD and five updates of it, from one worker."""

    async def main() -> tuple[bytes, list[bytes]]:
        rule = AggregationConfig("scaffold")
        async with open_trainer() as trainer:
            parent = await trainer.init_model(MODEL, 1, rule)
            todo = [replace(assignment(parent, node=node), rule=rule) for node in range(5)]
            return parent, [(await trainer.train(one)).delta for one in todo]

    return trio.run(main)


@pytest.mark.parametrize("mixing", [0, 1])
@pytest.mark.parametrize("aggregator", aggregators.NAMES)
def test_an_aggregator_sees_sound_numbers_only(
    aggregator: str, mixing: int, work: tuple[bytes, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN, Inf, other sizes, too large numbers are refused before: a median would pass them on."""
    parent, good = work
    seen: list[int] = []
    shapes = {"1.weight": (4, 784), "1.bias": (4,), "3.weight": (10, 4), "3.bias": (10,)}
    execute = arrays.execute

    def watched(plan: Plan, vectors: Sequence[Vector]) -> dict[str, Array64]:
        for vector in vectors:
            assert {name: tensor.shape for name, tensor in vector.items()} == shapes
            assert all(np.isfinite(tensor).all() for tensor in vector.values())
            assert all(np.abs(tensor).max() <= 1e6 for tensor in vector.values())
        seen.append(len(vectors))
        return execute(plan, vectors)

    monkeypatch.setattr(arrays, "execute", watched)
    monkeypatch.setattr(Operations, "_torch", lambda _: None)  # its settings are for a process of its own
    hostile = [spoil(good[0]) for spoil, _ in HOSTILE.values()]
    hostile += [with_last(good[0], value) for value in (math.nan, math.inf, -math.inf, 1.1e6, -1e30)]
    updates = [hostile[0], good[0], *hostile[1:], *good[1:]]
    request = Frame(
        {
            "op": "aggregate",
            "model": asdict(MODEL),
            "rule": {
                "strategy": "scaffold",
                "strategy_args": {},
                "aggregator": aggregator,
                "aggregator_args": {"f": 1, "mixing": mixing},
            },
            "samples": [64] * len(updates),
            "staleness": [0] * len(updates),
            "max_update_bytes": LIMIT,
        },
        (parent, *updates),
    )
    answer = Operations(1, lambda _: None).aggregate(request)
    accepted = [not why for why in answer.header["reasons"]]
    assert accepted == [update in good for update in updates]
    assert seen == [len(good), len(good)]  # the deltas, and the control variates


def test_every_machine_makes_the_same_file(work: tuple[bytes, list[bytes]]) -> None:
    """Two workers with unlike numbers of threads, bit for bit, whatever the rule."""

    async def files(threads: int) -> list[bytes]:
        made = []
        async with open_trainer(threads=threads) as trainer:
            for rule in RULES:
                parent = await trainer.init_model(MODEL, 1, rule)
                sent = work[1]
                if rule.strategy != "scaffold":
                    sent = [
                        (await trainer.train(replace(assignment(parent, node=node), rule=rule))).delta
                        for node in range(5)
                    ]
                updates = [WeightedUpdate(data, 32 + n, staleness=n) for n, data in enumerate(sent)]
                for _ in range(2):  # the second round has a server state that the first has made
                    result = await trainer.aggregate(
                        MODEL, parent, updates, max_update_bytes=LIMIT, rule=rule
                    )
                    parent = result.model
                made.append(parent)
        return made

    async def main() -> tuple[list[bytes], list[bytes]]:
        return await files(1), await files(2)

    with_one, with_two = trio.run(main)
    for rule, one, two in zip(RULES, with_one, with_two, strict=True):
        assert one == two, title(rule)
    assert len(set(with_one[: len(strategies.NAMES)])) == len(strategies.NAMES)


def test_scaffold_needs_room_for_its_files() -> None:
    """The limit of a job's files is for the largest of them: twice the model here."""

    async def main() -> None:
        rule = AggregationConfig("scaffold")
        async with open_trainer() as trainer:
            plain, parent = await trainer.init_model(MODEL, 1), await trainer.init_model(MODEL, 1, rule)
            assert len(parent) > 1.9 * len(plain)
            tight = replace(TRAINING, max_update_bytes=len(plain) + 100)
            await trainer.train(replace(assignment(plain), training=tight))
            with pytest.raises(Exception, match="a file of this model has") as caught:
                await trainer.train(replace(assignment(parent), training=tight, rule=rule))
            assert getattr(caught.value, "field", "") == "training.max_update_bytes"

    trio.run(main)
