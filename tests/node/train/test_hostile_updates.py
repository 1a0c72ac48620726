"""Hostile updates by the hundred thousand: none reaches an aggregator. A failing seed is named."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict
from random import Random
from typing import Any

import numpy as np
import pytest

from dfl_node.train import aggregation, models, strategies, tensors
from dfl_node.train.codec import MAX_DELTA, MAX_WEIGHT, Schema
from dfl_node.train.frames import Frame
from dfl_node.train.operations import Operations
from dfl_node.train.tensors import State
from dfl_node.train.trainer import AggregationConfig, ModelConfig
from tests.conformance.trainer import join, split

MODEL = ModelConfig("mlp", {"hidden": 3, "features": 5, "classes": 2})
RULES = (
    AggregationConfig(),
    AggregationConfig("scaffold"),
    AggregationConfig("fedavg", {}, "trimmed-mean", {"f": 1, "mixing": 1}),
)
BATCH = 500
POISON = (np.nan, -np.nan, np.inf, -np.inf, 1e38, -1e38, 3.4e38, np.nextafter(np.float32(MAX_DELTA), np.inf))
SAMPLES = (0, -1, MAX_WEIGHT + 1, True, 1.5, "7", None)

Hostile = tuple[bytes, Any]  # a file, and the samples that it claims
Header = dict[str, Any]


# -- what is sent -------------------------------------------------------------------------------------
def poisoned(random: Random, sound: bytes) -> bytes:
    """Numbers that are none, or far too large, in one place or in many."""
    header, payload = split(sound)
    numbers = np.frombuffer(payload, "<f4").copy()
    for _ in range(random.choice((1, 1, 2, len(numbers)))):
        numbers[random.randrange(len(numbers))] = random.choice(POISON)
    return join(header, numbers.tobytes())


def signalling(random: Random, sound: bytes) -> bytes:
    """Any of the 2^24 bit patterns of NaN."""
    place = len(sound) - 4 * random.randint(1, len(split(sound)[1]) // 4)
    bits = random.getrandbits(1) << 31 | 0xFF << 23 | random.randint(1, 2**23 - 1)
    return sound[:place] + struct.pack("<I", bits) + sound[place + 4 :]


def another_shape(random: Random, sound: bytes) -> bytes:
    header, payload = split(sound)
    tensor = header[_name(random, header)]
    shape: list[int] = tensor["shape"]  # type: ignore[assignment]
    wrong = [
        [*shape, 1],
        [1, *shape],
        shape[::-1] if shape[::-1] != shape else [0],
        [size + 1 for size in shape],
        [],
        [-size for size in shape],
        [2**62, *shape],
        [0],
        [float(size) for size in shape],
    ]
    tensor["shape"] = random.choice(wrong)
    return join(header, payload)


def another_dtype(random: Random, sound: bytes) -> bytes:
    header, payload = split(sound)
    name = _name(random, header)
    header[name]["dtype"] = random.choice(("F64", "F16", "BF16", "I32", "U8", "BOOL", "f32", "", None, 7))
    if header[name]["dtype"] == "F64" and random.getrandbits(1):  # with the bytes that it says
        payload = np.frombuffer(payload, "<f4").astype("<f8").tobytes()
        for own in header.values():
            if "data_offsets" in own:
                own["dtype"], own["data_offsets"] = "F64", [2 * at for at in own["data_offsets"]]  # type: ignore[attr-defined]
    return join(header, payload)


def other_offsets(random: Random, sound: bytes) -> bytes:
    """Tensors that overlap, leave gaps, or lie outside of the file."""
    header, payload = split(sound)
    offsets: list[int] = header[_name(random, header)]["data_offsets"]  # type: ignore[assignment]
    offsets[random.randrange(2)] += random.choice((-8, -4, -1, 1, 4, 8, 2**40, -(2**40)))
    return join(header, payload)


def other_names(random: Random, sound: bytes) -> bytes:
    header, payload = split(sound)
    name = _name(random, header)
    own = header.pop(name)
    match random.randrange(4):
        case 0:
            header[name + "x"] = own
        case 1:
            header[f"control.{name}x"] = own
        case 2:
            header |= {name: own, "another": own}
        case _:
            pass  # it is missing
    return join(header, payload)


def other_length(random: Random, sound: bytes) -> bytes:
    if random.getrandbits(1):
        return sound[: random.randrange(len(sound))]
    return sound + random.randbytes(random.randint(1, 64))


def bent_header(random: Random, sound: bytes) -> bytes:
    """A flipped bit where the file says what it is."""
    changed = bytearray(sound)
    changed[random.randrange(len(sound) - len(split(sound)[1]))] ^= 1 << random.randrange(8)
    return bytes(changed)


def other_spelling(random: Random, sound: bytes) -> bytes:
    """The same tensors, written another way: an update has one byte form, so that a copy stays a copy."""
    header, payload = split(sound)
    return join(json.dumps(header, indent=random.randint(1, 4)).encode(), payload)


def other_format(random: Random, sound: bytes) -> bytes:
    return random.choice(
        (
            pickle.dumps([1.0]),
            b"PK\3\4" + random.randbytes(40),
            b"\x93NUMPY" + random.randbytes(40),
            b"",
            random.randbytes(random.randrange(200)),
            struct.pack("<Q", random.getrandbits(64)) + sound[8:],
        )
    )


KINDS: tuple[Callable[[Random, bytes], bytes], ...] = (
    poisoned,
    signalling,
    another_shape,
    another_dtype,
    other_offsets,
    other_names,
    other_length,
    bent_header,
    other_spelling,
    other_format,
)


def _name(random: Random, header: Header) -> str:
    return random.choice(sorted(name for name in header if name != "__metadata__"))


def hostile(seed: int, sound: bytes) -> Hostile:
    """Mostly a hostile file, else a sound one that claims to weigh what nothing weighs."""
    random = Random(seed)  # noqa: S311
    if random.random() < 0.05:
        return sound, random.choice(SAMPLES)
    return KINDS[seed % len(KINDS)](random, sound), random.randint(1, 1000)


# -- what becomes of it -------------------------------------------------------------------------------
def let_loose(monkeypatch: pytest.MonkeyPatch, seeds: Sequence[int]) -> int:
    """Have them aggregated in batches, each with two sound updates; how many there were."""
    operations = Operations(1, lambda frame: None)
    arrived: list[list[State]] = []
    real = aggregation.next_file

    def watched(parent: State, updates: Sequence[tuple[State, float]], rule: AggregationConfig) -> State:
        arrived.append([update for update, _ in updates])
        return real(parent, updates, rule)

    monkeypatch.setattr(aggregation, "next_file", watched)
    for start in range(0, len(seeds), BATCH):
        rule = RULES[start // BATCH % len(RULES)]
        layout = strategies.update_file(models.schema(MODEL), rule)
        sound = [encoded(layout, number) for number in range(2)]
        sent = [hostile(seed, sound[0]) for seed in seeds[start : start + BATCH]]
        files, samples = [sound[0], *(file for file, _ in sent), sound[1]], [5, *(n for _, n in sent), 7]
        parent = operations.init(Frame({"model": asdict(MODEL), "rule": asdict(rule), "seed": 1})).payloads[0]
        header = {
            "model": asdict(MODEL),
            "rule": asdict(rule),
            "samples": samples,
            "staleness": [0] * len(files),
            "max_update_bytes": 1 << 20,
        }
        answer = operations.aggregate(Frame(header, (parent, *files)))
        for seed, why in zip(seeds[start:], answer.header["reasons"][1:-1], strict=False):
            assert why, f"seed {seed} was accepted"
        assert answer.header["reasons"][0] == answer.header["reasons"][-1] == ""
        (reached,) = arrived
        arrived.clear()
        expected = [tensors.decode(file, layout, max_bytes=1 << 20) for file in sound]
        assert len(reached) == 2
        for got, wanted in zip(reached, expected, strict=True):
            assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
    return len(seeds)


def encoded(layout: Schema, number: int) -> bytes:
    random = np.random.RandomState(number)
    return tensors.encode({t.name: random.randn(*t.shape).astype(np.float32) for t in layout.tensors}, layout)


def test_no_hostile_update_reaches_an_aggregator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert let_loose(monkeypatch, range(5_000)) == 5_000


@pytest.mark.long
def test_none_of_a_hundred_thousand_reaches_an_aggregator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert let_loose(monkeypatch, range(1_000_000, 1_100_000)) == 100_000


def test_the_hostile_are_hostile() -> None:
    """What is sent differs from what is sound, of every kind; and a sound update is none of them."""
    layout = strategies.update_file(models.schema(MODEL), AggregationConfig())
    sound = encoded(layout, 0)
    for seed in range(3000):
        file, samples = hostile(seed, sound)
        assert file != sound or samples in SAMPLES, f"seed {seed} of {KINDS[seed % len(KINDS)].__name__}"
    largest = {t.name: np.full(t.shape, MAX_DELTA, np.float32) for t in layout.tensors}
    assert tensors.decode(tensors.encode(largest, layout), layout, max_bytes=1 << 20, max_abs=MAX_DELTA)
