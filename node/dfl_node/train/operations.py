"""What the worker can do, one method an operation. torch is imported by the first that needs it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from dfl_ledger.errors import DflError, SpecInvalid, UpdateRefused, UsageError
from dfl_node.train import aggregators, models, strategies, transfer
from dfl_node.train.application import load_application
from dfl_node.train.codec import MAX_DELTA, Schema, check_weight
from dfl_node.train.frames import Frame
from dfl_node.train.model_operations import ModelOperations
from dfl_node.train.requests import base_of, data_of, model_of, rule_of
from dfl_node.train.stage_operations import StageOperations
from dfl_node.train.trainer import DataConfig, ModelConfig, TrainingConfig
from dfl_node.train.transfer import PERSONAL
from dfl_node.value import audit

if TYPE_CHECKING:
    from torch import nn

    from dfl_node.train.evaluation import Inputs
    from dfl_node.train.local_sgd import Trained
    from dfl_node.train.rows import Rows
    from dfl_node.train.tensors import State

LOSS = "cross-entropy"
SLICE_S = 0.5  # of a training before others have their turn
Say = Callable[[Frame], None]


@dataclass(frozen=True, slots=True)
class ScoreSession:
    """Updates opened for scoring. Coalitions are asked for one by one: training may go in between."""

    number: int
    net: nn.Module  # every coalition's state goes in here
    personal: State  # as it begins
    parent: State
    players: tuple[tuple[State, float], ...]  # accepted updates, near-duplicates as one, and their weights
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class TrainSession:
    """A training under way, and what becomes of its result. Other requests may go in between its steps."""

    number: int
    steps: Generator[None, None, Trained]
    finish: Callable[[Trained], Frame]
    threads: int
    idle_s: float = 0.0  # in which others had their turn
    rests_since: float = 0.0


class Operations:
    """A request frame in, an answer frame out. Raises DflError. `say` sends progress meanwhile."""

    def __init__(self, threads: int, say: Say) -> None:
        self._threads = threads
        self._say = say
        self._ready = False
        self._session: ScoreSession | None = None
        self._trainings: dict[int, TrainSession] = {}  # our own, and audits
        self._rows: tuple[tuple[DataConfig, ModelConfig], Inputs] | None = None
        self.by_name: dict[str, Callable[[Frame], Frame]] = {
            "warm": self.warm,
            "init": self.init,
            "train": self.train,
            "train_on": self.train_on,
            "train_drop": self.train_drop,
            "shard": self.shard,
            "recompute": self.recompute,
            "aggregate": self.aggregate,
            "score_open": self.score_open,
            "score_value": self.score_value,
            "score_close": self.score_close,
            "central": self.central,
            "rows": self.rows,
            "shards": self.shards,
            **ModelOperations(self._torch, self._progress).by_name,
            **StageOperations(self._torch, self._inputs).by_name,
        }

    def warm(self, _: Frame) -> Frame:
        self._torch()
        return Frame({})

    def init(self, request: Frame) -> Frame:
        """The first model file: shared state of the base or the seed, and the strategy's server state."""
        self._torch()
        from dfl_node.train import aggregation, network, tensors

        model, rule = replace(model_of(request), seed=request.header["seed"]), rule_of(request)
        schema = models.schema(model)
        net = network.start(model, base_of(request))
        file = aggregation.first_file(network.take(net, network.parts(net, model).shared), rule)
        return Frame({}, (tensors.encode(file, strategies.model_file(schema, rule)),))

    def train(self, request: Frame) -> Frame:
        """parent -> H local steps -> parent minus trained."""
        model, config = model_of(request), TrainingConfig(**request.header["training"])
        data = data_of(request.header["data"])

        def answer(result: Trained, update: bytes, kept: tuple[bytes, ...]) -> Frame:
            told = {"samples": result.samples, "loss": result.loss, "train_s": result.train_s}
            return Frame(told, (update, *kept))

        return self._begin(request, config, lambda: self._inputs(data, model), answer)

    def recompute(self, request: Frame) -> Frame:
        """Another node's training from its own rows, and how far its update is from what that gives."""
        from dfl_node.train import rows as files
        from dfl_node.train import tensors
        from dfl_node.train.aggregators import arrays

        model, rule = model_of(request), rule_of(request)
        audit.check_recomputable(model, rule)
        config = TrainingConfig(**request.header["training"])
        config = replace(config, local_steps=audit.steps_of(request.header["samples"], config))
        parent, shard, committed = request.payloads
        rows = files.read_opened(shard, bytes.fromhex(request.header["commitment"]))
        layout = strategies.update_file(self._schema(model), rule)
        theirs = tensors.decode(committed, layout, max_bytes=config.max_update_bytes, max_abs=MAX_DELTA)

        def answer(_: Trained, update: bytes, __: tuple[bytes, ...]) -> Frame:
            ours = tensors.decode(update, layout, max_bytes=config.max_update_bytes)
            return Frame({"distance": arrays.relative_distance(theirs, ours)}, (update,))

        return self._begin(
            replace(request, payloads=(parent,)), config, lambda: self._fit(rows, model), answer
        )

    def shard(self, request: Frame) -> Frame:
        """This node's rows as a file, and the commitment to them."""
        from dfl_node.train import rows as files

        data = data_of(request.header["data"])
        rows = load_application(data.app).load(data.path, data.shard, data.dirichlet_alpha)
        return Frame({"commitment": files.commitment(rows).hex()}, (files.write_npz(rows),))

    def _begin(
        self,
        request: Frame,
        config: TrainingConfig,
        inputs: Callable[[], Inputs],
        answer: Callable[[Trained, bytes, tuple[bytes, ...]], Frame],
    ) -> Frame:
        """Start a session from a parent, and a node's own state if there is one, on some rows. `answer` makes
        the last frame of what was trained, the update's file and the node's own state, if any."""
        self._torch()
        from dfl_node.train import aggregation, evaluation, local_sgd, member, network, tensors

        model, rule = model_of(request), rule_of(request)
        strategies.check_optimizer(rule.strategy, config.optimizer)
        schema = self._schema(model)
        files = strategies.model_file(schema, rule), strategies.update_file(schema, rule)
        largest = max(file.file_bytes for file in files)
        if largest > config.max_update_bytes:
            raise SpecInvalid("training.max_update_bytes", f"a file of this model has {largest} bytes")
        file = tensors.decode(request.payloads[0], files[0], max_bytes=config.max_update_bytes)
        parent = aggregation.shared_part(file)
        net = network.start(model, base_of(request))
        personal = network.parts(net, model).personal
        private = strategies.joined(
            strategies.local_file(schema, rule), transfer.some(models.layout(model), personal, PERSONAL)
        )
        local = {
            name: tensor
            for payload in request.payloads[1:]
            for name, tensor in tensors.decode(payload, private, max_bytes=private.file_bytes).items()
        }
        evaluation.set_state(net, parent)
        if local:
            evaluation.set_state(net, {name: local[PERSONAL + name] for name in personal})
        header = request.header
        steps = local_sgd.training(
            net,
            inputs(),
            config,
            steps=config.local_steps,
            seed=local_sgd.seed_words(header["job"], header["round"], header["node_seed"], config.seed),
            progress=self._progress,
            correct=member.correction(rule, net, file, local),
            budget_s=header["time_budget_s"],
        )

        def finish(result: Trained) -> Frame:
            trained = evaluation.get_state(net)
            update: State = {name: parent[name] - trained[name] for name in parent}
            kept: State = {PERSONAL + name: trained[name] for name in personal}
            if strategies.find(rule.strategy).control:
                control, change = member.next_control(file, local, update, result, config)
                kept |= control
                update |= change
            own = (tensors.encode(kept, private),) if kept else ()
            return answer(result, tensors.encode(update, files[1]), own)

        threads = 1 if header["reference"] else self._threads
        return self._train_a_while(TrainSession(header["session"], steps, finish, threads))

    def train_on(self, request: Frame) -> Frame:
        """Go on with the training of this session; `lost` if another worker held it."""
        session = self._trainings.get(request.header["session"])
        return Frame({"lost": True}) if session is None else self._train_a_while(session)

    def train_drop(self, request: Frame) -> Frame:
        """Nobody wants this session's training any more."""
        self._trainings.pop(request.header["session"], None)
        return Frame({})

    def _train_a_while(self, session: TrainSession) -> Frame:
        """For SLICE_S, so that an aggregation need not wait for a slow node's whole training."""
        self._trainings.pop(session.number, None)  # a step that raises ends it
        import torch

        torch.set_num_threads(session.threads)
        try:
            return self._slice(session)
        finally:
            torch.set_num_threads(self._threads)

    def _slice(self, session: TrainSession) -> Frame:
        began = time.perf_counter()
        idle_s = session.idle_s + (began - session.rests_since if session.rests_since else 0.0)
        while (now := time.perf_counter()) < began + SLICE_S:
            try:
                next(session.steps)
            except StopIteration as end:
                done: Trained = end.value
                return session.finish(replace(done, train_s=done.train_s - idle_s))
        self._trainings[session.number] = replace(session, idle_s=idle_s, rests_since=now)
        return Frame({"unfinished": True})

    def aggregate(self, request: Frame) -> Frame:
        """The accepted updates, in their order, become one step of the rule's strategy."""
        from dfl_node.train import aggregation, tensors

        rule, limit = rule_of(request), request.header["max_update_bytes"]
        schema = self._schema(model_of(request))
        layout = strategies.model_file(schema, rule)
        parent_bytes, *updates = request.payloads
        parent = tensors.decode(parent_bytes, layout, max_bytes=limit)
        read = _read_updates(request, updates, strategies.update_file(schema, rule))
        accepted = [(update, weight) for _, update, weight in read if update is not None]
        # Nobody accepted: the parent's own bytes come back, whatever rounding might do to a zero.
        result = parent_bytes
        if accepted:
            result = tensors.encode(aggregation.next_file(parent, accepted, rule), layout)
        return Frame({"reasons": [why for why, _, _ in read]}, (result,))

    def score_open(self, request: Frame) -> Frame:
        """Check every update once; answers which are accepted, which of those are alike, and the parent's
        loss."""
        self._torch()
        from dfl_node.train import aggregation, evaluation, likeness, network, tensors
        from dfl_node.train.rows import read_npz

        model, rule, limit = model_of(request), rule_of(request), request.header["max_update_bytes"]
        schema = self._schema(model)
        parent_bytes, validation, *updates = request.payloads
        file = tensors.decode(parent_bytes, strategies.model_file(schema, rule), max_bytes=limit)
        read = _read_updates(request, updates, strategies.update_file(schema, rule))
        inputs = evaluation.inputs_of(read_npz(validation), models.kind(model))
        accepted = [(update, weight) for _, update, weight in read if update is not None]
        steps = [(aggregation.shared_part(update), weight) for update, weight in accepted]
        first = likeness.groups([step for step, _ in steps])
        parent = aggregation.shared_part(file)
        net = network.start(model, base_of(request))
        personal = network.copy(net, network.parts(net, model).personal)
        players = likeness.players(steps, first)
        self._session = ScoreSession(request.header["session"], net, personal, parent, players, inputs)
        accepts = [not why for why, _, _ in read]
        return Frame({"accepted": accepts, "alike": list(first), "loss": self._coalition_loss(0)})

    def score_value(self, request: Frame) -> Frame:
        """The loss of the model that a coalition gives; `lost` if another worker held the session."""
        if self._session is None or self._session.number != request.header["session"]:
            return Frame({"lost": True})
        return Frame({"loss": self._coalition_loss(request.header["coalition"])})

    def score_close(self, _: Frame) -> Frame:
        self._session = None
        return Frame({})

    def central(self, request: Frame) -> Frame:
        """The same model, trained in one place on every training row of an application."""
        self._torch()
        from dfl_node.train import evaluation, local_sgd, network

        model, config = model_of(request), TrainingConfig(**request.header["training"])
        everything = DataConfig(request.header["app"], None, (1, 1, 1), None)
        net = network.start(replace(model, seed=config.seed), base_of(request))
        local_sgd.train(
            net,
            self._inputs(everything, model),
            config,
            steps=max(1, request.header["samples"] // config.batch_size),
            seed=local_sgd.seed_words(0, 0, 0, config.seed),
            progress=self._progress,
        )
        holdout = self._fit(load_application(everything.app).holdout(), model)
        return Frame(asdict(evaluation.evaluate(net, holdout)))

    def rows(self, request: Frame) -> Frame:
        """An application's validation or hold-out rows as an NPZ file."""
        from dfl_node.train.rows import write_npz

        app = load_application(request.header["app"])
        rows = app.validation() if request.header["which"] == "validation" else app.holdout()
        return Frame({}, (write_npz(rows),))

    def shards(self, request: Frame) -> Frame:
        """An NPZ file's rows as several files."""
        import numpy as np

        from dfl_node.train.rows import read_npz, write_npz
        from dfl_node.value import shards

        rows = read_npz(request.payloads[0])
        parts = shards.places(rows.y.tolist(), request.header["count"], request.header["seed"])
        return Frame({}, tuple(write_npz(rows.take(np.array(part, np.intp))) for part in parts))

    # -- pieces ---------------------------------------------------------------------------------------
    def _torch(self) -> None:
        """Import torch, deterministic. `torch.use_deterministic_algorithms` does the same, but imports the
        compiler first: 70 MB."""
        if self._ready:
            return
        import torch

        torch.set_num_threads(self._threads)
        torch.set_num_interop_threads(1)
        torch.set_deterministic_debug_mode("error")
        gc.freeze()  # torch's own objects are there to stay: no collection need visit them
        self._ready = True

    def _schema(self, model: ModelConfig) -> Schema:
        self._torch()
        return models.schema(model)

    def _inputs(self, data: DataConfig, model: ModelConfig) -> Inputs:
        """This node's rows; the last ones are kept, since rounds follow each other."""
        if self._rows is None or self._rows[0] != (data, model):
            app = load_application(data.app)
            if app.loss != LOSS:
                raise UsageError(
                    f"application {app.name} does not fit the model", why=f"its loss is {app.loss}"
                )
            rows = app.load(data.path, data.shard, data.dirichlet_alpha)
            self._rows = (data, model), self._fit(rows, model)
        return self._rows[1]

    def _fit(self, rows: Rows, model: ModelConfig) -> Inputs:
        from dfl_node.train.evaluation import inputs_of

        return inputs_of(rows, models.kind(model))

    def _coalition_loss(self, mask: int) -> float:
        """Loss of parent - weighted mean step of the coalition, on the validation rows."""
        from dfl_node.train import aggregation, evaluation, fitting

        session = self._session
        if session is None:
            raise DflError("nothing is being scored")
        members = [player for place, player in enumerate(session.players) if mask >> place & 1]
        evaluation.set_state(session.net, aggregation.coalition(session.parent, members))
        return fitting.measure(session.net, session.personal, session.inputs).loss

    def _progress(self, step: int, loss: float) -> None:
        self._say(Frame({"progress": {"step": step, "loss": loss}}))


def _read_updates(
    request: Frame, updates: Sequence[bytes], layout: Schema
) -> list[tuple[str, State | None, float]]:
    """For each update why it is refused, or "", its tensors and its weight."""
    from dfl_node.train import tensors

    read: list[tuple[str, State | None, float]] = []
    limit = request.header["max_update_bytes"]
    claims = zip(request.header["samples"], request.header["staleness"], strict=True)
    for update, (samples, staleness) in zip(updates, claims, strict=True):
        try:
            check_weight(samples)
            state = tensors.decode(update, layout, max_bytes=limit, max_abs=MAX_DELTA)
        except UpdateRefused as bad:
            read.append((bad.why, None, 0.0))
        else:
            read.append(("", tensors.scaled(state, aggregators.discount(staleness)), float(samples)))
    return read
