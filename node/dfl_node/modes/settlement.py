"""From a round's revealed updates to its model, and from its evaluators' scores to what everyone earned.

Both are recomputable: the updates are named by CIDs on chain, their order is that of the reveals, and the
arithmetic is fixed, so that any node that fetches the same files derives the same model. What everyone earned
follows from the chain alone: who settles has nothing to decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import structlog
import trio

from dfl_ledger.errors import DflError, PeerUnreachable, TimedOut
from dfl_ledger.evidence import Evidence
from dfl_ledger.facts import RoundFacts
from dfl_ledger.records import Address, Cid, JobId, JobState, Leaf
from dfl_node.jobspec import JobSpec
from dfl_node.journal import Scores
from dfl_node.modes import pieces
from dfl_node.modes.mode import ModePart
from dfl_node.modes.pieces import Revealed
from dfl_node.parts import Parts
from dfl_node.rounds.vocabulary import Unsettled
from dfl_node.train.trainer import Verdict

log = structlog.get_logger(__name__)

FETCH_S = 20.0
REFUSED_BY_PANEL = "refused by those who judged the round"
MAX_AGGREGATORS = 4  # slots of the aggregate window, as the contract cuts it
ROWS_S, ROWS_LOOK_S = 10.0, 0.02


@dataclass(frozen=True, slots=True)
class _Fallen:
    """The last settlement of a job that was overturned."""

    at: int  # Unix seconds
    round: int
    challenger: Address
    settlers: frozenset[Address]  # of this one and those that were overturned before


class Settler:
    """Aggregates and settles the rounds of one job."""

    def __init__(self, job: JobId, spec: JobSpec, parts: Parts, mode: ModePart) -> None:
        self._job = job
        self._spec = spec
        self._parts = parts
        self._mode = mode
        self._published: dict[int, int] = {}  # round -> when, Unix seconds
        self._times: dict[int, int] = {}  # of blocks
        self._unseated: dict[int, bool] = {}  # by round

    # -- what is due ----------------------------------------------------------------------------------
    def unsettled(self, job: JobState) -> tuple[Unsettled, ...]:
        """Published rounds without a settlement whose window is still open, oldest first. Blocks.

        Who published a round settles it as soon as it is judged; who contributed, or judged it, steps in from
        the middle of the window on. What fell with a wrong settlement is first of all its challenger's.
        """
        ledger, rows, me = self._parts.ledger, self._parts.rows, self._parts.ledger.address
        terms, due = job.terms, list[Unsettled]()
        waiting = rows.unsettled_rounds(self._job)
        if not waiting:
            return ()
        now, fallen = ledger.now(), self._fallen()
        for round_ in waiting:
            if round_ not in self._published:
                found = ledger.publication(self._job, round_)
                if found is None:
                    continue
                self._published[round_] = found.published_at
            published_at = self._published[round_]
            judged_by = published_at + (2 * terms.score_window_s if terms.evaluators else 0)
            opened_at, until = judged_by, published_at + 2 * terms.score_window_s + terms.settle_window_s
            if fallen is not None:
                opened_at = max(opened_at, fallen.at)
                until = max(until, fallen.at + terms.settle_window_s)
            if now >= until:
                continue
            judged = not terms.evaluators or ledger.scored(self._job, round_) or self._is_unseated(round_)
            if self._is_first(round_, me, fallen):
                since = now if judged else judged_by
            elif self._takes_part(round_, me):
                since = opened_at + terms.settle_window_s // 2
            else:
                since = until
            early = published_at + terms.score_window_s
            judged_at = 0 if judged else early if now < early else judged_by
            due.append(Unsettled(round_, since, until - 1, judged_at))
        return tuple(due)

    def _is_unseated(self, round_: int) -> bool:
        """True if there was nobody to draw when the round's pieces were fixed. Blocks."""
        if round_ not in self._unseated:
            ledger = self._parts.ledger
            found = ledger.publication(self._job, round_)
            self._unseated[round_] = found is not None and ledger.evaluator_weight_at(found.seal_block) == 0
        return self._unseated[round_]

    def _fallen(self) -> _Fallen | None:
        """The last settlement of the job that was overturned."""
        found = [row for row in self._parts.rows.overturned(self._job) if row.why is not None]
        if not found:
            return None
        last = found[-1]
        if last.block not in self._times:
            self._times[last.block] = self._parts.ledger.block(last.block).timestamp
        settlers = frozenset(row.settler for row in found)
        return _Fallen(self._times[last.block], last.round, last.challenger, settlers)

    def _is_first(self, round_: int, me: Address, fallen: _Fallen | None) -> bool:
        """Whether the round is ours before anybody else's."""
        if fallen is not None and round_ == fallen.round:
            return me == fallen.challenger
        publisher = self._parts.rows.publisher(self._job, round_)
        if fallen is not None and publisher in fallen.settlers:
            return me == fallen.challenger
        return me == publisher

    def _takes_part(self, round_: int, me: Address) -> bool:
        rows = self._parts.rows
        if rows.contributions(node=me, job=self._job, round_=round_):
            return True
        panel = rows.panel(self._job, round_)
        return panel is not None and me in {seat.evaluator for seat in panel.seats}

    # -- the model ------------------------------------------------------------------------------------
    async def aggregate(self, round_: int, parent: Cid, reveals: int) -> Cid:
        """Make the round's model of all `reveals` pieces and store it.

        Raises DflError when the parent cannot be had, TimedOut when the ledger's rows stay behind the chain,
        PeerUnreachable when it is this node that is cut off.
        """
        await self._rows_complete(round_, reveals)
        # One who takes the bytes of a piece with it must not cost us our slot.
        slot_s = self._spec.round.aggregate_s / MAX_AGGREGATORS
        revealed = await self._revealed(round_, min(FETCH_S, slot_s / 2))
        if not revealed.all_here and not self._parts.channel.peers():  # else ours alone would take all
            raise PeerUnreachable(
                f"the pieces of job {self._job} round {round_} are out of reach",
                why="no peer is connected: the next in line may have more of them",
            )
        return (await self._combine(round_, revealed, parent))[0]

    async def _combine(self, round_: int, revealed: Revealed, parent: Cid) -> tuple[Cid, tuple[Verdict, ...]]:
        model, verdicts = await self._mode.combine(round_, parent, revealed)
        for row, verdict in zip(revealed.rows, verdicts, strict=True):
            if not verdict.accepted:
                log.warning(
                    "piece refused", job=self._job, contribution=row.id, node=row.node, why=verdict.why
                )
        # Whoever settles must judge as the aggregator did, even if it is killed in between.
        await trio.to_thread.run_sync(self._parts.journal.aggregated, self._job, round_, model, verdicts)
        return model, verdicts

    async def _rows_complete(self, round_: int, reveals: int) -> None:
        for _ in range(int(ROWS_S / ROWS_LOOK_S)):
            if len(await trio.to_thread.run_sync(self._parts.rows.revealed, self._job, round_)) >= reveals:
                return
            await trio.sleep(ROWS_LOOK_S)
        raise TimedOut(f"the ledger lacks updates of job {self._job} round {round_}", why="the index lags")

    async def _revealed(self, round_: int, patience_s: float = FETCH_S) -> Revealed:
        in_thread = trio.to_thread.run_sync
        rows = await in_thread(self._parts.rows.revealed, self._job, round_)
        return await pieces.fetch(
            self._parts,
            rows,
            objection=partial(self._mode.objection, round_),
            max_bytes=self._mode.max_piece_bytes,
            patience_s=patience_s,
        )

    # -- the money ------------------------------------------------------------------------------------
    async def settle(self, round_: int) -> None:
        """Publish what follows from the round's scores, and put the roots of it on chain."""
        await trio.to_thread.run_sync(self._end_judging, round_)
        await self._panel_complete(round_)
        found = await self.evidence(round_)
        cid = await self._parts.store.put(found.encode())
        await self._share(found, cid)
        await trio.to_thread.run_sync(self._parts.ledger.settle, found.settlement(cid))
        await trio.to_thread.run_sync(self._parts.index.add_evidence, found, cid)
        paid = sum(leaf.reward_wei for leaf in found.leaves)
        log.info("settled", job=self._job, round=round_, evidence=str(cid), paid_wei=str(paid))

    def _end_judging(self, round_: int) -> None:
        """A panel without seats is done as soon as it is drawn. Raises TimedOut while others still judge."""
        ledger = self._parts.ledger
        if self._spec.reward.evaluators and not ledger.scored(self._job, round_):
            if self._is_unseated(round_):
                ledger.draw(self._job, round_)
            if not ledger.scored(self._job, round_):
                raise TimedOut(
                    f"job {self._job} round {round_} is not judged yet", why="its panel is not done"
                )

    async def _panel_complete(self, round_: int) -> None:
        """Until the ledger's rows have every vector that the chain has: one less gives other medians."""
        in_thread, ledger, rows = trio.to_thread.run_sync, self._parts.ledger, self._parts.rows
        if not self._spec.reward.evaluators:
            return
        state = await in_thread(ledger.panel, self._job, round_)
        for _ in range(int(ROWS_S / ROWS_LOOK_S)):
            panel = await in_thread(rows.panel, self._job, round_)
            seats = panel.seats if panel is not None else ()
            bound = sum(seat.committed_tx is not None for seat in seats)
            shown = sum(seat.revealed_tx is not None for seat in seats)
            drawn = panel is not None or not any(state.seed)
            if drawn and (bound, shown) == (state.committed, state.revealed):
                return
            await trio.sleep(ROWS_LOOK_S)
        raise TimedOut(f"the ledger lacks scores of job {self._job} round {round_}", why="the index lags")

    async def _share(self, found: Evidence, cid: Cid) -> None:
        """Others need not work it out, and have the reasons of refusals, which are nowhere else."""
        others = {entry.node for entry in found.entries} - {self._parts.ledger.address}
        async with trio.open_nursery() as nursery:
            kept = await self._parts.holders.ask(nursery, self._job, [cid], others)
            nursery.cancel_scope.cancel()
        if others and not kept:
            log.warning("nobody else holds the evidence yet", job=self._job, round=found.round)

    async def evidence(self, round_: int) -> Evidence:
        """What a settlement of this round must say. Raises TimedOut while the ledger's rows are behind."""
        return await trio.to_thread.run_sync(self._evidence, round_)

    def _evidence(self, round_: int) -> Evidence:
        rows, journal = self._parts.rows, self._parts.journal
        own = journal.scores(self._job, round_)
        try:
            facts = rows.round_facts(self._job, round_)
        except DflError as behind:
            raise TimedOut(f"the ledger lacks job {self._job} round {round_}", why=str(behind)) from behind
        return Evidence.of(
            facts,
            self._previous_leaves(round_),
            validation=self._spec.validation,
            method=own.method if own is not None else self._spec.reward.valuation,
            whys=self._whys(facts, own),
        )

    def _whys(self, facts: RoundFacts, own: Scores | None) -> dict[int, str]:
        """Why each piece was refused: as we judged it, else as we aggregated it, else that it was."""
        whys = dict.fromkeys(range(len(facts.contributions)), REFUSED_BY_PANEL)
        verdicts = self._parts.journal.verdicts(self._job, facts.round, facts.model) or ()
        whys.update({index: verdict.why for index, verdict in enumerate(verdicts) if verdict.why})
        whys.update(own.whys if own is not None else {})
        return whys

    def _previous_leaves(self, round_: int) -> tuple[Leaf, ...]:
        """The lines of the last round settled before this one: cumulative rewards go on from there.

        Raises TimedOut when the ledger's rows lack that settlement: its lines must not get lost.
        """
        rows = self._parts.rows
        last = rows.settled_before(self._job, round_)
        state = self._parts.ledger.job(self._job)
        if state is None or state.spent_wei != (last.total_wei if last else 0):
            raise TimedOut(f"the ledger lacks a settlement of job {self._job}", why="the index lags")
        return rows.lines_before(self._job, round_)
