"""What an evaluator does for a round it has a seat for.

It makes the model again, measures each piece, and is bound to what it found before anybody shows theirs.

The vector that comes of it is the same on every honest node: the pieces are named by CIDs on chain, the
validation rows by the spec, and the arithmetic is fixed. What cannot be had, though other evaluators were asked
for it too, is refused; so is what is no valid piece.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import structlog
import trio

from dfl_ledger import vectors
from dfl_ledger.errors import ChainUnreachable, PeerUnreachable, UsageError
from dfl_ledger.records import REFUSED, Address, Cid, JobId, PanelPhase, PanelState
from dfl_node.jobspec import JobSpec
from dfl_node.journal import Scores
from dfl_node.modes import pieces
from dfl_node.modes.mode import ModePart
from dfl_node.modes.pieces import Revealed
from dfl_node.parts import Parts
from dfl_node.rounds.vocabulary import Seat

log = structlog.get_logger(__name__)

PATIENCE_SHARE = 0.4  # of the window of commitments, for pieces that do not come
PASSED, FAILED, UNKNOWN = 1, -1, 0  # verdicts
MAX_SCORE = 2**63 - 1


class Judge:
    """This node as an evaluator of one job's rounds."""

    def __init__(
        self, job: JobId, spec: JobSpec, parts: Parts, mode: ModePart, clock: Callable[[], float]
    ) -> None:
        self._job = job
        self._spec = spec
        self._parts = parts
        self._mode = mode
        self._clock = clock

    # -- what is due ----------------------------------------------------------------------------------
    def seats(self) -> tuple[Seat, ...]:
        """Ours, of rounds that are being judged, oldest first. Blocks."""
        if not self._spec.reward.evaluators or not self._parts.evaluates:
            return ()
        me, found = self._parts.ledger.address, list[Seat]()
        for round_ in self._parts.rows.unsettled_rounds(self._job):
            panel = self._parts.ledger.panel(self._job, round_)
            if panel is None or panel.phase in (PanelPhase.NONE, PanelPhase.DONE):
                continue
            number = self._number(round_, me)
            if number is None:
                continue
            found.append(
                Seat(
                    round=round_,
                    judging=panel.phase is PanelPhase.COMMIT,
                    showing=panel.phase is PanelPhase.REVEAL,
                    committed=bool(panel.committed >> number & 1),
                    revealed=bool(panel.revealed >> number & 1),
                    judge_from=panel.commit_until - self._spec.reward.score_s,
                    judge_until=panel.commit_until,
                    show_until=panel.reveal_until,
                )
            )
        return tuple(found)

    def _number(self, round_: int, me: Address) -> int | None:
        seats = self._parts.ledger.seats(self._job, round_)
        return next((number for number, seat in enumerate(seats) if seat.evaluator == me), None)

    # -- judging --------------------------------------------------------------------------------------
    async def judge(self, round_: int) -> None:
        """Measure the round's pieces, and bind ourselves to the scores: journal first, then chain.

        Raises DflError when something is missing; then it is tried again while there is time.
        """
        in_thread, ledger, me = trio.to_thread.run_sync, self._parts.ledger, self._parts.ledger.address
        bound = await in_thread(self._parts.journal.scores, self._job, round_)
        panel = await in_thread(self._drawn, round_)
        if bound is None:
            made = await self._scores(round_, panel)
            bound = await in_thread(self._parts.journal.bind_scores, self._job, round_, 0, made)
        number = await in_thread(self._number, round_, me)
        if number is None:
            raise UsageError(f"no seat in job {self._job} round {round_}", why="the chain was reorganised")
        sealed = vectors.commitment(self._job, round_, 0, me, bound.vector, bound.salt)
        await in_thread(ledger.commit_scores, self._job, round_, 0, number, sealed)
        log.info("judged", job=self._job, round=round_, seat=number, method=bound.method)

    async def show(self, round_: int) -> None:
        """Show the scores that we are bound to."""
        in_thread, me = trio.to_thread.run_sync, self._parts.ledger.address
        bound = await in_thread(self._parts.journal.scores, self._job, round_)
        number = await in_thread(self._number, round_, me)
        if bound is None or number is None:
            raise UsageError(f"nothing to show in job {self._job} round {round_}", why="the journal is new")
        show = partial(self._parts.ledger.reveal_scores, self._job, round_, 0, number)
        await in_thread(show, bound.vector, bound.salt)
        log.info("scores shown", job=self._job, round=round_, seat=number)

    def _drawn(self, round_: int) -> PanelState:
        """The panel, drawn by us if nobody has: how many subjects it has is fixed by that."""
        ledger = self._parts.ledger
        panel = ledger.panel(self._job, round_)
        if panel is not None and not any(panel.seed):
            ledger.draw(self._job, round_)
            panel = ledger.panel(self._job, round_)
        if panel is None or not any(panel.seed):
            raise ChainUnreachable(f"the panel of job {self._job} round {round_} is not drawn yet")
        return panel

    async def _scores(self, round_: int, panel: PanelState) -> Scores:
        in_thread = trio.to_thread.run_sync
        parent, model = await in_thread(self._parts.rows.models, self._job, round_)
        revealed = await self._fetched(round_, panel)
        ours, verdicts = await self._mode.combine(round_, parent, revealed)
        judged = Revealed(
            revealed.rows,
            revealed.pieces,
            tuple("" if verdict.accepted else verdict.why or "refused" for verdict in verdicts),
            revealed.all_here,
        )
        worths, method = await self._mode.worth(round_, parent, judged)
        scores = [
            REFUSED if why else max(REFUSED + 1, min(worth, MAX_SCORE))
            for why, worth in zip(judged.refused, worths, strict=True)
        ]
        datasets = [UNKNOWN] * panel.datasets
        audits = [UNKNOWN] * panel.audits
        whys = {index: why for index, why in enumerate(judged.refused) if why}
        vector = vectors.encode([*scores, *datasets, *audits, self._verdict(ours, model, revealed)])
        return Scores(vector, os.urandom(32), method, whys)

    async def _fetched(self, round_: int, panel: PanelState) -> Revealed:
        """Every piece that can be had. Who else judges is asked too, so that what one has, all have."""
        in_thread = trio.to_thread.run_sync
        rows = await in_thread(self._parts.rows.revealed, self._job, round_)
        if len(rows) != panel.contributions:
            raise ChainUnreachable(f"the ledger lacks pieces of job {self._job} round {round_}")
        seats = await in_thread(self._parts.ledger.seats, self._job, round_)
        fetched = await pieces.fetch(
            self._parts,
            rows,
            objection=partial(self._mode.objection, round_),
            max_bytes=self._mode.max_piece_bytes,
            patience_s=PATIENCE_SHARE * self._spec.reward.score_s,
            also=[seat.evaluator for seat in seats],
        )
        if not fetched.all_here and not self._parts.channel.peers():
            raise PeerUnreachable(
                f"the pieces of job {self._job} round {round_} are out of reach", why="no peer is connected"
            )
        return fetched

    @staticmethod
    def _verdict(ours: Cid, published: Cid, revealed: Revealed) -> int:
        """Of the model. Who lacks a piece cannot tell, nor can its publisher be blamed for having lacked one."""
        if ours == published:
            return PASSED
        return FAILED if revealed.all_here else UNKNOWN
