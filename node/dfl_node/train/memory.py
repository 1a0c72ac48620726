"""`MemoryTrainer`, the twin: toy arithmetic in this process, real safetensors bytes, the same refusals.

Every model has one small state, and "training" pulls it towards a target that all nodes share but each sees a
little differently. The loss is the mean squared distance to the target: rounds lower it, better updates are
worth more, and nothing depends on the machine. No torch, no numpy; time passes as trio's clock has it.
"""

from __future__ import annotations

import io
import math
import random
import zipfile
from array import array
from collections.abc import Sequence

import trio

from dfl_ledger.errors import DflError, SpecInvalid, UpdateRefused, UsageError
from dfl_node.train import codec, models
from dfl_node.train.codec import Schema, TensorSpec
from dfl_node.train.trainer import Aggregate, Assignment, Evaluation, ModelConfig, ModelUpdate, Verdict
from dfl_node.value import shapley

SCHEMA = Schema((TensorSpec("bias", (4,), "F32"), TensorSpec("weight", (4, 8), "F32")))
SIZE = SCHEMA.payload_bytes // 4
ROWS = 10  # that an evaluation claims to have seen
_STEP = 0.05  # of the way to the target, at each step
_SPREAD = 0.05  # how differently nodes see the target

Numbers = list[float]


class MemoryTrainer:
    """A `Trainer`. Each training takes `train_s` seconds of trio's clock."""

    def __init__(self, *, train_s: float = 0.0) -> None:
        self._train_s = train_s
        self._closed = False

    async def init_model(self, model: ModelConfig, seed: int) -> bytes:
        self._check_open()
        models.check(model)
        return _encode(_draw(f"init {seed}", 1.0))

    async def train(self, assignment: Assignment) -> ModelUpdate:
        self._check_open()
        config = assignment.training
        models.check(assignment.model)
        if config.optimizer not in ("sgd", "adamw"):
            raise SpecInvalid("training.optimizer", f"must be sgd or adamw, not {config.optimizer!r:.40}")
        if SCHEMA.file_bytes > config.max_update_bytes:
            raise SpecInvalid("training.max_update_bytes", f"an update has {SCHEMA.file_bytes} bytes")
        parent = _decode(assignment.parent, config.max_update_bytes)
        await trio.sleep(self._train_s)
        seen = _draw(f"{assignment.job} {assignment.round} {assignment.node_seed} {config.seed}", _SPREAD)
        left = (1 - _STEP) ** config.local_steps
        delta = [(p - t - s) * (1 - left) for p, t, s in zip(parent, _TARGET, seen, strict=True)]
        trained = [p - d for p, d in zip(parent, delta, strict=True)]
        samples = config.local_steps * config.batch_size
        return ModelUpdate(_encode(delta), samples, _loss(trained), self._train_s)

    async def aggregate(
        self,
        model: ModelConfig,
        parent: bytes,
        updates: Sequence[tuple[bytes, int]],
        *,
        max_update_bytes: int,
    ) -> Aggregate:
        self._check_open()
        models.check(model)
        before = _decode(parent, max_update_bytes)
        read = [_read(update, samples, max_update_bytes) for update, samples in updates]
        accepted = [(delta, samples) for delta, samples, _ in read if delta is not None]
        result = _encode(_apply(before, accepted)) if accepted else parent
        return Aggregate(result, tuple(Verdict(not why, why) for _, _, why in read))

    async def score(
        self,
        model: ModelConfig,
        parent: bytes,
        updates: Sequence[tuple[bytes, int]],
        validation: bytes,
        *,
        method: str,
        max_update_bytes: int,
    ) -> tuple[int, ...]:
        self._check_open()
        if method not in shapley.METHODS:
            raise UsageError(f"no scoring method {method!r:.40}", why=f"one of {', '.join(shapley.METHODS)}")
        models.check(model)
        before = _decode(parent, max_update_bytes)
        _check_rows(validation)
        read = [_read(update, samples, max_update_bytes) for update, samples in updates]
        accepted = [(place, delta, n) for place, (delta, n, _) in enumerate(read) if delta is not None]

        def value(coalition: int) -> int:
            members = [(delta, n) for i, (_, delta, n) in enumerate(accepted) if coalition >> i & 1]
            return shapley.fixed(_loss(before)) - shapley.fixed(_loss(_apply(before, members)))

        values = {coalition: value(coalition) for coalition in shapley.coalitions(len(accepted), method)}
        worths = shapley.worths(values, len(accepted), method)
        worth = {place: found for (place, _, _), found in zip(accepted, worths, strict=True)}
        return tuple(worth.get(place, 0) for place in range(len(updates)))

    async def evaluate(self, model: ModelConfig, parameters: bytes, data: bytes) -> Evaluation:
        self._check_open()
        models.check(model)
        loss = _loss(_decode(parameters, SCHEMA.file_bytes))
        _check_rows(data)
        return Evaluation(accuracy=1 / (1 + loss), loss=loss, samples=ROWS)

    async def validation_rows(self, app: str) -> bytes:
        self._check_open()
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name in ("X.npy", "y.npy"):
                archive.writestr(zipfile.ZipInfo(name), f"{app} {name}")
        return out.getvalue()

    async def aclose(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise DflError("the trainer is closed")


def _draw(seed: str, spread: float) -> Numbers:
    """`random()` of a seeded Random is the same in every version of Python."""
    source = random.Random(seed)  # noqa: S311  a toy, not a secret
    return [(2 * source.random() - 1) * spread for _ in range(SIZE)]


_TARGET = _draw("target", 1.0)


def _loss(state: Numbers) -> float:
    return math.fsum((s - t) ** 2 for s, t in zip(state, _TARGET, strict=True)) / SIZE


def _apply(parent: Numbers, updates: Sequence[tuple[Numbers, int]]) -> Numbers:
    """FedAvg in the order given, in float64 as `strategies/fedavg.py` has it, rounded to float32."""
    if not updates:
        return parent
    total = [0.0] * SIZE
    for delta, samples in updates:
        total = [t + d * samples for t, d in zip(total, delta, strict=True)]
    weight = sum(samples for _, samples in updates)
    return list(array("f", [p - t / weight for p, t in zip(parent, total, strict=True)]))


def _encode(state: Numbers) -> bytes:
    return codec.header(SCHEMA) + array("f", state).tobytes()


def _decode(data: bytes, max_bytes: int, max_abs: float = math.inf) -> Numbers:
    numbers = list(array("f", bytes(codec.check_layout(data, SCHEMA, max_bytes=max_bytes))))
    if any(map(math.isnan, numbers)):
        raise codec.refusal("a tensor holds NaN")
    if any(map(math.isinf, numbers)):
        raise codec.refusal("a tensor holds Inf")
    if (worst := max(map(abs, numbers))) > max_abs:
        raise codec.refusal(f"a tensor holds {worst:g}, beyond {max_abs:g}")
    return numbers


def _read(update: bytes, samples: int, max_bytes: int) -> tuple[Numbers | None, int, str]:
    """An update's numbers, its weight, and why it is refused."""
    try:
        codec.check_weight(samples)
        return _decode(update, max_bytes, codec.MAX_DELTA), samples, ""
    except UpdateRefused as bad:
        return None, samples, bad.why


def _check_rows(data: bytes) -> None:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise UsageError("data file refused", why="not a sound zip file")
