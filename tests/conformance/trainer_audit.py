"""What every `Trainer` does when another node's work is audited."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dfl_ledger.errors import SpecInvalid, UpdateRefused, VerificationFailed
from dfl_node.train.trainer import (
    AggregationConfig,
    Assignment,
    LoraConfig,
    ModelUpdate,
    Recomputation,
    Shard,
)
from dfl_node.value import audit
from tests.conformance.trainer import (
    DATA,
    HOSTILE,
    LIMIT,
    MODEL,
    TRAINING,
    Check,
    World,
    assignment,
    numbers,
    weigh,
    with_numbers,
)


def described(work: Assignment, shard: Shard, samples: int) -> Recomputation:
    """A training as its node tells it to an auditor."""
    return Recomputation(
        job=work.job,
        round=work.round,
        parent=work.parent,
        model=work.model,
        training=work.training,
        node_seed=work.node_seed,
        samples=samples,
        shard=shard.rows,
        commitment=shard.commitment,
        rule=work.rule,
    )


async def _audited(world: World, work: Assignment, update: ModelUpdate) -> None:
    """This update passes, bit for bit."""
    shard = await world.trainer.shard(work.data)
    found = await world.trainer.recompute(described(work, shard, update.samples), update.delta)
    assert found.delta == update.delta
    assert found.distance == 0
    assert not audit.objection(found.distance)


async def check_honest_work_passes(world: World) -> None:
    """Any node, round and part of the data."""
    for node, round_ in ((1, 1), (2, 1), (1, 7)):
        work = assignment(world.parent, node=node, round_=round_)
        work = replace(work, data=replace(DATA, shard=(node, node + 1, 12), dirichlet_alpha=0.5))
        await _audited(world, work, await world.trainer.train(work))


async def check_time_is_no_part_of_the_work(world: World) -> None:
    """A slow node took fewer steps; its samples say how many, and that is all there is to know."""
    work = replace(assignment(world.parent), time_budget_s=0.0)
    update = await world.trainer.train(work)
    assert update.samples == TRAINING.batch_size
    await _audited(world, work, update)
    shard = await world.trainer.shard(DATA)
    boasted = described(work, shard, TRAINING.local_steps * TRAINING.batch_size)
    assert audit.objection((await world.trainer.recompute(boasted, update.delta)).distance)


async def check_every_rule_without_local_state(world: World) -> None:
    for name in ("fedavg", "fedprox", "fedadam", "fedyogi", "diloco"):
        rule = AggregationConfig(name)
        work = replace(assignment(await world.trainer.init_model(MODEL, 1, rule)), rule=rule)
        await _audited(world, work, await world.trainer.train(work))


async def check_transfer_learning(world: World) -> None:
    full = await world.trainer.export(MODEL, world.parent)
    await world.trainer.keep_base("audited base", full)
    for model in (
        replace(MODEL, base="audited base", freeze=("*bias",)),
        replace(MODEL, base="audited base", lora=LoraConfig(1, 2.0, ("*",))),
    ):
        work = replace(assignment(await world.trainer.init_model(model, 1)), model=model)
        await _audited(world, work, await world.trainer.train(work))


async def check_invented_work_fails(world: World) -> None:
    work = assignment(world.parent)
    shard = await world.trainer.shard(DATA)
    told = described(work, shard, world.samples)
    others = (await world.trainer.train(assignment(world.parent, node=2))).delta
    stale = (await world.trainer.train(assignment(world.parent, round_=2))).delta
    flipped = with_numbers(world.delta, [-n for n in numbers(world.delta)])
    nothing = with_numbers(world.delta, [0.0] * len(numbers(world.delta)))
    longer = with_numbers(world.delta, [1.03 * n for n in numbers(world.delta)])
    for lie in (others, stale, flipped, nothing, longer):
        found = await world.trainer.recompute(told, lie)
        assert found.delta == world.delta
        assert "of its length" in audit.objection(found.distance)
    found = await world.trainer.recompute(told, flipped)
    assert found.distance == pytest.approx(2)
    found = await world.trainer.recompute(told, longer)
    assert found.distance == pytest.approx(0.03, rel=1e-3)


async def check_hostile_files_are_no_updates(world: World) -> None:
    told = described(assignment(world.parent), await world.trainer.shard(DATA), world.samples)
    for name in ("NaN", "Inf", "truncated payload", "missing tensor", "pickle"):
        with pytest.raises(UpdateRefused):
            await world.trainer.recompute(told, HOSTILE[name][0](world.delta))


async def check_shards_are_those_committed(world: World) -> None:
    shard = await world.trainer.shard(DATA)
    assert shard == await world.trainer.shard(DATA)
    assert len(shard.commitment) == 32
    other = await world.trainer.shard(replace(DATA, shard=(2, 2, 12)))
    assert other.commitment != shard.commitment
    told = described(assignment(world.parent), shard, world.samples)
    for lie in (other.rows, shard.rows[:-1], b"", b"rows"):
        with pytest.raises(VerificationFailed, match="opened shard"):
            await world.trainer.recompute(replace(told, shard=lie), world.delta)


async def check_samples_are_whole_steps(world: World) -> None:
    told = described(assignment(world.parent), await world.trainer.shard(DATA), world.samples)
    for samples in (0, -16, 17, (TRAINING.local_steps + 1) * TRAINING.batch_size):
        with pytest.raises(VerificationFailed):
            await world.trainer.recompute(replace(told, samples=samples), world.delta)


async def check_local_state_cannot_be_audited(world: World) -> None:
    told = described(assignment(world.parent), await world.trainer.shard(DATA), world.samples)
    for model, rule, field in (
        (replace(MODEL, personal=("*bias",)), AggregationConfig(), "model.personal"),
        (MODEL, AggregationConfig("scaffold"), "training.strategy"),
    ):
        with pytest.raises(SpecInvalid) as caught:
            await world.trainer.recompute(replace(told, model=model, rule=rule), world.delta)
        assert caught.value.field == field


async def check_an_audit_changes_nothing(world: World) -> None:
    """Whatever was audited in between, the next training and the next model are the same."""
    work = assignment(world.parent)
    shard = await world.trainer.shard(DATA)
    before = (await world.trainer.train(work)).delta
    other = replace(described(work, shard, world.samples), node_seed=9)
    await world.trainer.recompute(other, world.delta)
    assert (await world.trainer.train(work)).delta == before == world.delta
    made = await world.trainer.aggregate(MODEL, world.parent, weigh((before, 1)), max_update_bytes=LIMIT)
    assert made.verdicts[0].accepted


CHECKS: tuple[Check, ...] = (
    check_honest_work_passes,
    check_time_is_no_part_of_the_work,
    check_every_rule_without_local_state,
    check_transfer_learning,
    check_invented_work_fails,
    check_hostile_files_are_no_updates,
    check_shards_are_those_committed,
    check_samples_are_whole_steps,
    check_local_state_cannot_be_audited,
    check_an_audit_changes_nothing,
)
