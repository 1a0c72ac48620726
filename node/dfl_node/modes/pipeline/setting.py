"""What all of a run's parts on this node work with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
import trio

from dfl_ledger.errors import UsageError
from dfl_ledger.records import Address, Cid
from dfl_node.jobspec import PipelineSpec
from dfl_node.modes.mode import Context, job_seed
from dfl_node.modes.pipeline.files import MAX_HEADER_BYTES
from dfl_node.modes.pipeline.lines import Attendant, Line, Lines, local_pair
from dfl_node.modes.pipeline.messages import Ask, Call, Opening
from dfl_node.modes.pipeline.plan import Patience, RunId
from dfl_node.train.stage import WORKER_BYTES, StageConfig

log = structlog.get_logger(__name__)

KEEPERS = 3  # members that are asked, one after another, to hold a stage's file
OPTIMIZER_COPIES = 3  # a snapshot's weights and at most two tensors of an optimizer's for each


@dataclass(slots=True)
class Setting:
    """One run on one node."""

    context: Context
    run: RunId
    order: tuple[Address, ...]  # the members, who conducts first
    deadline: float  # Unix seconds: the commit window's end
    patience: Patience
    speed: float  # FLOP/s of this node, on the same work as the other members; 0 = not measured
    nursery: trio.Nursery
    attendant: Attendant = field(init=False)  # ourselves, for lines that stay on this node
    deaf: set[Address] = field(default_factory=set)  # who did not keep the last file that we asked it to

    @property
    def me(self) -> Address:
        return self.context.me

    @property
    def lines(self) -> Lines:
        return self.context.parts.lines

    @property
    def pipeline(self) -> PipelineSpec:
        return pipeline_of(self.context)

    @property
    def memory_bytes(self) -> int:
        """For stages, beyond what the worker itself takes."""
        return max(0, self.context.parts.trainer_memory_bytes - WORKER_BYTES)

    def left_s(self) -> float:
        """Until the commit window ends."""
        return self.deadline - self.context.clock()

    def stage_config(self, cuts: Sequence[str], index: int) -> StageConfig:
        return stage_config(self.context, cuts, index)

    def feed_seed(self) -> tuple[int, ...]:
        """Of the rows this node feeds: the same after a recovery, others for every round and node."""
        run = self.run
        return (self.context.spec.training.seed, run.job, run.round, job_seed(self.me, run.job))

    async def open(self, node: Address, opening: Opening) -> Line:
        """Call a member, perhaps ourselves. Raises DflError."""
        if node != self.me:
            return await self.lines.open(node, opening)
        ours, theirs = local_pair()
        if isinstance(opening, Ask):
            self.nursery.start_soon(self.attendant.on_control, node, opening, theirs)
        else:
            self.nursery.start_soon(self.attendant.on_data, node, opening, theirs)
        return ours

    def call(self, epoch: int, stage: int, port: str) -> Call:
        return Call(self.run.job, self.run.round, self.run.parent, epoch, stage, port)

    async def keep(self, file: bytes) -> Cid:
        """Store a stage's file here and with another member, the first of KEEPERS that will.

        A member that has just died counts as connected for a while: it must not hold up every file anew.
        """
        parts = self.context.parts
        cid = await parts.store.put(file)
        place = self.order.index(self.me)
        others = (*self.order[place + 1 :], *self.order[:place])
        reachable = [node for node in others if node in self.lines.connected()]
        for node in sorted(reachable, key=self.deaf.__contains__)[:KEEPERS]:
            async with trio.open_nursery() as asking:
                kept = await parts.holders.ask(asking, self.run.job, [cid], [node])
                asking.cancel_scope.cancel()
            if kept:
                self.deaf.discard(node)
                return cid
            self.deaf.add(node)
        log.warning("nobody else holds a stage's file yet", job=self.run.job, cid=str(cid))
        return cid

    async def fetch(self, cid: Cid) -> bytes:
        """A stage's file. Raises DflError."""
        return await self.context.parts.store.get(
            cid, max_bytes=max_stage_file_bytes(self.context), timeout_s=self.patience.open_s / 2
        )


def pipeline_of(context: Context) -> PipelineSpec:
    own = context.spec.pipeline
    if own is None:
        raise UsageError("not a pipelined job", why="its spec has no table `pipeline`")
    return own


def stage_config(context: Context, cuts: Sequence[str], index: int) -> StageConfig:
    own = pipeline_of(context)
    return StageConfig(
        model=context.model,
        training=context.training,
        cuts=tuple(cuts),
        index=index,
        micro_batches=own.micro_batches,
        rows=context.spec.training.batch_size // own.micro_batches,
    )


def max_stage_file_bytes(context: Context) -> int:
    """A stage is at most the whole model, and carries its optimizer's state."""
    return OPTIMIZER_COPIES * context.spec.training.max_update_bytes + 2 * MAX_HEADER_BYTES
