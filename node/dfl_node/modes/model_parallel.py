"""Model parallel: the model split over nodes, micro-batches in flight. A round's COMMIT is one pipelined run.

Who held a stage commits its last file, who fed the run commits the record of it; the round's model is the
stages put back together. How the run goes is in `pipeline/`: read `conductor.py` first.
"""

from __future__ import annotations

from typing import Any

import structlog
import trio

from dfl_ledger.errors import DflError, TimedOut, UpdateRefused, UsageError, VerificationFailed
from dfl_ledger.query import ContributionRow
from dfl_ledger.records import Address, Cid, JobState, Kind
from dfl_node.modes.mode import Context, Uses, Worths
from dfl_node.modes.pieces import Revealed
from dfl_node.modes.pipeline.files import MAX_RECORD_BYTES, Record, StageFile, StageHeader
from dfl_node.modes.pipeline.judging import Choice, FeedPiece, StagePiece, choices, missing
from dfl_node.modes.pipeline.plan import RunId, conducting_order
from dfl_node.modes.pipeline.run import PipelineRun
from dfl_node.modes.pipeline.setting import max_stage_file_bytes, pipeline_of
from dfl_node.modes.pipeline.speed import measure
from dfl_node.rounds.vocabulary import Hop, Train, Work
from dfl_node.train.trainer import Verdict
from dfl_node.value import datasets
from dfl_node.value.shapley import fixed

log = structlog.get_logger(__name__)

ROWS_S, ROWS_LOOK_S = 10.0, 0.05  # for the index to know every member


class ModelParallel:
    """A `ModePart`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._job, self._spec, self._parts = context.job, context.spec, context.parts
        self._stages = pipeline_of(context).stages
        self._speed = 0.0  # FLOP/s of this node, once it has measured itself on this job's model
        self._run: PipelineRun | None = None

    @property
    def max_piece_bytes(self) -> int:
        return max(max_stage_file_bytes(self._context), MAX_RECORD_BYTES)

    # -- our piece ------------------------------------------------------------------------------------
    def drawn(self, job: JobState, node: Address) -> bool:
        return True  # as a stage, as the feed, or as a spare

    def activity(self) -> dict[str, Any]:
        return self._run.activity() if self._run is not None else {}

    async def train(self, action: Train) -> Work:
        """Take part in the run; a spare waits here until it is needed or the round goes on."""
        context = self._context
        state = context.state().chain
        if state is None:
            raise DflError("a pipeline without a round", why="the chain has not been read yet")
        run = RunId(self._job, action.round, action.parent)
        order = conducting_order(run, await self._members(state.job))
        costs = await self._parts.trainer.segment_costs(context.model)
        began = trio.current_time()
        self._speed = self._speed or await measure(context, action.parent, costs)
        self._run = PipelineRun(context, run, order, costs, self._speed)
        try:
            piece = await self._run.run(state.job.deadline)
        finally:
            self._run = None
        return await context.keep(
            action,
            piece.data,
            samples=piece.steps * self._spec.training.batch_size,
            loss=piece.loss,
            train_s=trio.current_time() - began,
            kind=piece.kind,
        )

    async def _members(self, job: JobState) -> tuple[Address, ...]:
        """All of them: with one missing, nodes would not agree on who conducts. Raises TimedOut."""
        for _ in range(int(ROWS_S / ROWS_LOOK_S)):
            members = await trio.to_thread.run_sync(self._parts.rows.members, self._job, job.round)
            if len(members) >= job.expected:
                return members
            await trio.sleep(ROWS_LOOK_S)
        raise TimedOut(f"the ledger lacks members of job {self._job}", why="the index lags")

    async def hop(self, action: Hop) -> None:
        raise UsageError("a pipelined job has no hops", why=f"round {action.round}")

    # -- everybody's pieces ---------------------------------------------------------------------------
    def objection(self, round_: int, row: ContributionRow) -> str:
        if row.kind not in (Kind.STAGE.name.lower(), Kind.FEED.name.lower()):
            return f"is a {row.kind}, neither a stage nor a feed"
        if row.samples > self._spec.training.local_steps * self._spec.training.batch_size:
            return f"declares {row.samples} samples, more than the job's steps can process"
        return ""

    async def combine(self, round_: int, parent: Cid, revealed: Revealed) -> tuple[Cid, tuple[Verdict, ...]]:
        """The first complete set of sound stages, restacked.

        Raises UpdateRefused when there is none: the round has no model, and is void at its deadline.
        """
        run = RunId(self._job, round_, parent)
        why = list(revealed.refused)
        stages, feeds = self._read(run, revealed, why)
        while True:
            standing = [piece for piece in stages if not why[piece.place]]
            choice = next(choices(self._stages, standing, feeds), None)
            if choice is None:
                raise self._no_model(run, standing, why)
            if await self._is_sound(choice, revealed, why):
                break
        model = await self._parts.trainer.restack(
            self._context.model,
            choice.stages[0].header.cuts,
            [StageFile.decode(revealed.pieces[piece.place]).snapshot for piece in choice.stages],
            max_update_bytes=self._spec.training.max_update_bytes,
        )
        chosen = {piece.place for piece in choice.stages}
        if choice.feed is not None:
            chosen.add(choice.feed.place)
        verdicts = tuple(
            Verdict(place in chosen, "" if place in chosen else said or "is of no use to the round's model")
            for place, said in enumerate(why)
        )
        return await self._parts.store.put(model), verdicts

    async def worth(self, round_: int, parent: Cid, revealed: Revealed, uses: Uses) -> Worths:
        """Completed and verified micro-batches: as many for each stage, and for the feed. A data set is worth
        what the round took off the validation loss, if it is of the feed: nobody else's rows were used."""
        scores = []
        for row, piece, why in zip(revealed.rows, revealed.pieces, revealed.refused, strict=True):
            steps = 0
            if not why and row.kind == Kind.STAGE.name.lower():
                steps = StageFile.decode(piece).header.step
            elif not why:
                steps = Record.decode(piece).finish.point.step
            scores.append(steps * pipeline_of(self._context).micro_batches)
        fed = [
            frozenset(uses.get(Address(row.node), ()))
            for row, why in zip(revealed.rows, revealed.refused, strict=True)
            if not why and row.kind == Kind.FEED.name.lower()
        ]
        gain = await self._gain(round_, parent, revealed) if any(fed) else 0
        return Worths(tuple(scores), "micro-batches", datasets.parted([gain] * len(fed), fed))

    async def _gain(self, round_: int, parent: Cid, revealed: Revealed) -> int:
        """How much less the round's model loses on the validation rows than its parent, in 1e-9."""
        context, (model, _) = self._context, await self.combine(round_, parent, revealed)
        rows, losses = await context.validation(), []
        for cid in (parent, model):
            found = await context.fetch_model(cid)
            losses.append(fixed(await self._parts.trainer.loss(context.model, found, rows, context.rule)))
        return losses[0] - losses[1]

    # -- judging --------------------------------------------------------------------------------------
    def _read(
        self, run: RunId, revealed: Revealed, why: list[str]
    ) -> tuple[list[StagePiece], list[FeedPiece]]:
        """What each piece claims to be; `why` gets what speaks against it."""
        stages, feeds = [], []
        for place, (row, piece) in enumerate(zip(revealed.rows, revealed.pieces, strict=True)):
            if why[place]:
                continue
            node = Address(row.node)
            try:
                if row.kind == Kind.STAGE.name.lower():
                    header = StageFile.decode(piece).header
                    why[place] = self._objection_to(run, header)
                    stages.append(StagePiece(place, node, Cid.parse(row.cid), header))
                else:
                    record = Record.decode(piece)
                    record.finish.point.check(self._stages)
                    if record.run != run or record.finish.point.conductor != node:
                        raise VerificationFailed("feed file refused", why="it is of another run or conductor")
                    feeds.append(FeedPiece(place, node, record))
            except VerificationFailed as bad:
                why[place] = str(bad)
        return stages, feeds

    def _objection_to(self, run: RunId, header: StageHeader) -> str:
        if header.run != run:
            return "a stage of another run"
        if len(header.cuts) != self._stages - 1 or header.stage >= self._stages:
            return f"stage {header.stage} of {len(header.cuts) + 1}, but the job has {self._stages}"
        if not 1 <= header.step <= self._spec.training.local_steps:
            return f"a stage of step {header.step}, but the job has {self._spec.training.local_steps}"
        return ""

    async def _is_sound(self, choice: Choice, revealed: Revealed, why: list[str]) -> bool:
        """Whether every chosen file holds what it says; `why` gets what is wrong."""
        for piece in choice.stages:
            try:
                file = StageFile.decode(revealed.pieces[piece.place])
                seen = await self._parts.trainer.inspect_stage(
                    self._context.model, file.header.cuts, file.snapshot
                )
                if seen != (piece.header.stage, piece.header.step):
                    why[piece.place] = f"holds stage {seen[0]} of step {seen[1]}, not what it says"
            except (VerificationFailed, UsageError) as bad:  # UsageError: cuts that this model does not have
                why[piece.place] = str(bad)
        return not any(why[piece.place] for piece in choice.stages)

    def _no_model(self, run: RunId, standing: list[StagePiece], why: list[str]) -> UpdateRefused:
        gone = missing(self._stages, standing)
        refused = "; ".join(said for said in why if said)[:300]
        what = f"stage {', '.join(map(str, gone))}" if gone else "a complete set of stages of one attempt"
        return UpdateRefused(
            f"job {run.job} round {run.round} has no model: {what} is missing",
            why=refused or "not every stage was revealed",
            help_command=f"dfl-node job watch {run.job}",
        )
