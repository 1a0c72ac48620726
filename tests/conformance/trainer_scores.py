"""What every `Trainer` makes of a round's worths: marginal ones, estimates, duplicates, datasets, shards."""

from __future__ import annotations

import math

import pytest

from dfl_ledger.errors import UsageError
from dfl_node.train.trainer import WeightedUpdate
from dfl_node.value.scoring import Scores
from tests.conformance.trainer import (
    LIMIT,
    MODEL,
    NANO,
    Check,
    World,
    assignment,
    numbers,
    weigh,
    with_last,
    with_numbers,
)


async def check_score(world: World) -> None:
    """Worths add up to what the average gained; equals get the same; a refused update gets nothing."""
    trainer = world.trainer
    second = (await trainer.train(assignment(world.parent, node=2))).delta
    updates = weigh((world.delta, 50), (with_last(second, math.nan), 50), (second, 50), (world.delta, 50))
    found = await trainer.score(
        MODEL, world.parent, updates, world.validation, method="shapley", max_update_bytes=LIMIT
    )
    scores = found.worths
    assert found.method == "shapley"
    assert found.alike == (0, 1, 2, 0)
    assert not any(found.errors)
    assert found.datasets == {}
    # The first and the last are one update: as a member each, they would weigh twice.
    once = weigh((world.delta, 50), (second, 50))
    after = await trainer.aggregate(MODEL, world.parent, once, max_update_bytes=LIMIT)
    gained = (await trainer.evaluate(MODEL, world.parent, world.validation)).loss
    gained -= (await trainer.evaluate(MODEL, after.model, world.validation)).loss
    assert sum(scores) * NANO == pytest.approx(gained, abs=5 * NANO)
    assert scores[0] - scores[3] in (0, 1)
    assert scores[3] > 0
    assert scores[1] == 0
    again = await trainer.score(
        MODEL, world.parent, updates, world.validation, method="shapley", max_update_bytes=LIMIT
    )
    assert again == found


async def check_leave_one_out(world: World) -> None:
    """v(all) - v(all without i): updates that replace each other are worth little."""
    trainer = world.trainer
    worse = with_numbers(world.delta, [-d for d in numbers(world.delta)])
    second = (await trainer.train(assignment(world.parent, node=2))).delta
    updates = weigh((world.delta, 10), (worse, 10), (second, 10))
    scores = await trainer.score(
        MODEL, world.parent, updates, world.validation, method="leave-one-out", max_update_bytes=LIMIT
    )
    assert scores.method == "leave-one-out"
    assert scores.worths[1] < 0 < min(scores.worths[0], scores.worths[2])


async def check_duplicates(world: World) -> None:
    """A copy, a scaled one and one with a little noise: all together they earn what one of them would."""
    trainer = world.trainer
    second = (await trainer.train(assignment(world.parent, node=2))).delta
    own = numbers(second)
    length = math.sqrt(math.fsum(d * d for d in own) / len(own))
    noisy = with_numbers(second, [d + 0.1 * length * (-1) ** place for place, d in enumerate(own)])
    scaled = with_numbers(second, [0.25 * d for d in own])
    negated = with_numbers(second, [-d for d in own])

    async def score(*deltas: bytes) -> Scores:
        updates = weigh(*((delta, 20) for delta in deltas))
        return await trainer.score(
            MODEL, world.parent, updates, world.validation, method="shapley", max_update_bytes=LIMIT
        )

    alone = await score(world.delta, second)
    copied = await score(world.delta, second, second, second)
    assert alone.alike == (0, 1)
    assert copied.alike == (0, 1, 1, 1)
    assert copied.worths[0] == alone.worths[0]
    assert sum(copied.worths[1:]) == alone.worths[1]
    assert max(copied.worths[1:]) - min(copied.worths[1:]) <= 1
    assert (await score(second, scaled, world.delta, noisy, negated)).alike == (0, 0, 2, 0, 4)
    nothing = with_numbers(second, [0.0] * len(own))
    assert (await score(nothing, second, nothing)).alike == (0, 1, 0)


async def check_many_updates(world: World) -> None:
    """Above eight the worths are estimated: with error bars, the same for the same seed, and they add up."""
    trainer = world.trainer
    deltas = [(await trainer.train(assignment(world.parent, node=node))).delta for node in range(9)]
    deltas.append(with_numbers(deltas[0], [-2 * d for d in numbers(deltas[0])]))
    updates = weigh(*((delta, 10 + place) for place, delta in enumerate(deltas)))

    async def score(seed: int) -> Scores:
        return await trainer.score(
            MODEL,
            world.parent,
            updates,
            world.validation,
            method="shapley",
            max_update_bytes=LIMIT,
            seed=seed,
        )

    found = await score(7)
    assert found.method == "gtg-shapley"
    assert found.alike == tuple(range(10))
    assert any(found.errors)
    assert found.worths[-1] == min(found.worths) < 0
    assert found == await score(7)
    assert found.worths != (await score(2**256 - 1)).worths
    after = await trainer.aggregate(MODEL, world.parent, updates, max_update_bytes=LIMIT)
    gained = (await trainer.evaluate(MODEL, world.parent, world.validation)).loss
    gained -= (await trainer.evaluate(MODEL, after.model, world.validation)).loss
    assert sum(found.worths) * NANO == pytest.approx(gained, abs=1e-6)  # the model's float32


async def check_datasets(world: World) -> None:
    """A dataset is worth what the updates did that used it; a refused update used nothing."""
    trainer = world.trainer
    second = (await trainer.train(assignment(world.parent, node=2))).delta
    worse = with_numbers(world.delta, [-d for d in numbers(world.delta)])
    updates = [
        WeightedUpdate(world.delta, 10, datasets=(7,)),
        WeightedUpdate(worse, 10, datasets=(4,)),
        WeightedUpdate(second, 10),
        WeightedUpdate(b"junk", 10, datasets=(5,)),
    ]
    found = await trainer.score(
        MODEL, world.parent, updates, world.validation, method="shapley", max_update_bytes=LIMIT
    )
    assert found.datasets == {7: found.worths[0], 4: found.worths[1]}
    assert found.datasets[4] < 0 < found.datasets[7]


async def check_shards(world: World) -> None:
    """Rows in files of their own, each fit to score with, the same for the same seed."""
    trainer = world.trainer
    shards = await trainer.shards(world.validation, 5, 3)
    assert len(set(shards)) == 5
    assert shards == await trainer.shards(world.validation, 5, 3)
    assert shards != await trainer.shards(world.validation, 5, 4)
    for shard in shards:
        found = await trainer.score(
            MODEL, world.parent, weigh((world.delta, 1)), shard, method="shapley", max_update_bytes=LIMIT
        )
        assert len(found.worths) == 1
    for rows, count in ((world.validation, 0), (world.validation, 100_000), (b"junk", 2)):
        with pytest.raises(UsageError):
            await trainer.shards(rows, count, 1)


async def check_score_without_updates(world: World) -> None:
    for updates, worths in (([], ()), (weigh((b"junk", 1)), (0,))):
        found = await world.trainer.score(
            MODEL, world.parent, updates, world.validation, method="shapley", max_update_bytes=LIMIT
        )
        assert found.worths == found.errors == worths
        assert found.datasets == {}


async def check_impossible_scoring(world: World) -> None:
    for method, seed in (("by nose", 0), ("gtg-shapley", 0), ("shapley", -1), ("shapley", 2**256)):
        with pytest.raises(UsageError):
            await world.trainer.score(
                MODEL, world.parent, [], world.validation, method=method, max_update_bytes=LIMIT, seed=seed
            )


CHECKS: tuple[Check, ...] = (
    check_score,
    check_leave_one_out,
    check_duplicates,
    check_many_updates,
    check_datasets,
    check_shards,
    check_score_without_updates,
    check_impossible_scoring,
)
