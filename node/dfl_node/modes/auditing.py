"""What a juror does about an audited piece: takes its rows, does its work again, and says what came of it.

A piece fails if its work, done again, gives another update; if what was opened are not the rows that its
node committed to; and if its node opened nothing in time, though it could. A juror that lacks something
itself (time, peers, the piece, its own key) cannot tell, which costs nobody anything.

    window of commitments   0 ------------ 1/2 ------ 0.65 ------------ 0.8 ---- 1
                            rows are opened  | boxes are fetched | work is done again
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
import trio

from dfl_ledger.errors import (
    BlobNotFound,
    CidMismatch,
    DflError,
    UpdateRefused,
    VerificationFailed,
)
from dfl_ledger.query import ContributionRow
from dfl_ledger.records import Address, Cid, JobId, Mode, PanelState
from dfl_node.jobspec import JobSpec
from dfl_node.modes.mode import Context, job_seed
from dfl_node.parts import Parts
from dfl_node.train.trainer import Recomputation
from dfl_node.value import audit, boxes

log = structlog.get_logger(__name__)

PASSED, FAILED, UNKNOWN = 1, -1, 0  # verdicts
# Shares of the window of commitments.
OPEN_SHARE = 0.5  # for the audited to open their rows
DRAW_SHARE = 0.25  # who is drawn later than that is told too late to be blamed for not opening them
FETCH_SHARE = 0.65  # for the jurors to have them
REDO_SHARE = 0.8
LOOK_S = 0.5
FETCH_S = 5.0  # of one attempt


@dataclass(frozen=True, slots=True)
class Case:
    """An audit of a round before one of its juries: panel 0, or that of an appeal."""

    job: JobId
    round: int
    audit: int
    panel: int
    piece: ContributionRow
    since: int  # Unix seconds; when the jury's window began
    window_s: int

    @property
    def node(self) -> Address:
        return self.piece.node

    @property
    def open_until(self) -> float:
        """Unix seconds, by the chain's clock."""
        return self.since + OPEN_SHARE * self.window_s

    @property
    def context(self) -> bytes:
        return boxes.context(self.job, self.round, self.audit, self.panel, self.node)

    def at(self, share: float) -> float:
        """Unix seconds at which this share of the window has gone."""
        return self.since + share * self.window_s


def case(parts: Parts, spec: JobSpec, where: tuple[JobId, int, int, int], state: PanelState) -> Case:
    """Of a (job, round, audit, panel) whose panel 0 is drawn. Blocks. Raises DflError while rows lag."""
    job, round_, number, panel = where
    index = parts.ledger.audited_index(job, round_, number)
    rows = parts.rows.revealed(job, round_)
    if index >= len(rows):
        raise DflError(f"the ledger lacks pieces of job {job} round {round_}", why="the index lags")
    since = state.commit_until - spec.reward.score_s
    return Case(job, round_, number, panel, rows[index], since, spec.reward.score_s)


def opening(parts: Parts, found: Case) -> Cid | None:
    """Where its node opened its rows to this jury, in time; the first place that it named. Blocks."""
    for row in parts.rows.openings(found.job, found.round, found.audit):
        at = parts.ledger.block(row.block).timestamp
        if row.node == found.node and found.since <= at <= found.open_until:
            return Cid.parse(row.boxes)
    return None


async def objection(
    context: Context, piece: ContributionRow, update: bytes, rows: bytes, commitment: bytes, *, made_in: int
) -> str:
    """Why this update is not what these rows (NPZ) give, or "": the work is done again.

    Raises DflError for what is missing here, and UpdateRefused for a file that is no update: it counts for
    nothing, and a training that blew up may have made it.
    """
    parts = context.parts
    if why := await trio.to_thread.run_sync(_name_objection, context, piece, made_in):
        return why
    work = Recomputation(
        job=context.job,
        round=made_in,
        parent=await context.fetch_model(Cid.parse(piece.parent)),
        model=context.model,
        training=context.training,
        node_seed=job_seed(piece.node, context.job),
        samples=piece.samples,
        shard=rows,
        commitment=commitment,
        rule=context.rule,
    )
    try:
        found = await parts.trainer.recompute(work, update)
    except (UpdateRefused, CidMismatch):
        raise
    except VerificationFailed as lie:
        return lie.why or lie.what
    return audit.objection(found.distance)


def _name_objection(context: Context, piece: ContributionRow, made_in: int) -> str:
    """A training is named by its round, which draws its batches. Asynchronous, a piece waits for a round that
    takes it; so it may be named by any from the first that began with its parent."""
    if context.spec.mode is not Mode.ASYNC:
        return "" if made_in == piece.round else f"it was made for round {made_in}, not {piece.round}"
    row = context.parts.rows.job(context.job)
    made = {r.model: r.round for r in row.rounds if r.model} if row is not None else {}
    first = made.get(piece.parent, 0) + 1
    fits = first <= made_in <= piece.round
    return "" if fits else f"it was made for round {made_in}, none from {first} to {piece.round}"


class Auditor:
    """This node as a juror of one job."""

    def __init__(self, context: Context, clock: Callable[[], float]) -> None:
        self._context = context
        self._spec, self._parts, self._clock = context.spec, context.parts, clock
        self._redoing = trio.CapacityLimiter(1)

    async def verdicts(
        self, round_: int, state: PanelState, pieces: Mapping[int, bytes], *, panel: int = 0, audit: int = 0
    ) -> tuple[int, ...]:
        """One for each audit of a round, or on the one that was appealed against; never raises DflError.

        `pieces` are those that are here, by the row's place.
        """
        numbers = range(state.audits) if panel == 0 else (audit,)
        found = dict.fromkeys(numbers, UNKNOWN)

        async def judge(number: int) -> None:
            found[number] = await self._verdict(round_, number, panel, state, pieces)

        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(judge, number)
        return tuple(found.values())

    async def _verdict(
        self, round_: int, number: int, panel: int, state: PanelState, pieces: Mapping[int, bytes]
    ) -> int:
        job, why, verdict = self._context.job, "it took too long", UNKNOWN
        until = state.commit_until - (1 - REDO_SHARE) * self._spec.reward.score_s
        with trio.move_on_after(max(0.0, until - self._clock())):
            try:
                where = (job, round_, number, panel)
                found = await trio.to_thread.run_sync(case, self._parts, self._spec, where, state)
                why = await self._objection(found, pieces)
                verdict = FAILED if why else PASSED
            except DflError as missing:
                why = str(missing)
        if verdict is not PASSED:
            said = "an audit failed" if verdict is FAILED else "an audit could not be made"
            log.warning(said, job=job, round=round_, audit=number, panel=panel, why=why)
        return verdict

    async def _objection(self, found: Case, pieces: Mapping[int, bytes]) -> str:
        """Why the piece fails, or "". Raises DflError for what we cannot tell."""
        in_thread, me = trio.to_thread.run_sync, self._context.me
        if found.node == me:
            raise DflError("nobody audits itself")
        update = pieces.get(found.piece.index)
        if not update:
            update = await self._fetched(found, Cid.parse(found.piece.cid), FETCH_SHARE)
        committed = (await in_thread(self._parts.rows.shards, found.job)).get(found.node)
        if committed is None:
            raise DflError(f"the ledger lacks the commitment of {found.node}", why="the index lags")
        cid = await self._opening(found)
        if cid is None:
            return f"its rows were not opened within {OPEN_SHARE * found.window_s:g} s"
        try:
            data = await self._fetched(found, cid, FETCH_SHARE, boxes.MAX_BYTES)
        except UpdateRefused as bad:  # larger than any may be
            return bad.why or bad.what
        except (BlobNotFound, CidMismatch) as gone:
            if not await in_thread(self._could_be_asked, found):
                raise
            return f"its rows are said to be in {cid}, and nobody has them: {gone.why}"
        opened = await in_thread(self._opened, found, data)
        if isinstance(opened, str):
            return opened
        made_in, rows = opened
        async with self._redoing:
            return await objection(self._context, found.piece, update, rows, committed, made_in=made_in)

    def _opened(self, found: Case, data: bytes) -> tuple[int, bytes] | str:
        """The round and the rows (NPZ) in a file of boxes, or what is wrong with it. Blocks."""
        parts, me = self._parts, self._context.me
        key, known = parts.node_key, parts.ledger.node(me)
        if key is None or known is None or known.peer_key != key.public:
            raise DflError("rows cannot be opened here", why="the registry has another key of this node")
        seats = parts.ledger.seats(found.job, found.round, found.panel)
        seat = next((number for number, seat in enumerate(seats) if seat.evaluator == me), None)
        if seat is None:
            raise DflError("rows cannot be opened here", why="the chain was reorganised: we have no seat")
        try:
            file = boxes.read(data)
            if seat < len(file.keys) and file.keys[seat] != key.public and self._is_new_here(found):
                raise DflError("rows cannot be opened here", why="this node's key is newer than the draw")
            return file.made_in, file.open(seat, key.seed, found.context)
        except VerificationFailed as bad:
            return bad.why or bad.what

    def _is_new_here(self, found: Case) -> bool:
        """Whether our key came so late that the audited may have sealed its rows to another."""
        rows, me = self._parts.rows, self._context.me
        own = next((row for row in rows.nodes() if row.node == me), None)
        drawn = rows.panel(found.job, found.round, found.panel)
        return own is None or drawn is None or own.registered_block >= drawn.drawn_block

    async def _opening(self, found: Case) -> Cid | None:
        """Where the rows were opened; None once it is certain that they were not, though they could be.

        Raises DflError if the audited was told too late.
        """
        in_thread = trio.to_thread.run_sync
        while True:
            over = await in_thread(self._is_over, found)  # before the look: what is missing then never came
            cid = await in_thread(opening, self._parts, found)
            if cid is not None:
                return cid
            if over:
                break
            await trio.sleep(LOOK_S)
        if await in_thread(self._was_told_late, found):
            raise DflError("its rows were not opened", why="its audit was drawn late")
        return None

    def _was_told_late(self, found: Case) -> bool:
        drawn = self._parts.rows.panel(found.job, found.round, found.panel)
        if drawn is None:
            return True
        return self._parts.ledger.block(drawn.drawn_block).timestamp > found.at(DRAW_SHARE)

    def _is_over(self, found: Case) -> bool:
        """Whether the chain is past the time for opening, and the ledger's rows have all of that time."""
        ledger = self._parts.ledger
        if ledger.now() <= found.open_until:
            return False
        return self._parts.rows.index_state().indexed_block >= ledger.head()

    def _could_be_asked(self, found: Case) -> bool:
        """Whether somebody is connected who should have what its node opened: else we are cut off."""
        known = self._holders(found) - {self._context.me}
        return any(peer.address in known for peer in self._parts.channel.peers())

    def _holders(self, found: Case) -> set[Address]:
        """Who should have what was opened: its node, and everybody who judges it. Blocks."""
        seats = self._parts.ledger.seats(found.job, found.round, found.panel)
        return {found.node, *(seat.evaluator for seat in seats)}

    async def _fetched(self, found: Case, cid: Cid, share: float, max_bytes: int | None = None) -> bytes:
        """From the audited, or from whoever else judges it. Tried until this share of the window has gone."""
        known = await trio.to_thread.run_sync(self._holders, found)
        while True:
            left_s = found.at(share) - self._clock()
            try:
                return await self._parts.store.get(
                    cid,
                    max_bytes=max_bytes or self._spec.training.max_update_bytes,
                    timeout_s=max(1.0, min(FETCH_S, left_s)),
                    providers=tuple(p.peer_id for p in self._parts.channel.peers() if p.address in known),
                )
            except BlobNotFound:
                if left_s <= FETCH_S:
                    raise
