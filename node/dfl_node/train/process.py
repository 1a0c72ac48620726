"""`ProcessTrainer`: the node's side of the worker process. trio, and neither torch nor numpy.

    async with open_trainer() as trainer:
        update = await trainer.train(assignment)

The worker starts with the first request and does one at a time, in the order asked. Whoever cancels a
request kills the worker in the middle of it; the next request starts another. Scoring asks for one coalition
at a time, so that training asked for meanwhile waits for one evaluation and not for 2^n.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import structlog
import trio

from dfl_ledger import errors
from dfl_ledger.errors import DflError, SpecInvalid
from dfl_node.train import frames, transfer
from dfl_node.train.audit_process import AuditRequests
from dfl_node.train.base_files import Bases
from dfl_node.train.frames import Frame, FrameError, WorkerDied
from dfl_node.train.stage_process import StageRequests
from dfl_node.train.trainer import (
    PLAIN,
    Aggregate,
    AggregationConfig,
    Assignment,
    Evaluation,
    ModelConfig,
    ModelUpdate,
    Personalized,
    TrainingConfig,
    Verdict,
    WeightedUpdate,
)
from dfl_node.value import scoring, shapley
from dfl_node.value.scoring import Scores

log = structlog.get_logger(__name__)

MAX_STDERR_BYTES = 64 * 1024  # of one worker that reach the log
_CHUNK = 1 << 20
_DYING_S = 2.0  # a killed worker is gone by then, or is the kernel's problem
# The worker gets these and nothing else: passwords and keys may be in the node's environment.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is."""

    step: int
    loss: float


@asynccontextmanager
async def open_trainer(
    *,
    threads: int = 1,
    max_memory_bytes: int | None = 2 << 30,
    nice: int = 5,
    on_progress: Callable[[Progress], None] | None = None,
) -> AsyncIterator[ProcessTrainer]:
    """A trainer whose worker ends with the block. Nothing is started before the first request.

    `max_memory_bytes` bounds the worker's private memory; libraries mapped from disk come on top.
    """
    trainer = ProcessTrainer(
        {"threads": threads, "max_memory_bytes": max_memory_bytes, "nice": nice}, on_progress
    )
    try:
        yield trainer
    finally:
        await trainer.aclose()


class ProcessTrainer(AuditRequests, StageRequests):
    """A `Trainer`. Make it with `open_trainer`."""

    def __init__(self, settings: dict[str, Any], on_progress: Callable[[Progress], None] | None) -> None:
        super().__init__()
        self._settings = settings
        self._on_progress = on_progress
        self._worker: _Worker | None = None
        self._turn = trio.Lock()  # fair: first come, first served
        self._scoring = trio.Lock()
        self._sessions = itertools.count(1)
        self._dropped: list[int] = []  # trainings that nobody wants any more
        self._bases = Bases()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The worker's process id while it lives."""
        return self._worker.pid if self._worker is not None and self._worker.alive else None

    async def warm(self) -> None:
        """Start the worker and let it import torch, which takes seconds, before anybody waits for it."""
        await self._ask("warm")

    async def init_model(self, model: ModelConfig, seed: int, rule: AggregationConfig = PLAIN) -> bytes:
        answer = await self._ask("init", model=asdict(model), seed=seed, rule=asdict(rule))
        return answer.payloads[0]

    async def train(self, assignment: Assignment) -> ModelUpdate:
        answer = await self._in_slices(
            "train",
            assignment.parent,
            *(() if assignment.local is None else (assignment.local,)),
            job=assignment.job,
            round=assignment.round,
            node_seed=assignment.node_seed,
            model=asdict(assignment.model),
            training=asdict(assignment.training),
            data=asdict(assignment.data),
            rule=asdict(assignment.rule),
            time_budget_s=assignment.time_budget_s,
            reference=assignment.reference,
        )
        head = answer.header
        delta, *local = answer.payloads
        return ModelUpdate(delta, head["samples"], head["loss"], head["train_s"], local[0] if local else None)

    async def _in_slices(self, op: str, *payloads: bytes, **fields: Any) -> Frame:
        """A training: whatever else is asked for meanwhile waits for one slice and not for the whole."""
        session = next(self._sessions)
        try:
            answer = await self._ask(op, *payloads, session=session, **fields)
            while not answer.payloads:
                if "lost" in answer.header:  # another request was cancelled, and the worker with it: anew
                    answer = await self._ask(op, *payloads, session=session, **fields)
                else:
                    answer = await self._ask("train_on", session=session)
        except BaseException:
            self._dropped.append(session)  # the next request tells the worker
            raise
        return answer

    async def aggregate(
        self,
        model: ModelConfig,
        parent: bytes,
        updates: Sequence[WeightedUpdate],
        *,
        max_update_bytes: int,
        rule: AggregationConfig = PLAIN,
    ) -> Aggregate:
        answer = await self._ask(
            "aggregate",
            parent,
            *(update.data for update in updates),
            model=asdict(model),
            rule=asdict(rule),
            **_claims(updates),
            max_update_bytes=max_update_bytes,
        )
        verdicts = tuple(Verdict(not why, why) for why in answer.header["reasons"])
        return Aggregate(answer.payloads[0], verdicts)

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
        scoring.check(method, seed)

        async def open_session() -> tuple[int, Frame]:
            number = next(self._sessions)
            answer = await self._ask(
                "score_open",
                parent,
                validation,
                *(update.data for update in updates),
                session=number,
                model=asdict(model),
                rule=asdict(rule),
                **_claims(updates),
                max_update_bytes=max_update_bytes,
            )
            return number, answer

        async with self._scoring:
            session, opened = await open_session()
            accepted, first = opened.header["accepted"], opened.header["alike"]
            before = shapley.fixed(opened.header["loss"])
            uses = [frozenset(update.datasets) for update in updates]
            asking = scoring.score(accepted, first, uses, method, seed)
            try:
                coalition = next(asking)
                while True:
                    answer = await self._ask("score_value", session=session, coalition=coalition)
                    while "lost" in answer.header:  # a training was cancelled meanwhile, and its worker too
                        session, _ = await open_session()
                        answer = await self._ask("score_value", session=session, coalition=coalition)
                    coalition = asking.send(before - shapley.fixed(answer.header["loss"]))
            except StopIteration as end:
                scores: Scores = end.value
            await self._ask("score_close")
        return scores

    async def evaluate(self, model: ModelConfig, parameters: bytes, data: bytes) -> Evaluation:
        return Evaluation(**(await self._ask("evaluate", parameters, data, model=asdict(model))).header)

    async def loss(
        self, model: ModelConfig, parameters: bytes, data: bytes, rule: AggregationConfig = PLAIN
    ) -> float:
        answer = await self._ask("loss", parameters, data, model=asdict(model), rule=asdict(rule))
        return float(answer.header["loss"])

    async def check(self, model: ModelConfig) -> None:
        await self._ask("check", model=asdict(model))

    def has_base(self, cid: str) -> bool:
        return cid in self._bases

    async def keep_base(self, cid: str, data: bytes) -> None:
        if self._closed:
            raise WorkerDied("the trainer is closed")
        await trio.to_thread.run_sync(self._bases.keep, cid, data)

    async def export(self, model: ModelConfig, parameters: bytes, rule: AggregationConfig = PLAIN) -> bytes:
        answer = await self._ask("export", parameters, model=asdict(model), rule=asdict(rule))
        return answer.payloads[0]

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
        answer = await self._ask(
            "personalize",
            parameters,
            data,
            model=asdict(transfer.plain(model)),
            steps=steps,
            lr=lr,
            patterns=list(patterns),
            seed=seed,
        )
        before, after = (Evaluation(**answer.header[when]) for when in ("before", "after"))
        return Personalized(answer.payloads[0], before, after)

    async def validation_rows(self, app: str) -> bytes:
        return (await self._ask("rows", app=app, which="validation")).payloads[0]

    async def shards(self, validation: bytes, count: int, seed: int) -> tuple[bytes, ...]:
        return (await self._ask("shards", validation, count=count, seed=seed)).payloads

    async def holdout_rows(self, app: str) -> bytes:
        """The rows nobody trains on or scores with, as an NPZ file."""
        return (await self._ask("rows", app=app, which="holdout")).payloads[0]

    async def train_central(
        self, model: ModelConfig, training: TrainingConfig, app: str, samples: int
    ) -> Evaluation:
        """What the same model reaches on the hold-out rows after `samples` training samples in one place,
        drawn from all of the application's training rows."""
        answer = await self._ask(
            "central", model=asdict(model), training=asdict(training), app=app, samples=samples
        )
        return Evaluation(**answer.header)

    async def aclose(self) -> None:
        """End the worker; a request under way raises WorkerDied. Idempotent."""
        self._closed = True
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.kill()
        self._bases.close()

    async def _ask(self, op: str, *payloads: bytes, **fields: Any) -> Frame:
        """One request and its answer. Raises what the worker raised, or WorkerDied."""
        if fields.get("model", {}).get("base") is not None:
            fields["base_path"] = str(self._bases.path(fields["model"]["base"]))
        async with self._turn:
            if self._worker is None or not self._worker.alive:
                dead, self._worker = self._worker, None
                if dead is not None:  # while nobody asked it anything
                    await dead.kill()
                self._worker = await self._start()
            worker, answered = self._worker, False
            try:
                while self._dropped:
                    drop = Frame({"op": "train_drop", "session": self._dropped.pop()})
                    await worker.exchange(drop, self._on_progress)
                answer = await worker.exchange(Frame({"op": op, **fields}, payloads), self._on_progress)
                answered = True
            finally:
                if not answered:  # cancelled or dead: what it says next would belong to nobody
                    self._worker = None
                    await worker.kill()
        if "error" in answer.header:
            raise _error(answer.header["error"])
        return answer

    async def _start(self) -> _Worker:
        if self._closed:
            raise WorkerDied("the trainer is closed")
        worker = await _Worker.start(self._settings)
        if self._closed:  # meanwhile
            await worker.kill()
            raise WorkerDied("the trainer is closed")
        return worker


class _Worker:
    """One worker process."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._received = bytearray()
        self._stderr_left = MAX_STDERR_BYTES
        self._last_words = ""

    @classmethod
    async def start(cls, settings: dict[str, Any]) -> _Worker:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in _ENVIRONMENT or name.startswith(("COV_", "COVERAGE_"))
        }
        threads = str(settings["threads"])
        environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "MALLOC_ARENA_MAX": "1"}
        # -P: a file torch.py in the working directory must not be what is imported.
        argv = [sys.executable, "-P", "-m", "dfl_node.train.worker", json.dumps(settings)]
        with trio.CancelScope(shield=True):  # or a cancelled start would leave a process nobody knows
            process = await trio.lowlevel.open_process(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
            )
        log.debug("trainer's worker started", pid=process.pid)
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def exchange(self, request: Frame, on_progress: Callable[[Progress], None] | None) -> Frame:
        """Send a request, pass on its progress, return its answer. Raises WorkerDied."""
        answer: Frame | None = None
        problem: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drain_stderr)
            try:
                await self._send(request)
                while "progress" in (answer := await self._receive()).header:
                    if on_progress is not None:
                        on_progress(Progress(**answer.header["progress"]))
            except (trio.BrokenResourceError, trio.ClosedResourceError, FrameError) as gone:
                answer, problem = None, gone
            nursery.cancel_scope.cancel()
        if answer is None:
            raise await self._death(request.header["op"], problem) from problem
        return answer

    async def kill(self) -> None:
        """SIGKILL: the worker keeps nothing that matters. Returns when it is gone."""
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_DYING_S):
                if self.alive:
                    self._process.kill()
                await self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    await pipe.aclose()

    async def _send(self, request: Frame) -> None:
        pipe = self._process.stdin
        if pipe is None:
            raise trio.ClosedResourceError
        await pipe.send_all(frames.pack_header(request.header, request.payloads))
        for payload in request.payloads:
            await pipe.send_all(payload)

    async def _receive(self) -> Frame:
        length = frames.header_length(await self._take(frames.PREFIX_BYTES))
        header, lengths = frames.unpack_header(await self._take(length))
        return Frame(header, tuple([await self._take(length) for length in lengths]))

    async def _take(self, length: int) -> bytes:
        pipe = self._process.stdout
        if pipe is None:
            raise trio.ClosedResourceError
        while len(self._received) < length:
            chunk = await pipe.receive_some(_CHUNK)
            if not chunk:
                raise FrameError("it hung up")
            self._received += chunk
        taken = bytes(memoryview(self._received)[:length])
        del self._received[:length]
        return taken

    async def _drain_stderr(self) -> None:
        """To the log, up to MAX_STDERR_BYTES of a worker; what comes after is read and dropped."""
        pipe = self._process.stderr
        if pipe is None:
            return
        while chunk := await pipe.receive_some(_CHUNK):
            shown = chunk[: self._stderr_left].decode(errors="replace")
            self._stderr_left -= min(len(chunk), self._stderr_left)
            for line in shown.splitlines():
                if line.strip():
                    log.warning("trainer's worker says", pid=self.pid, line=line[:400])
                    self._last_words = line.strip()[:200]

    async def _death(self, op: str, problem: Exception | None) -> WorkerDied:
        """What is known of how it ended."""
        with trio.move_on_after(_DYING_S):
            with suppress(trio.ClosedResourceError):  # by `aclose`, which ends requests under way
                await self._drain_stderr()
            await self._process.wait()
        code = self._process.returncode
        match code:
            case None:
                why = f"it broke the protocol: {problem}"
            case -9:
                why = "killed by SIGKILL: out of memory, or by hand"
            case _ if code < 0:
                why = f"killed by {signal.Signals(-code).name}"
            case _:
                why = f"exit code {code}" + (f", {self._last_words}" if self._last_words else "")
        return WorkerDied(f"the trainer's worker died during `{op}`", why=why, help_command="dfl-node doctor")


def _claims(updates: Sequence[WeightedUpdate]) -> dict[str, list[int]]:
    """What updates weigh, for a request's header."""
    return {
        "samples": [update.samples for update in updates],
        "staleness": [update.staleness for update in updates],
    }


def _error(described: dict[str, Any]) -> DflError:
    """The worker's error, as the type it was."""
    if described["kind"] == "SpecInvalid":
        return SpecInvalid(described["field"], described["why"])
    found = getattr(errors, described["kind"], DflError)
    kind = found if isinstance(found, type) and issubclass(found, DflError) else DflError
    return kind(described["what"], why=described["why"], help_command=described["help_command"])
