"""What every `Trainer` does with a part of a model: bases, frozen and personal parameters, adapters, fitting.

The patterns match the names of the real model and those of the twin's toy alike.
"""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import ANY

import pytest

from dfl_ledger.errors import SpecInvalid, UpdateRefused, UsageError
from dfl_node.train.trainer import AggregationConfig, Assignment, LoraConfig, ModelConfig
from tests.conformance.trainer import (
    DATA,
    HOSTILE,
    LIMIT,
    MODEL,
    NANO,
    TRAINING,
    Check,
    World,
    split,
    tensors,
    weigh,
)

BASE = "a-base"
FROZEN = replace(MODEL, freeze=("*bias",))
PERSONAL = replace(MODEL, personal=("*bias",))
ADAPTED = replace(MODEL, lora=LoraConfig(2, 4.0, ("*",)))
MODELS = {"frozen": FROZEN, "personal": PERSONAL, "adapted": ADAPTED}
FEDADAM = AggregationConfig("fedadam")


def assignment(
    model: ModelConfig, parent: bytes, *, round_: int = 1, local: bytes | None = None
) -> Assignment:
    training = replace(TRAINING, lr=0.1)
    return Assignment(1, round_, parent, model, training, DATA, node_seed=1, local=local)


async def train(world: World, model: ModelConfig, rounds: int) -> bytes:
    """The model file after some rounds with one node, which keeps its own state."""
    file, local = await world.trainer.init_model(model, 1), None
    for round_ in range(1, rounds + 1):
        update = await world.trainer.train(assignment(model, file, round_=round_, local=local))
        local = update.local
        result = await world.trainer.aggregate(
            model, file, weigh((update.delta, update.samples)), max_update_bytes=LIMIT
        )
        assert result.verdicts[0].accepted
        file = result.model
    return file


async def check_only_the_shared_part_travels(world: World) -> None:
    plain = set(tensors(world.parent))
    biases = {name for name in plain if name.endswith("bias")}
    for name, model in MODELS.items():
        file = await world.trainer.init_model(model, 1)
        update = await world.trainer.train(assignment(model, file))
        assert split(update.delta)[0] == split(file)[0], name
        found = set(tensors(file))
        if model is ADAPTED:
            layers = {weight.removesuffix(".weight") for weight in plain - biases}
            assert found == {f"{layer}.lora_{which}" for layer in layers for which in "ab"}
        else:
            assert found == plain - biases
        with pytest.raises(UpdateRefused):  # a whole model is no parent
            await world.trainer.train(assignment(model, world.parent))


async def check_every_part_learns(world: World) -> None:
    for name, model in MODELS.items():
        before = await world.trainer.loss(model, await world.trainer.init_model(model, 1), world.validation)
        after = await world.trainer.loss(model, await train(world, model, 5), world.validation)
        assert after < before, name


async def check_exports(world: World) -> None:
    """A full, plain file: nothing of a strategy, and what did not travel as it was."""
    trainer = world.trainer
    assert await trainer.export(MODEL, world.parent) == world.parent
    with_server = await trainer.init_model(MODEL, 1, FEDADAM)
    assert await trainer.export(MODEL, with_server, FEDADAM) == world.parent
    start = tensors(world.parent)
    for name, model in MODELS.items():
        file = await train(world, model, 3)
        exported = await trainer.export(model, file)
        assert split(exported)[0] == split(world.parent)[0], name
        for tensor, numbers in tensors(exported).items():
            if tensor.endswith("bias"):
                assert numbers == start[tensor], name
            else:
                assert numbers != start[tensor], name
            assert tensors(file).get(tensor, numbers) == numbers, name
        if model is not PERSONAL:  # the plain model computes what the parts did
            merged = (await trainer.evaluate(MODEL, exported, world.validation)).loss
            assert merged == pytest.approx(await trainer.loss(model, file, world.validation), rel=1e-4), name


async def check_bases(world: World) -> None:
    trainer = world.trainer
    based = {name: replace(model, base=BASE, seed=9) for name, model in MODELS.items()}
    assert not trainer.has_base(BASE)
    for name, model in based.items():
        with pytest.raises(UsageError, match="is not here"):
            await trainer.init_model(model, 1)
        assert name
    base = await train(world, MODEL, 2)
    await trainer.keep_base(BASE, base)
    assert trainer.has_base(BASE)
    for name, model in based.items():
        await trainer.check(model)
        file = await trainer.init_model(model, 4)
        assert await trainer.export(model, file) == base, name
        if model.personal == ():
            loss = (await trainer.evaluate(MODEL, base, world.validation)).loss
            assert await trainer.loss(model, file, world.validation) == pytest.approx(loss, rel=1e-5)
    whole = replace(MODEL, base=BASE)
    assert await trainer.init_model(whole, 4) == base


async def check_models_that_cannot_be_trained(world: World) -> None:
    await world.trainer.keep_base("bad", HOSTILE["missing tensor"][0](world.parent))
    await world.trainer.keep_base("NaN", HOSTILE["NaN"][0](world.parent))
    for model in (MODEL, *MODELS.values()):
        await world.trainer.check(model)
    for changes, field in (
        ({"freeze": ("*bias", "convolution*")}, "model.freeze"),
        ({"freeze": ("*",)}, "model.freeze"),
        ({"personal": ("*",)}, "model.personal"),
        ({"personal": ("nose",)}, "model.personal"),
        ({"personal": ("*bias",), "freeze": ("*weight",)}, "model.personal"),
        ({"personal": ("*bias",), "freeze": ("*bias",)}, "model.personal"),
        ({"lora": LoraConfig(2, 4.0, ("attention*",))}, "model.lora.targets"),
        ({"lora": LoraConfig(2, 4.0, ("*",)), "freeze": ("*weight",)}, "model.lora.targets"),
        ({"base": "bad"}, "model.base"),
        ({"base": "NaN"}, "model.base"),
        ({"name": "nobody"}, "model.name"),
    ):
        with pytest.raises(SpecInvalid) as caught:
            await world.trainer.check(replace(MODEL, **changes))
        assert caught.value.field == field, changes


async def check_personal_parts_stay(world: World) -> None:
    """They come back to their node, who goes on with them, and are checked as any file."""
    for rule in (AggregationConfig(), AggregationConfig("scaffold")):
        file = await world.trainer.init_model(PERSONAL, 1, rule)
        todo = replace(assignment(PERSONAL, file), rule=rule)
        first = await world.trainer.train(todo)
        assert await world.trainer.train(todo) == replace(first, train_s=ANY)
        assert first.local is not None
        kept = {name.partition(".")[0] for name in tensors(first.local)}
        assert kept == {"personal"} | ({"control"} if rule.strategy == "scaffold" else set())
        assert not any("bias" in name for name in tensors(first.delta))
        again = replace(todo, round=2)
        second = await world.trainer.train(replace(again, local=first.local))
        assert second.local != (await world.trainer.train(again)).local
        for name in ("NaN", "truncated payload", "missing tensor", "pickle"):
            with pytest.raises(UpdateRefused):
                await world.trainer.train(replace(again, local=HOSTILE[name][0](first.local)))


async def check_personal_jobs_are_scored(world: World) -> None:
    """Whoever measures fits the personal part itself, always in the same way."""
    trainer = world.trainer
    file = await trainer.init_model(PERSONAL, 1)
    deltas = [
        (await trainer.train(replace(assignment(PERSONAL, file), node_seed=node))).delta for node in (1, 2)
    ]
    updates = weigh(*((delta, 50) for delta in deltas))
    arguments = {"method": "shapley", "max_update_bytes": LIMIT}
    scores = await trainer.score(PERSONAL, file, updates, world.validation, **arguments)  # type: ignore[arg-type]
    assert scores == await trainer.score(PERSONAL, file, updates, world.validation, **arguments)  # type: ignore[arg-type]
    after = await trainer.aggregate(PERSONAL, file, updates, max_update_bytes=LIMIT)
    gained = await trainer.loss(PERSONAL, file, world.validation)
    gained -= await trainer.loss(PERSONAL, after.model, world.validation)
    assert sum(scores.worths) * NANO == pytest.approx(gained, abs=5 * NANO)


async def check_losses(world: World) -> None:
    found = await world.trainer.evaluate(MODEL, world.parent, world.validation)
    assert await world.trainer.loss(MODEL, world.parent, world.validation) == found.loss
    file = await world.trainer.init_model(MODEL, 1, FEDADAM)
    assert await world.trainer.loss(MODEL, file, world.validation, FEDADAM) == found.loss
    with pytest.raises(UpdateRefused):
        await world.trainer.loss(MODEL, file, world.validation)
    with pytest.raises(UsageError):
        await world.trainer.loss(MODEL, world.parent, b"junk")


async def check_personalize(world: World) -> None:
    trainer = world.trainer
    for patterns in (["*"], ["*bias"]):
        fitted = await trainer.personalize(
            ADAPTED, world.parent, world.validation, steps=20, lr=0.01, patterns=patterns, seed=3
        )
        assert fitted.after.loss < fitted.before.loss
        assert fitted.after.samples == fitted.before.samples > 0
        start = tensors(world.parent)
        for name, numbers in tensors(fitted.parameters).items():
            assert (numbers != start[name]) == (patterns == ["*"] or name.endswith("bias"))
    for patterns, error in ((["nose"], UsageError), ([], UsageError)):
        with pytest.raises(error):
            await trainer.personalize(
                MODEL, world.parent, world.validation, steps=1, lr=0.1, patterns=patterns, seed=3
            )
    with pytest.raises(UpdateRefused):
        await trainer.personalize(MODEL, b"junk", world.validation, steps=1, lr=0.1, patterns=["*"], seed=3)


CHECKS: tuple[Check, ...] = (
    check_only_the_shared_part_travels,
    check_every_part_learns,
    check_exports,
    check_bases,
    check_models_that_cannot_be_trained,
    check_personal_parts_stay,
    check_personal_jobs_are_scored,
    check_losses,
    check_personalize,
)
