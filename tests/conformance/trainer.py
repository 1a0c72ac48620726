"""What every `Trainer` does. One function a promise; each takes a trainer and what it may be asked."""

from __future__ import annotations

import json
import math
import pickle
import struct
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import cast

import pytest

from dfl_ledger.errors import DflError, SpecInvalid, UpdateRefused, UsageError
from dfl_node.train.trainer import (
    Assignment,
    DataConfig,
    ModelConfig,
    Trainer,
    TrainingConfig,
    WeightedUpdate,
)

MODEL = ModelConfig("mlp", {"hidden": 4})
TRAINING = TrainingConfig(
    local_steps=6, batch_size=16, lr=0.05, momentum=0.9, optimizer="sgd", seed=1, max_update_bytes=1 << 20
)
DATA = DataConfig("digits", None, (1, 1, 12), None)
LIMIT = TRAINING.max_update_bytes
NANO = 1e-9


@dataclass(frozen=True)
class World:
    """A trainer, a first model, an update of it, and validation rows."""

    trainer: Trainer
    parent: bytes
    delta: bytes
    samples: int
    validation: bytes

    @classmethod
    async def of(cls, trainer: Trainer) -> World:
        parent = await trainer.init_model(MODEL, 1)
        update = await trainer.train(assignment(parent))
        validation = await trainer.validation_rows("digits")
        return cls(trainer, parent, update.delta, update.samples, validation)


Check = Callable[[World], Awaitable[None]]


def assignment(parent: bytes, *, node: int = 1, round_: int = 1) -> Assignment:
    return Assignment(
        job=1, round=round_, parent=parent, model=MODEL, training=TRAINING, data=DATA, node_seed=node
    )


def weigh(*updates: tuple[bytes, int]) -> list[WeightedUpdate]:
    return [WeightedUpdate(data, samples) for data, samples in updates]


# -- files ----------------------------------------------------------------------------------------------
def split(data: bytes) -> tuple[dict[str, dict[str, object]], bytes]:
    """Header and payload of a sound file."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: object, payload: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + payload


def numbers(data: bytes) -> list[float]:
    """Every float32 of a state, in the order of the file."""
    return list(array("f", split(data)[1]))


def with_numbers(data: bytes, values: list[float]) -> bytes:
    return join(split(data)[0], array("f", values).tobytes())


def with_last(data: bytes, value: float) -> bytes:
    return data[:-4] + struct.pack("<f", value)


def _last(header: dict[str, dict[str, object]]) -> str:
    """The last tensor's name."""
    return max(name for name in header if name != "__metadata__")


def _edited(data: bytes, field: str, value: object) -> bytes:
    header, payload = split(data)
    header[_last(header)][field] = value
    return join(header, payload)


def _duplicate(data: bytes) -> bytes:
    header, payload = split(data)
    text, name = json.dumps(header, separators=(",", ":")), _last(header)
    again = json.dumps({name: header[name]}, separators=(",", ":"))[1:]
    return join((text[:-1] + "," + again).encode(), payload)


def _without(data: bytes) -> bytes:
    header, payload = split(data)
    del header[_last(header)]
    return join(header, payload)


def _respelled(data: bytes) -> bytes:
    header, payload = split(data)
    return join(json.dumps(header, indent=1).encode(), payload)


def _stranger(data: bytes) -> bytes:
    header, payload = split(data)
    return join({**header, "zzz": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, payload)


# A file made from a good one, and what the refusal must say.
HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda good: b"", "empty"),
    "oversized": (lambda good: good + bytes(LIMIT), "more than the"),
    "NaN": (lambda good: with_last(good, math.nan), "NaN"),
    "Inf": (lambda good: with_last(good, -math.inf), "Inf"),
    "pickle": (lambda good: pickle.dumps({"weight": [1.0] * 100}), "a pickle file"),
    "torch.save": (lambda good: b"PK\x03\x04" + good, "a zip file"),
    "npy": (lambda good: b"\x93NUMPY" + good, "an NPY file"),
    "text": (lambda good: b"<html>404 not found</html>", "not safetensors"),
    "wrong shape": (lambda good: _edited(good, "shape", [1, 2]), "shape"),
    "a shape of 10^12": (lambda good: _edited(good, "shape", [10**6, 10**6]), "shape"),
    "wrong dtype": (lambda good: _edited(good, "dtype", "BF16"), "dtype"),
    "overlapping": (lambda good: _edited(good, "data_offsets", [0, 4]), "not at its place"),
    "duplicate keys": (_duplicate, "duplicate key"),
    "missing tensor": (_without, "missing"),
    "unknown tensor": (_stranger, "not in the model"),
    "other spelling": (_respelled, "canonical"),
    "deep header": (lambda good: join(b"[" * 100_000, b""), "not JSON"),
    "huge number": (lambda good: join(b'{"a":' + b"9" * 10_000 + b"}", b""), "not JSON"),
    "66 MB header": (lambda good: struct.pack("<Q", 66_000_000) + b"{" + good, "header of 66000000 bytes"),
    "truncated header": (lambda good: good[:40], "truncated"),
    "truncated payload": (lambda good: good[:-1], "truncated"),
    "trailing bytes": (lambda good: good + b"\0", "after the last tensor"),
}


def tensors(data: bytes) -> dict[str, list[float]]:
    """The numbers of a sound file by tensor."""
    header, payload = split(data)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = cast("list[int]", entry["data_offsets"])
            found[name] = list(array("f", payload[start:end]))
    return found


# -- promises -------------------------------------------------------------------------------------------
async def check_init(world: World) -> None:
    assert await world.trainer.init_model(MODEL, 1) == world.parent
    other = await world.trainer.init_model(MODEL, 2)
    assert other != world.parent
    assert split(other)[0] == split(world.parent)[0]


async def check_unknown_models(world: World) -> None:
    for model, field in (
        (ModelConfig("../cnn", {}), "model.name"),
        (ModelConfig("mlp", {"width": 3}), "model.args.width"),
        (ModelConfig("mlp", {"hidden": 0}), "model.args.hidden"),
        (ModelConfig("mlp", {"hidden": 10**9}), "model.args.hidden"),
        (ModelConfig("mlp", {"hidden": True}), "model.args.hidden"),
    ):
        with pytest.raises(SpecInvalid) as caught:
            await world.trainer.init_model(model, 1)
        assert caught.value.field == field


async def check_train(world: World) -> None:
    """Same header as the parent, samples as declared, and the same work gives the same bytes."""
    update = await world.trainer.train(assignment(world.parent))
    assert update.delta == world.delta
    assert split(update.delta)[0] == split(world.parent)[0]
    assert update.samples == TRAINING.local_steps * TRAINING.batch_size
    assert math.isfinite(update.loss)
    assert update.train_s >= 0
    assert any(numbers(update.delta))
    for other in (assignment(world.parent, node=2), assignment(world.parent, round_=2)):
        assert (await world.trainer.train(other)).delta != update.delta


async def check_impossible_training(world: World) -> None:
    start = assignment(world.parent)
    for field, change in (
        ("training.optimizer", {"optimizer": "magic"}),
        ("training.max_update_bytes", {"max_update_bytes": 64}),
    ):
        with pytest.raises(SpecInvalid) as caught:
            await world.trainer.train(replace(start, training=replace(TRAINING, **change)))  # type: ignore[arg-type]
        assert caught.value.field == field


async def check_average(world: World) -> None:
    """parent - sum(n_k * delta_k) / sum(n_k) in float64, computed here on its own."""
    second = (await world.trainer.train(assignment(world.parent, node=2))).delta
    third = (await world.trainer.train(assignment(world.parent, node=3))).delta
    updates = weigh((world.delta, 100), (second, 37), (third, 1))
    result = await world.trainer.aggregate(MODEL, world.parent, updates, max_update_bytes=LIMIT)
    assert [verdict.accepted for verdict in result.verdicts] == [True, True, True]
    expected = []
    for p, a, b, c in zip(*map(numbers, (world.parent, world.delta, second, third)), strict=True):
        expected.append(p - ((a * 100 + b * 37) + c * 1) / 138)
    assert result.model == with_numbers(world.parent, expected)
    again = await world.trainer.aggregate(MODEL, world.parent, updates, max_update_bytes=LIMIT)
    assert again == result


async def check_refused_updates_have_no_weight(world: World) -> None:
    for name, (spoil, why) in HOSTILE.items():
        updates = weigh((spoil(world.delta), 10**6), (world.delta, 5))
        result = await world.trainer.aggregate(MODEL, world.parent, updates, max_update_bytes=LIMIT)
        bad, good = result.verdicts
        assert (bad.accepted, good.accepted) == (False, True), name
        assert why in bad.why, (name, bad.why)
        alone = await world.trainer.aggregate(MODEL, world.parent, updates[1:], max_update_bytes=LIMIT)
        assert result.model == alone.model, name


async def check_excessive_updates(world: World) -> None:
    """Too large a number, or a weight that is none."""
    for delta, samples, why in (
        (with_last(world.delta, 1e7), 1, "beyond 1e+06"),
        (world.delta, 0, "claims 0 samples"),
        (world.delta, -5, "claims -5 samples"),
        (world.delta, 2**60, "samples"),
    ):
        result = await world.trainer.aggregate(
            MODEL, world.parent, weigh((delta, samples)), max_update_bytes=LIMIT
        )
        assert not result.verdicts[0].accepted
        assert why in result.verdicts[0].why


async def check_nothing_accepted(world: World) -> None:
    for updates in ([], weigh((b"junk", 1), (world.delta[:-4], 2))):
        result = await world.trainer.aggregate(MODEL, world.parent, updates, max_update_bytes=LIMIT)
        assert result.model == world.parent
        assert not any(verdict.accepted for verdict in result.verdicts)


async def check_hostile_parents(world: World) -> None:
    trainer = world.trainer
    for name in ("empty", "NaN", "pickle", "wrong shape", "66 MB header", "truncated payload"):
        bad = HOSTILE[name][0](world.parent)
        with pytest.raises(UpdateRefused):
            await trainer.train(assignment(bad))
        with pytest.raises(UpdateRefused):
            await trainer.aggregate(MODEL, bad, weigh((world.delta, 1)), max_update_bytes=LIMIT)
        with pytest.raises(UpdateRefused):
            await trainer.evaluate(MODEL, bad, world.validation)
        with pytest.raises(UpdateRefused):
            await trainer.score(
                MODEL,
                bad,
                weigh((world.delta, 1)),
                world.validation,
                method="shapley",
                max_update_bytes=LIMIT,
            )


async def check_evaluate(world: World) -> None:
    """Training on a round's average makes the model better; data that is no NPZ file is refused."""
    before = await world.trainer.evaluate(MODEL, world.parent, world.validation)
    model = world.parent
    for round_ in range(1, 6):
        update = await world.trainer.train(assignment(model, round_=round_))
        result = await world.trainer.aggregate(
            MODEL, model, weigh((update.delta, update.samples)), max_update_bytes=LIMIT
        )
        model = result.model
    after = await world.trainer.evaluate(MODEL, model, world.validation)
    assert after.loss < before.loss
    assert after.accuracy > before.accuracy
    assert after.samples == before.samples > 0
    for junk in (b"", b"junk", pickle.dumps([1, 2])):
        with pytest.raises(UsageError):
            await world.trainer.evaluate(MODEL, model, junk)


async def check_closed(world: World) -> None:
    """The last of the checks: nothing is done afterwards, and closing twice is fine."""
    await world.trainer.aclose()
    await world.trainer.aclose()
    with pytest.raises(DflError):
        await world.trainer.init_model(MODEL, 1)


CHECKS: tuple[Check, ...] = (
    check_init,
    check_unknown_models,
    check_train,
    check_impossible_training,
    check_average,
    check_refused_updates_have_no_weight,
    check_excessive_updates,
    check_nothing_accepted,
    check_hostile_parents,
    check_evaluate,
    check_closed,
)
