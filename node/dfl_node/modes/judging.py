"""What an evaluator does for a round it has a seat for.

It makes the model again, measures each piece, and is bound to what it found before anybody shows theirs.

The vector that comes of it is the same on every honest node: the pieces are named by CIDs on chain, the
validation rows by the spec, and the arithmetic is fixed. What cannot be had, though other evaluators were
asked for it too, is refused; so is what is no valid piece.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import structlog
import trio

from dfl_ledger import vectors
from dfl_ledger.errors import (
    BlobNotFound,
    ChainUnreachable,
    DflError,
    PeerUnreachable,
    Reverted,
    UpdateRefused,
    UsageError,
)
from dfl_ledger.records import REFUSED, Address, Cid, JobId, Mode, PanelPhase, PanelState
from dfl_node.jobspec import JobSpec
from dfl_node.journal import Scores
from dfl_node.modes import pieces, sealed
from dfl_node.modes.auditing import FAILED, PASSED, UNKNOWN, Auditor
from dfl_node.modes.mode import ModePart, Uses, Worths
from dfl_node.modes.pieces import Revealed
from dfl_node.parts import Parts
from dfl_node.rounds.machine import RETRY_S
from dfl_node.rounds.vocabulary import Seat
from dfl_node.train.trainer import Verdict

log = structlog.get_logger(__name__)

# Shares of the window of commitments.
PATIENCE_SHARE = 0.6  # for pieces that do not come: from then on who judges does without them
SEALED_SHARE = 0.5  # for rows to be unsealed: a little longer than a key may take that counts
LAST_SHARE = 0.85  # from then on who could not measure anything says so: silence costs the bond
FETCH_S = 20.0
MAX_VARIANTS = 8  # of the round's pieces that a model is tried on
MAX_SCORE = 2**63 - 1
UNMEASURED = "none"  # the method where nothing was measured


class Judge:
    """This node as an evaluator of one job's rounds."""

    def __init__(
        self,
        job: JobId,
        spec: JobSpec,
        parts: Parts,
        mode: ModePart,
        clock: Callable[[], float],
        auditor: Auditor | None = None,  # None: audits nothing
    ) -> None:
        self._job = job
        self._spec = spec
        self._parts = parts
        self._mode = mode
        self._clock = clock
        self._auditor = auditor

    # -- what is due ----------------------------------------------------------------------------------
    def seats(self) -> tuple[Seat, ...]:
        """Ours, of rounds that are being judged, oldest first. Blocks.

        A seat binds whoever has it, even if the node has given the role up since the draw; but not one that
        its limits let it leave empty.
        """
        if not self._spec.reward.evaluators:
            return ()
        me, found = self._parts.ledger.address, list[Seat]()
        for round_ in self._parts.rows.unsettled_rounds(self._job):
            found += self._seat_in(round_, 0, me)
        for row in self._parts.rows.audits(self._job) if self._spec.reward.audits else ():
            if row.appealed and row.upheld is None:
                found += self._seat_in(row.round, row.audit + 1, me)
        return tuple(sorted(found, key=lambda seat: seat.judge_until))

    def _seat_in(self, round_: int, number: int, me: Address) -> list[Seat]:
        """Ours on a panel that is at work, if we have one."""
        ledger = self._parts.ledger
        panel = ledger.panel(self._job, round_, number)
        if panel.phase in (PanelPhase.NONE, PanelPhase.DONE):
            return []
        place = self._number(round_, me, number)
        if place is None:
            return []
        seat = ledger.seat(self._job, round_, number, place)  # None before the draw
        committed = seat is not None and any(seat.root)
        if not committed and number == 0 and self._may_decline(round_, me):
            return []
        shown = ledger.seat_of(self._job, round_, number, me) if committed else None
        return [
            Seat(
                round=round_,
                judging=panel.phase is PanelPhase.COMMIT,
                showing=panel.phase is PanelPhase.REVEAL,
                committed=committed,
                revealed=shown is not None and shown[1],
                judge_from=panel.commit_until - self._spec.reward.score_s,
                judge_until=panel.commit_until,
                show_until=panel.reveal_until,
                panel=number,
                sealed_until=0.0 if committed or number else self._sealed_until(round_, panel),
            )
        ]

    def _number(self, round_: int, me: Address, panel: int = 0) -> int | None:
        seats = self._parts.ledger.seats(self._job, round_, panel)
        return next((number for number, seat in enumerate(seats) if seat.evaluator == me), None)

    def _may_decline(self, round_: int, me: Address) -> bool:
        """Whether a seat of ours gives too little time or puts too much at stake. A draw that was put off
        only makes more of them so."""
        ledger, reward = self._parts.ledger, self._spec.reward
        found = ledger.publication(self._job, round_)
        return found is not None and ledger.may_decline(me, found.seal_block, reward.score_s, reward.bond_wei)

    def _sealed_until(self, round_: int, panel: PanelState) -> float:
        """Until when the round's validation rows may be unsealed (Unix seconds); 0 if that is known."""
        sealed_ = self._spec.reward.sealed and sealed.may_open(self._parts.rows, self._job, round_)
        return self._share_of(panel, SEALED_SHARE) if sealed_ else 0.0

    # -- judging --------------------------------------------------------------------------------------
    async def judge(self, round_: int, panel: int = 0) -> None:
        """Measure the round's pieces (or audit one again, on appeal), and bind ourselves to the scores:
        journal first, then chain.

        Raises DflError when something is missing; then it is tried again while there is time.
        """
        in_thread, ledger, me = trio.to_thread.run_sync, self._parts.ledger, self._parts.ledger.address
        bound = await in_thread(self._parts.journal.scores, self._job, round_, panel)
        state = await in_thread(self._drawn, round_, panel)
        if bound is None:
            made = await (self._retried(round_, panel, state) if panel else self._scores(round_, state))
            bound = await in_thread(self._parts.journal.bind_scores, self._job, round_, panel, made)
        number = await in_thread(self._seat, round_, me, panel)
        commitment = vectors.commitment(self._job, round_, panel, me, bound.vector, bound.salt)
        await in_thread(ledger.commit_scores, self._job, round_, panel, number, commitment)
        log.info("judged", job=self._job, round=round_, panel=panel, seat=number, method=bound.method)

    async def show(self, round_: int, panel: int = 0) -> None:
        """Show the scores that we are bound to."""
        in_thread, me = trio.to_thread.run_sync, self._parts.ledger.address
        bound = await in_thread(self._parts.journal.scores, self._job, round_, panel)
        if bound is None:
            raise UsageError(f"nothing to show in job {self._job} round {round_}", why="the journal is new")
        number = await in_thread(self._seat, round_, me, panel)
        show = partial(self._parts.ledger.reveal_scores, self._job, round_, panel, number)
        await in_thread(show, bound.vector, bound.salt)
        log.info("scores shown", job=self._job, round=round_, panel=panel, seat=number)

    def _seat(self, round_: int, me: Address, panel: int) -> int:
        number = self._number(round_, me, panel)
        if number is None:
            raise UsageError(f"no seat in job {self._job} round {round_}", why="the chain was reorganised")
        return number

    def _drawn(self, round_: int, panel: int) -> PanelState:
        """The panel, drawn by us if nobody has: how many subjects it has is fixed by that."""
        ledger = self._parts.ledger
        state = ledger.panel(self._job, round_, panel)
        if not any(state.seed):
            try:
                ledger.draw(self._job, round_, panel)
            except Reverted as no:
                if no.error != "AlreadyDrawn":
                    raise
            state = ledger.panel(self._job, round_, panel)
        if not any(state.seed):
            raise ChainUnreachable(f"the panel of job {self._job} round {round_} is not drawn yet")
        return state

    # -- the vector -----------------------------------------------------------------------------------
    async def _scores(self, round_: int, panel: PanelState) -> Scores:
        """What we say of every subject; that we cannot tell, when it is late and nothing else to be had."""
        left_s, why = self._share_of(panel, LAST_SHARE) - self._clock(), "it took too long"
        with trio.move_on_after(max(0.0, left_s)):
            try:
                return await self._measured(round_, panel)
            except DflError as missing:
                if self._clock() < self._share_of(panel, LAST_SHARE) - RETRY_S:
                    raise
                why = str(missing)
        log.warning("a round could not be judged", job=self._job, round=round_, why=why)
        return Scores(vectors.encode([UNKNOWN] * panel.subjects), os.urandom(32), UNMEASURED, {})

    async def _retried(self, round_: int, panel: int, state: PanelState) -> Scores:
        """The verdict of an appeal's jury on the audit that failed."""
        verdicts: tuple[int, ...] = (UNKNOWN,)
        if self._auditor is not None:
            verdicts = await self._auditor.verdicts(round_, state, {}, panel=panel, audit=panel - 1)
        return Scores(vectors.encode(verdicts), os.urandom(32), "audit", {})

    async def _audits(self, round_: int, panel: PanelState, fetched: Revealed) -> tuple[int, ...]:
        if self._auditor is None:
            return (UNKNOWN,) * panel.audits
        here = {place: piece for place, piece in enumerate(fetched.pieces) if piece}
        return await self._auditor.verdicts(round_, panel, here)

    async def _measured(self, round_: int, panel: PanelState) -> Scores:
        parent, model = await trio.to_thread.run_sync(self._parts.rows.models, self._job, round_)
        fetched = await self._fetched(round_, panel)
        try:
            ours, verdicts = await self._mode.combine(round_, parent, fetched)
        except UpdateRefused:  # they give no model: what is refused stays so, and the rest is worth nothing
            ours, verdicts = None, tuple(Verdict(not why, why) for why in fetched.refused)
        late = self._clock() >= self._share_of(panel, PATIENCE_SHARE)
        if ours != model and not fetched.all_here and not late:  # its publisher had more of them
            raise BlobNotFound(f"pieces of job {self._job} round {round_}", why="others may still bring them")
        refused = ["" if verdict.accepted else verdict.why or "refused" for verdict in verdicts]
        judged = replace(fetched, refused=tuple(refused))
        datasets, uses = await self._declared(round_, panel)
        found = Worths((0,) * len(refused), UNMEASURED)
        if ours is not None and await self._has_rows(round_, late=late):
            with suppress(*sealed.unsound(self._spec)):
                found = await self._mode.worth(round_, parent, judged, uses)
        scores = [REFUSED if why else _score(worth) for why, worth in zip(refused, found.pieces, strict=True)]
        taught = [_score(found.datasets.get(asset, 0)) for asset in datasets]
        verdict = PASSED if ours == model else await self._blame(round_, parent, model, judged)
        audits = await self._audits(round_, panel, fetched)
        vector = [*scores, *taught, *audits, verdict]
        whys = {index: why for index, why in enumerate(refused) if why}
        return Scores(vectors.encode(vector), os.urandom(32), found.method, whys)

    async def _declared(self, round_: int, panel: PanelState) -> tuple[tuple[int, ...], Uses]:
        """The data sets that the panel has to measure, by place, and who used which."""
        if not panel.datasets:
            return (), {}
        uses = await trio.to_thread.run_sync(self._parts.rows.uses, self._job, round_)
        known = await trio.to_thread.run_sync(self._parts.rows.datasets, self._job)
        if uses is None or len(known) < panel.datasets:
            raise ChainUnreachable(f"the ledger lacks data sets of job {self._job} round {round_}")
        return known[: panel.datasets], uses

    async def _has_rows(self, round_: int, *, late: bool) -> bool:
        """Whether there is something to measure the round on: not if its shard was not unsealed in time.

        Raises BlobNotFound while that can only be said of our own store.
        """
        try:
            return await sealed.has_rows(self._parts.store, self._parts.rows, self._job, self._spec, round_)
        except BlobNotFound:
            if not late:
                raise
            return False

    async def _fetched(self, round_: int, panel: PanelState) -> Revealed:
        """Every piece that can be had. Who else judges is asked too, so that what one has, all have."""
        in_thread = trio.to_thread.run_sync
        rows = await in_thread(self._parts.rows.revealed, self._job, round_)
        if len(rows) != panel.contributions:
            raise ChainUnreachable(f"the ledger lacks pieces of job {self._job} round {round_}")
        seats = await in_thread(self._parts.ledger.seats, self._job, round_)
        left_s = self._share_of(panel, PATIENCE_SHARE) - self._clock()
        fetched = await pieces.fetch(
            self._parts,
            rows,
            objection=partial(self._mode.objection, round_),
            max_bytes=self._mode.max_piece_bytes,
            patience_s=max(1.0, min(FETCH_S, left_s)),
            also=[seat.evaluator for seat in seats],
        )
        if not fetched.all_here and not self._parts.channel.peers():
            raise PeerUnreachable(
                f"the pieces of job {self._job} round {round_} are out of reach", why="no peer is connected"
            )
        return fetched

    async def _blame(self, round_: int, parent: Cid, model: Cid, judged: Revealed) -> int:
        """The verdict on a model that is not what all the pieces give.

        Who lacks a piece cannot tell; nor is its publisher to blame for having lacked one.
        """
        if not judged.all_here:
            return UNKNOWN
        standing = [place for place, why in enumerate(judged.refused) if not why]
        if self._spec.mode not in (Mode.SYNC, Mode.ASYNC) or not 1 < len(standing) <= MAX_VARIANTS:
            return FAILED
        for without in standing:
            fewer = tuple("left out" if at == without else why for at, why in enumerate(judged.refused))
            with suppress(UpdateRefused):
                if (await self._mode.combine(round_, parent, replace(judged, refused=fewer)))[0] == model:
                    return UNKNOWN
        return FAILED

    def _share_of(self, panel: PanelState, share: float) -> float:
        """Unix seconds at which this share of the window of commitments has gone."""
        return panel.commit_until - (1 - share) * self._spec.reward.score_s


def _score(worth: int) -> int:
    """As a vector holds it: the least number of 64 bits says that a piece is refused."""
    return max(-MAX_SCORE, min(worth, MAX_SCORE))
