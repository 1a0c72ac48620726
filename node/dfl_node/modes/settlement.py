"""From a round's revealed updates to its model, and from its model to what everyone earned.

Both are recomputable: the updates are named by CIDs on chain, their order is that of the reveals, and the
arithmetic is fixed, so that any node that fetches the same files derives the same model and the same leaves.
"""

from __future__ import annotations

from functools import partial

import structlog
import trio

from dfl_ledger import evidence
from dfl_ledger.errors import PeerUnreachable, TimedOut, VerificationFailed
from dfl_ledger.evidence import Evidence, EvidenceEntry
from dfl_ledger.records import Address, Cid, JobId, JobState, Leaf
from dfl_node.jobspec import JobSpec
from dfl_node.modes import pieces
from dfl_node.modes.mode import ModePart
from dfl_node.modes.pieces import Revealed
from dfl_node.parts import Parts
from dfl_node.rounds.vocabulary import Unsettled
from dfl_node.train.trainer import Verdict

log = structlog.get_logger(__name__)

FETCH_S = 20.0
MAX_AGGREGATORS = 4  # slots of the aggregate window, as the contract cuts it
ROWS_S, ROWS_LOOK_S = 10.0, 0.02


class Settler:
    """Aggregates and settles the rounds of one job."""

    def __init__(self, job: JobId, spec: JobSpec, parts: Parts, mode: ModePart) -> None:
        self._job = job
        self._spec = spec
        self._parts = parts
        self._mode = mode
        self._publications: dict[int, tuple[Address, int]] = {}
        self._disputed: set[int] = set()  # rounds whose published model is not what its pieces give

    # -- what is due ----------------------------------------------------------------------------------
    def unsettled(self, job: JobState) -> tuple[Unsettled, ...]:
        """Published rounds without a settlement whose window is still open, oldest first. Blocks."""
        window_s, me = job.terms.settle_window_s, self._parts.ledger.address
        due: list[Unsettled] = []
        waiting = self._parts.rows.unsettled_rounds(self._job)
        now = self._parts.ledger.now() if waiting else 0
        for round_ in waiting:
            if round_ not in self._publications:
                found = self._parts.ledger.publication(self._job, round_)
                if found is None:
                    continue
                self._publications[round_] = found
            publisher, at = self._publications[round_]
            until = at + window_s - 1
            if now > until:
                continue
            # The publisher has the first half of the window to itself, then whoever revealed in the round.
            if round_ in self._disputed:
                since = until + 1
            elif publisher == me:
                since = at
            elif self._parts.rows.contributions(node=me, job=self._job, round_=round_):
                since = at + window_s // 2
            else:
                since = until + 1
            due.append(Unsettled(round_, since, until))
        return tuple(due)

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
        """Score the round, publish the evidence, and put the root of its leaves on chain.

        Raises VerificationFailed when the published model is not what its pieces give: such a round is not
        ours to vouch for.
        """
        found = await self.evidence(round_)
        cid = await self._parts.store.put(found.encode())
        await self._share(found, cid)
        await trio.to_thread.run_sync(self._parts.ledger.settle, found.settlement(cid))
        await trio.to_thread.run_sync(self._parts.index.add_evidence, found, cid)
        paid = sum(leaf.reward_wei for leaf in found.leaves)
        log.info("settled", job=self._job, round=round_, evidence=str(cid), paid_wei=str(paid))

    async def _share(self, found: Evidence, cid: Cid) -> None:
        """Nobody could claim, nor settle a later round, if the evidence died with us."""
        others = {entry.node for entry in found.entries} - {self._parts.ledger.address}
        async with trio.open_nursery() as nursery:
            kept = await self._parts.holders.ask(nursery, self._job, [cid], others)
            nursery.cancel_scope.cancel()
        if others and not kept:
            log.warning("nobody else holds the evidence yet", job=self._job, round=found.round)

    async def evidence(self, round_: int) -> Evidence:
        """Recompute everything a settlement of this round must say."""
        parent_cid, model_cid = await trio.to_thread.run_sync(self._parts.rows.models, self._job, round_)
        revealed = await self._revealed(round_)
        journal = self._parts.journal
        verdicts = await trio.to_thread.run_sync(journal.verdicts, self._job, round_, model_cid)
        if verdicts is None:
            ours, verdicts = await self._combine(round_, revealed, parent_cid)
            if ours != model_cid:
                if revealed.all_here:  # nothing will change our mind
                    self._disputed.add(round_)
                raise VerificationFailed(
                    f"the model of job {self._job} round {round_} is not what its pieces give",
                    why=f"published {model_cid}, recomputed {ours}",
                )
        revealed = revealed.accepted(verdicts)
        scores, method = await self._mode.worth(round_, parent_cid, revealed)
        entries = tuple(
            EvidenceEntry(
                node=Address(row.node),
                index=place,
                cid=Cid.parse(row.cid),
                samples=row.samples,
                accepted=verdict.accepted,
                why=verdict.why,
                score=score if verdict.accepted else 0,
            )
            for place, (row, verdict, score) in enumerate(zip(revealed.rows, verdicts, scores, strict=True))
        )
        budget_wei = self._spec.reward.round_budget_wei
        return Evidence(
            job=self._job,
            round=round_,
            parent=parent_cid,
            model=model_cid,
            validation=self._spec.validation,
            method=method,
            round_budget_wei=budget_wei,
            entries=entries,
            leaves=evidence.split(budget_wei, entries, await self._previous_leaves(round_)),
        )

    async def _previous_leaves(self, round_: int) -> tuple[Leaf, ...]:
        """The leaves of the last round settled before this one: cumulative rewards go on from there.

        Raises TimedOut when the ledger's rows lack that settlement: its leaves must not get lost.
        """
        last = await trio.to_thread.run_sync(self._parts.rows.settled_before, self._job, round_)
        state = await trio.to_thread.run_sync(self._parts.ledger.job, self._job)
        if state is None or state.spent_wei != (last.total_wei if last else 0):
            raise TimedOut(f"the ledger lacks a settlement of job {self._job}", why="the index lags")
        if last is None:
            return ()
        data = await self._parts.store.get(last.evidence, max_bytes=evidence.MAX_EVIDENCE_BYTES)
        found = Evidence.decode(data)
        found.check(last)
        return found.leaves
