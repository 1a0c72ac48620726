"""What the worker can do, one method an operation. torch is imported by the first that needs it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from dfl_ledger.errors import DflError, SpecInvalid, UpdateRefused, UsageError
from dfl_node.train import models
from dfl_node.train.application import load_application
from dfl_node.train.codec import MAX_DELTA, Schema, check_weight
from dfl_node.train.frames import Frame
from dfl_node.train.trainer import DataConfig, Evaluation, ModelConfig, TrainingConfig

if TYPE_CHECKING:
    from dfl_node.train.evaluation import Inputs
    from dfl_node.train.rows import Rows
    from dfl_node.train.tensors import State

LOSS = "cross-entropy"
Say = Callable[[Frame], None]


@dataclass(frozen=True, slots=True)
class ScoreSession:
    """Updates opened for scoring. Coalitions are asked for one by one: training may go in between."""

    number: int
    model: ModelConfig
    parent: State
    deltas: tuple[tuple[State, int], ...]  # accepted ones, with their samples
    inputs: Inputs


class Operations:
    """A request frame in, an answer frame out. Raises DflError. `say` sends progress meanwhile."""

    def __init__(self, threads: int, say: Say) -> None:
        self._threads = threads
        self._say = say
        self._ready = False
        self._session: ScoreSession | None = None
        self._rows: tuple[tuple[DataConfig, ModelConfig], Inputs] | None = None
        self.by_name: dict[str, Callable[[Frame], Frame]] = {
            "warm": self.warm,
            "init": self.init,
            "train": self.train,
            "aggregate": self.aggregate,
            "score_open": self.score_open,
            "score_value": self.score_value,
            "score_close": self.score_close,
            "evaluate": self.evaluate,
            "central": self.central,
            "rows": self.rows,
        }

    def warm(self, _: Frame) -> Frame:
        self._torch()
        return Frame({})

    def init(self, request: Frame) -> Frame:
        model = _model(request)
        return Frame({}, (self._init(model, request.header["seed"]),))

    def train(self, request: Frame) -> Frame:
        """parent -> H local steps -> parent minus trained."""
        self._torch()
        from dfl_node.train import evaluation, local_sgd, tensors

        model, config = _model(request), TrainingConfig(**request.header["training"])
        data = _data(request.header["data"])
        schema = self._schema(model)
        if schema.file_bytes > config.max_update_bytes:
            raise SpecInvalid(
                "training.max_update_bytes", f"an update of this model has {schema.file_bytes} bytes"
            )
        parent = tensors.decode(request.payloads[0], schema, max_bytes=config.max_update_bytes)
        net = models.build(model)
        evaluation.set_state(net, parent)
        header = request.header
        result = local_sgd.train(
            net,
            self._inputs(data, model),
            config,
            steps=config.local_steps,
            seed=local_sgd.seed_words(header["job"], header["round"], header["node_seed"], config.seed),
            progress=self._progress,
        )
        trained = evaluation.get_state(net)
        delta = tensors.encode({name: parent[name] - trained[name] for name in parent}, schema)
        return Frame({"samples": result.samples, "loss": result.loss, "train_s": result.train_s}, (delta,))

    def aggregate(self, request: Frame) -> Frame:
        from dfl_node.train import tensors
        from dfl_node.train.strategies import fedavg

        schema = self._schema(_model(request))
        limit = request.header["max_update_bytes"]
        parent = tensors.decode(request.payloads[0], schema, max_bytes=limit)
        total = fedavg.init(parent)
        reasons = []
        for update, samples in zip(request.payloads[1:], request.header["samples"], strict=True):
            why, delta = _read_update(update, samples, schema, limit)
            reasons.append(why)
            if delta is not None:
                total = fedavg.apply(total, delta, samples)
        # Nobody accepted: the parent's own bytes come back, whatever rounding might do to a zero.
        result = tensors.encode(fedavg.model(total, parent), schema) if total.samples else request.payloads[0]
        return Frame({"reasons": reasons}, (result,))

    def score_open(self, request: Frame) -> Frame:
        """Check every update once; answers which are accepted, and the parent's loss."""
        self._torch()
        from dfl_node.train import evaluation, tensors
        from dfl_node.train.rows import read_npz

        model, limit = _model(request), request.header["max_update_bytes"]
        schema = self._schema(model)
        parent_bytes, validation, *updates = request.payloads
        parent = tensors.decode(parent_bytes, schema, max_bytes=limit)
        read = [
            (delta, samples)
            for update, samples in zip(updates, request.header["samples"], strict=True)
            for _, delta in (_read_update(update, samples, schema, limit),)
        ]
        inputs = evaluation.inputs_of(read_npz(validation), models.kind(model))
        accepted = tuple((delta, samples) for delta, samples in read if delta is not None)
        self._session = ScoreSession(request.header["session"], model, parent, accepted, inputs)
        return Frame({"accepted": [delta is not None for delta, _ in read], "loss": self._coalition_loss(0)})

    def score_value(self, request: Frame) -> Frame:
        """The loss of the model that a coalition gives; `lost` if another worker held the session."""
        if self._session is None or self._session.number != request.header["session"]:
            return Frame({"lost": True})
        return Frame({"loss": self._coalition_loss(request.header["coalition"])})

    def score_close(self, _: Frame) -> Frame:
        self._session = None
        return Frame({})

    def evaluate(self, request: Frame) -> Frame:
        self._torch()
        from dfl_node.train import tensors
        from dfl_node.train.rows import read_npz

        model = _model(request)
        schema = self._schema(model)
        parameters, data = request.payloads
        state = tensors.decode(parameters, schema, max_bytes=schema.file_bytes)
        inputs = self._fit(read_npz(data), model)
        return Frame(asdict(self._evaluate(model, state, inputs)))

    def central(self, request: Frame) -> Frame:
        """The same model, trained in one place on every training row of an application."""
        self._torch()
        from dfl_node.train import evaluation, local_sgd, tensors

        model, config = _model(request), TrainingConfig(**request.header["training"])
        everything = DataConfig(request.header["app"], None, (1, 1, 1), None)
        net = models.build(model)
        start = tensors.decode(self._init(model, config.seed), self._schema(model), max_bytes=sys.maxsize)
        evaluation.set_state(net, start)
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

    def _init(self, model: ModelConfig, seed: int) -> bytes:
        self._torch()
        import torch

        from dfl_node.train import evaluation, tensors

        torch.manual_seed(seed)
        return tensors.encode(evaluation.get_state(models.build(model)), self._schema(model))

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
        from dfl_node.train.strategies import fedavg

        session = self._session
        if session is None:
            raise DflError("nothing is being scored")
        total = fedavg.init(session.parent)
        for place, (delta, samples) in enumerate(session.deltas):
            if mask >> place & 1:
                total = fedavg.apply(total, delta, samples)
        return self._evaluate(session.model, fedavg.model(total, session.parent), session.inputs).loss

    def _evaluate(self, model: ModelConfig, state: State, inputs: Inputs) -> Evaluation:
        from dfl_node.train import evaluation

        net = models.build(model)
        evaluation.set_state(net, state)
        return evaluation.evaluate(net, inputs)

    def _progress(self, step: int, loss: float) -> None:
        self._say(Frame({"progress": {"step": step, "loss": loss}}))


def _read_update(update: bytes, samples: Any, schema: Schema, max_bytes: int) -> tuple[str, State | None]:
    """Why an update is refused, or "" and its tensors."""
    from dfl_node.train import tensors

    try:
        check_weight(samples)
        return "", tensors.decode(update, schema, max_bytes=max_bytes, max_abs=MAX_DELTA)
    except UpdateRefused as bad:
        return bad.why, None


def _model(request: Frame) -> ModelConfig:
    return ModelConfig(**request.header["model"])


def _data(fields: dict[str, Any]) -> DataConfig:
    first, last, of = fields["shard"]
    return replace(DataConfig(**fields), shard=(first, last, of))
