"""What differs between the ways to train, behind one Protocol.

`JobPart` (job.py) follows the chain and decides when; a mode says what a piece of work is, how the pieces of
a round become its model, and what each was worth.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
import trio

from dfl_ledger.errors import BlobNotFound, DflError
from dfl_ledger.query import ContributionRow
from dfl_ledger.records import Address, Cid, JobId, JobState, Kind, Mode
from dfl_node.jobspec import JobSpec
from dfl_node.modes import sealed
from dfl_node.modes.pieces import Revealed
from dfl_node.modes.sealed import MAX_VALIDATION_BYTES
from dfl_node.parts import Parts
from dfl_node.rounds.vocabulary import Hop, State, Train, Work
from dfl_node.specrules import model_config
from dfl_node.train.trainer import AggregationConfig, ModelConfig, TrainingConfig, Verdict

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Context:
    """What a mode works with."""

    job: JobId
    spec: JobSpec
    parts: Parts
    clock: Callable[[], float]  # Unix seconds
    state: Callable[[], State]  # where this node's part in the job stands

    @property
    def me(self) -> Address:
        return self.parts.ledger.address

    @property
    def model(self) -> ModelConfig:
        return model_config(self.spec)

    @property
    def training(self) -> TrainingConfig:
        return training_config(self.spec)

    @property
    def rule(self) -> AggregationConfig:
        return aggregation(self.spec)

    async def fetch_model(self, cid: Cid) -> bytes:
        """A model of this job. Raises DflError when it cannot be had."""
        return await self.parts.store.get(cid, max_bytes=self.spec.training.max_update_bytes)

    async def validation(self) -> bytes:
        """The requester's validation rows, an NPZ file: of a job where they are not sealed."""
        return await self.parts.store.get(self.spec.validation, max_bytes=MAX_VALIDATION_BYTES)

    async def scored_on(self, round_: int) -> bytes:
        """The validation rows that a round is scored on, an NPZ file. Raises BlobNotFound if there are none:
        their shard was not unsealed in time."""
        if not self.spec.reward.sealed:
            return await self.validation()
        rows = await sealed.shard(self.parts.store, self.parts.rows, self.job, self.spec, round_)
        if rows is None:
            raise BlobNotFound(f"validation rows of job {self.job} round {round_}", why="they are sealed")
        return rows

    async def keep_validation(self) -> None:
        """See to it that rows are here which only a requester has, and which may be gone with it."""
        if self.spec.reward.sealed:
            await sealed.keep(self.parts.store, self.spec)
        else:
            await self.validation()

    async def local_state(self) -> bytes | None:
        """What this node keeps for itself in this job: a personal head, a control variate."""
        return await trio.to_thread.run_sync(self.parts.journal.local_state, self.job)

    async def keep_local_state(self, state: bytes | None) -> None:
        """Before the work that came with it is journalled: it may be newer than the work, never older."""
        if state is not None:
            await trio.to_thread.run_sync(self.parts.journal.keep_local_state, self.job, state)

    async def keep(
        self,
        action: Train,
        piece: bytes,
        *,
        samples: int,
        loss: float,
        train_s: float,
        kind: Kind = Kind.UPDATE,
    ) -> Work:
        """Blob, then journal: only what is on disk may be committed."""
        cid = await self.parts.store.put(piece)
        made = Work(action.round, action.parent, cid, samples, os.urandom(32), kind)
        work = await trio.to_thread.run_sync(
            lambda: self.parts.journal.record(self.job, made, loss=loss, train_s=train_s)
        )
        log.info(
            "trained",
            job=self.job,
            round=action.round,
            samples=samples,
            loss=round(loss, 4),
            train_s=round(train_s, 3),
        )
        return work


Uses = Mapping[Address, Sequence[int]]  # which data sets each node declared; none: the node is missing


@dataclass(frozen=True, slots=True)
class Worths:
    """What a round's work was worth."""

    pieces: tuple[int, ...]  # one a revealed piece, 0 for a refused one
    method: str  # that gave them
    datasets: Mapping[int, int] = field(default_factory=dict)  # by asset; 0 for what is missing


class ModePart(Protocol):
    """One node's part in one job, as far as the mode decides it."""

    def drawn(self, job: JobState, node: Address) -> bool:
        """Whether the current round wants a piece of this member. Blocks; called in a thread."""
        ...

    def activity(self) -> dict[str, Any]:
        """What this node does in the job beyond what the chain says, for `job watch`: plain JSON values."""
        ...

    async def train(self, action: Train) -> Work:
        """Make our piece of the round, stored and journalled. Cancelled when the round goes on without us."""
        ...

    async def hop(self, action: Hop) -> None:
        """Chained alone: judge, train, publish."""
        ...

    @property
    def max_piece_bytes(self) -> int:
        """The largest file that a piece of the job may be."""
        ...

    def objection(self, round_: int, row: ContributionRow) -> str:
        """Why this piece cannot count whatever its bytes say, or "". Blocks; called in a thread."""
        ...

    async def combine(self, round_: int, parent: Cid, revealed: Revealed) -> tuple[Cid, tuple[Verdict, ...]]:
        """The round's model, stored, and a verdict for each revealed piece."""
        ...

    async def worth(self, round_: int, parent: Cid, revealed: Revealed, uses: Uses) -> Worths:
        """What each piece is worth, and each data set that one was made with."""
        ...


def open_mode(context: Context) -> ModePart:
    """This node's part in the mode of a job."""
    # Imported here: each mode imports this module.
    from dfl_node.modes.async_parallel import AsyncParallel
    from dfl_node.modes.chained import Chained
    from dfl_node.modes.data_parallel import DataParallel
    from dfl_node.modes.model_parallel import ModelParallel

    match context.spec.mode:
        case Mode.SYNC:
            return DataParallel(context)
        case Mode.PIPELINE:
            return ModelParallel(context)
        case Mode.CHAINED:
            return Chained(context)
        case Mode.ASYNC if context.spec.buffer is not None:
            return AsyncParallel(context, max_lag=context.spec.buffer.max_lag)
        case other:
            raise DflError(f"mode {other.name.lower()} is not known to this node")


def training_config(spec: JobSpec) -> TrainingConfig:
    return TrainingConfig(
        local_steps=spec.training.local_steps,
        batch_size=spec.training.batch_size,
        lr=spec.training.lr,
        momentum=spec.training.momentum,
        optimizer=spec.training.optimizer,
        seed=spec.training.seed,
        max_update_bytes=spec.training.max_update_bytes,
    )


def aggregation(spec: JobSpec) -> AggregationConfig:
    own = spec.training
    return AggregationConfig(own.strategy, own.strategy_args, own.aggregator, own.aggregator_args)


def job_seed(node: Address, job: JobId) -> int:
    """31 bits that differ per node and job: two nodes with the same rows must not do the same work."""
    return int.from_bytes(hashlib.sha256(f"{node}/{job}".encode()).digest()[:4], "big") >> 1
