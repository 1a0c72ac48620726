"""`MemoryTrainer`, the twin: toy arithmetic in this process, real safetensors bytes, the same refusals.

Every model has one small state, and "training" pulls it towards a target that all nodes share but each sees a
little differently. The loss is the mean squared distance to the target: rounds lower it, better updates are
worth more, and nothing depends on the machine. No torch, no numpy; time passes as trio's clock has it.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import replace

import trio

from dfl_ledger.errors import DflError, SpecInvalid, UpdateRefused, UsageError, VerificationFailed
from dfl_node.train import aggregators, base_files, codec, memory_model, models, strategies, transfer
from dfl_node.train.codec import Schema
from dfl_node.train.memory_files import Tensors, decode, encode, rounded
from dfl_node.train.memory_model import SCHEMA, TARGET, draw, named, parts
from dfl_node.train.memory_rules import first_file, groups, next_file, players, shared_part, under
from dfl_node.train.memory_stage import MemoryStages
from dfl_node.train.strategies import CONTROL, SERVER
from dfl_node.train.trainer import (
    PLAIN,
    Aggregate,
    AggregationConfig,
    Assignment,
    DataConfig,
    Evaluation,
    ModelConfig,
    ModelUpdate,
    Personalized,
    Recomputation,
    Recomputed,
    Shard,
    Verdict,
    WeightedUpdate,
)
from dfl_node.train.transfer import PERSONAL
from dfl_node.value import audit, scoring, shapley, valuation
from dfl_node.value.scoring import Scores

ROWS = 10  # that an evaluation claims to have seen
_STEP = 0.05  # of the way to the target, at each step
_SPREAD = 0.5  # how differently nodes see the target: their steps must not be near-duplicates


class MemoryTrainer(MemoryStages):
    """A `Trainer`. Each training takes `train_s` seconds of trio's clock, each call of a stage `stage_s`."""

    def __init__(self, *, train_s: float = 0.0, stage_s: float = 0.0) -> None:
        super().__init__(SCHEMA, [n for numbers in TARGET.values() for n in numbers], stage_s)
        self._train_s = train_s
        self._bases: dict[str, bytes] = {}
        self._closed = False

    async def init_model(self, model: ModelConfig, seed: int, rule: AggregationConfig = PLAIN) -> bytes:
        self._check_open()
        models.check(model)
        begun = memory_model.start(replace(model, seed=seed), self._base(model))
        shared = {name: begun[name] for name in parts(model).shared}
        return encode(first_file(shared, rule), strategies.model_file(memory_model.schema(model), rule))

    async def train(self, assignment: Assignment) -> ModelUpdate:
        self._check_open()
        model, config, rule = assignment.model, assignment.training, assignment.rule
        models.check(model)
        if config.optimizer not in ("sgd", "adamw"):
            raise SpecInvalid("training.optimizer", f"must be sgd or adamw, not {config.optimizer!r:.40}")
        strategies.check_optimizer(rule.strategy, config.optimizer)
        schema, own = memory_model.schema(model), parts(model)
        files = strategies.model_file(schema, rule), strategies.update_file(schema, rule)
        if (largest := max(file.file_bytes for file in files)) > config.max_update_bytes:
            raise SpecInvalid("training.max_update_bytes", f"a file of this model has {largest} bytes")
        file = decode(assignment.parent, files[0], config.max_update_bytes)
        private = strategies.joined(strategies.local_file(schema, rule), memory_model.personal_schema(model))
        local = {} if assignment.local is None else decode(assignment.local, private, private.file_bytes)
        steps, train_s = self._within(assignment.time_budget_s, config.local_steps)
        await trio.sleep(train_s)
        begun = memory_model.start(model, self._base(model)) | shared_part(file) | under(PERSONAL, local)
        seen = draw(f"{assignment.job} {assignment.round} {assignment.node_seed} {config.seed}", _SPREAD)
        target = _added(TARGET, named(seen))
        pull = memory_model.pull(begun, model, target)
        pull = {name: pull[name] for name in (*own.shared, *own.personal)}
        kept: Tensors = {}
        change: Tensors = {}
        if strategies.find(rule.strategy).control:  # the pull is this toy's gradient
            shared_pull = {name: pull[name] for name in own.shared}
            before = under(CONTROL, local) or {name: [0.0] * len(n) for name, n in shared_pull.items()}
            differences = _added(shared_pull, before, -1)
            kept = {CONTROL + name: numbers for name, numbers in shared_pull.items()}
            change = {CONTROL + name: numbers for name, numbers in differences.items()}
            pull |= _added(differences, under(f"{SERVER}{CONTROL}", file))
        moved = 1 - (1 - _STEP) ** steps
        slower = 1 + strategies.check(rule.strategy, rule.strategy_args).get("mu", 0.0)
        delta = {name: [g * moved / slower for g in numbers] for name, numbers in pull.items()}
        trained = begun | _added({name: begun[name] for name in delta}, delta, -1)
        kept |= {PERSONAL + name: trained[name] for name in own.personal}
        return ModelUpdate(
            encode({name: delta[name] for name in own.shared} | change, files[1]),
            steps * config.batch_size,
            memory_model.loss(trained, model),
            train_s,
            encode(kept, private) if kept else None,
        )

    async def shard(self, data: DataConfig) -> Shard:
        self._check_open()
        rows = _rows(f"{data}")
        return Shard(rows, hashlib.sha256(rows).digest())

    async def recompute(self, work: Recomputation, committed: bytes) -> Recomputed:
        self._check_open()
        models.check(work.model)
        audit.check_recomputable(work.model, work.rule)
        training = replace(work.training, local_steps=audit.steps_of(work.samples, work.training))
        if hashlib.sha256(work.shard).digest() != work.commitment:
            raise VerificationFailed("the opened shard was refused", why="its rows are others")
        layout = strategies.update_file(memory_model.schema(work.model), work.rule)
        theirs = decode(committed, layout, training.max_update_bytes, codec.MAX_DELTA)
        own = Assignment(
            job=work.job,
            round=work.round,
            parent=work.parent,
            model=work.model,
            training=training,
            data=DataConfig("", None, (1, 1, 1), None),
            node_seed=work.node_seed,
            rule=work.rule,
        )
        delta = (await MemoryTrainer.train(self, own)).delta
        ours = decode(delta, layout, training.max_update_bytes)
        apart, length = (
            math.dist(*([n for name in sorted(ours) for n in file[name]] for file in pair))
            for pair in ((theirs, ours), ({name: [0.0] * len(n) for name, n in ours.items()}, ours))
        )
        return Recomputed(delta, apart / length)

    async def aggregate(
        self,
        model: ModelConfig,
        parent: bytes,
        updates: Sequence[WeightedUpdate],
        *,
        max_update_bytes: int,
        rule: AggregationConfig = PLAIN,
    ) -> Aggregate:
        self._check_open()
        models.check(model)
        strategies.check(rule.strategy, rule.strategy_args)
        aggregators.check(rule.aggregator, rule.aggregator_args)
        schema = memory_model.schema(model)
        layout = strategies.model_file(schema, rule)
        before = decode(parent, layout, max_update_bytes)
        read = [_read(update, schema, rule, max_update_bytes) for update in updates]
        accepted = [(tensors, weight) for tensors, weight, _ in read if tensors is not None]
        result = encode(next_file(before, accepted, rule), layout) if accepted else parent
        return Aggregate(result, tuple(Verdict(not why, why) for _, _, why in read))

    async def score(
        self,
        model: ModelConfig,
        parent: bytes,
        updates: Sequence[WeightedUpdate],
        validation: bytes,
        *,
        method: str,
        max_update_bytes: int,
        rule: AggregationConfig = PLAIN,
        seed: int = 0,
    ) -> Scores:
        self._check_open()
        scoring.check(method, seed)
        models.check(model)
        schema = memory_model.schema(model)
        before = shared_part(decode(parent, strategies.model_file(schema, rule), max_update_bytes))
        _check_rows(validation)
        read = [_read(update, schema, rule, max_update_bytes) for update in updates]
        steps = [(shared_part(tensors), weight) for tensors, weight, _ in read if tensors is not None]
        first = groups([step for step, _ in steps])
        own = players(steps, first)

        def value(coalition: int) -> int:
            members = [player for i, player in enumerate(own) if coalition >> i & 1]
            after = rounded(next_file(before, members, PLAIN))
            return shapley.fixed(self._measured(model, before)) - shapley.fixed(self._measured(model, after))

        uses = [frozenset(update.datasets) for update in updates]
        return valuation.drive(
            scoring.score([not why for _, _, why in read], first, uses, method, seed), value
        )

    async def evaluate(self, model: ModelConfig, parameters: bytes, data: bytes) -> Evaluation:
        loss = await self.loss(model, parameters, data)
        return _evaluation(loss)

    async def loss(
        self, model: ModelConfig, parameters: bytes, data: bytes, rule: AggregationConfig = PLAIN
    ) -> float:
        found = self._measured(model, self._shared(model, parameters, rule))
        _check_rows(data)
        return found

    async def check(self, model: ModelConfig) -> None:
        self._check_open()
        models.check(model)
        memory_model.check(model, self._base(model))

    def has_base(self, cid: str) -> bool:
        return cid in self._bases

    async def keep_base(self, cid: str, data: bytes) -> None:
        self._check_open()
        self._bases[cid] = data

    async def export(self, model: ModelConfig, parameters: bytes, rule: AggregationConfig = PLAIN) -> bytes:
        shared = self._shared(model, parameters, rule)
        state = memory_model.start(model, self._base(model)) | shared
        return encode(memory_model.merged(state, model), SCHEMA)

    async def personalize(
        self,
        model: ModelConfig,
        parameters: bytes,
        data: bytes,
        *,
        steps: int,
        lr: float,
        patterns: Sequence[str],
        seed: int,
    ) -> Personalized:
        plain = transfer.plain(model)
        state = self._shared(plain, parameters, PLAIN)
        _check_rows(data)
        pull = memory_model.pull(state, plain, TARGET)
        moved = 1 - (1 - _STEP) ** steps
        chosen = {name: [n * moved for n in pull[name]] for name in state if transfer.matches(name, patterns)}
        if not chosen:
            raise UsageError("there is nothing to fit", why=f"no name matches; there are {', '.join(state)}")
        fitted = state | _added({name: state[name] for name in chosen}, chosen, -1)
        before, after = (_evaluation(memory_model.loss(found, plain)) for found in (state, fitted))
        return Personalized(encode(fitted, SCHEMA), before, after)

    async def validation_rows(self, app: str) -> bytes:
        self._check_open()
        return _rows(app)

    async def shards(self, validation: bytes, count: int, seed: int) -> tuple[bytes, ...]:
        """Of rows that it never reads."""
        self._check_open()
        _check_rows(validation)
        if not 1 <= count <= ROWS:
            raise UsageError(f"{ROWS} validation rows cannot be cut into {count} shards")
        return tuple([await self.validation_rows(f"{seed} {number}") for number in range(count)])

    async def aclose(self) -> None:
        self._closed = True

    def _within(self, budget_s: float | None, steps: int) -> tuple[int, float]:
        """How many of its steps fit a budget, at least one, and the seconds they take."""
        step_s = self._train_s / steps
        if (budget_s is not None and budget_s < self._train_s) or budget_s == 0:
            steps = max(1, int(budget_s / step_s)) if step_s else 1
        return steps, steps * step_s

    def _base(self, model: ModelConfig) -> bytes | None:
        if model.base is not None and model.base not in self._bases:
            raise base_files.missing(model.base)
        return None if model.base is None else self._bases[model.base]

    def _shared(self, model: ModelConfig, parameters: bytes, rule: AggregationConfig) -> Tensors:
        self._check_open()
        models.check(model)
        layout = strategies.model_file(memory_model.schema(model), rule)
        return shared_part(decode(parameters, layout, layout.file_bytes))

    def _measured(self, model: ModelConfig, shared: Tensors) -> float:
        state = memory_model.start(model, self._base(model)) | shared
        return memory_model.loss(memory_model.probed(state, model), model)

    def _check_open(self) -> None:
        if self._closed:
            raise DflError("the trainer is closed")


def _added(tensors: Tensors, others: Tensors, sign: int = 1) -> Tensors:
    return {
        name: [number + sign * other for number, other in zip(numbers, others[name], strict=True)]
        for name, numbers in tensors.items()
    }


def _evaluation(loss: float) -> Evaluation:
    return Evaluation(accuracy=1 / (1 + loss), loss=loss, samples=ROWS)


def _read(
    update: WeightedUpdate, schema: Schema, rule: AggregationConfig, max_bytes: int
) -> tuple[Tensors | None, float, str]:
    """An update's numbers, its weight, and why it is refused."""
    try:
        codec.check_weight(update.samples)
        layout = strategies.update_file(schema, rule)
        tensors = decode(update.data, layout, max_bytes, codec.MAX_DELTA)
    except UpdateRefused as bad:
        return None, 0.0, bad.why
    short = aggregators.discount(update.staleness)
    return {name: [n * short for n in own] for name, own in tensors.items()}, float(update.samples), ""


def _rows(text: str) -> bytes:
    """A file of rows, for a twin that does not look at them."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("X.npy", "y.npy"):
            archive.writestr(zipfile.ZipInfo(name), f"{text} {name}")
    return out.getvalue()


def _check_rows(data: bytes) -> None:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise UsageError("data file refused", why="not a sound zip file")
