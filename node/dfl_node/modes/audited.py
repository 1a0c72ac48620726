"""What a node does whose own pieces are audited: it commits to its rows, opens them to a jury, and appeals.

A job with audits asks its members to let a drawn jury see their rows. A node takes part in one only if its
owner allows that (`--share-rows`), and trains on no other rows than those that it committed to.
"""

from __future__ import annotations

from functools import partial

import structlog
import trio

from dfl_ledger.errors import ChainUnreachable, DflError, UsageError
from dfl_ledger.query import ContributionRow
from dfl_ledger.records import Cid, PanelPhase
from dfl_node.modes.auditing import case, objection, opening
from dfl_node.modes.mode import Context
from dfl_node.rounds.vocabulary import Appeal, DrawPanel, Errand, OpenShard
from dfl_node.train.trainer import Shard
from dfl_node.value import boxes

log = structlog.get_logger(__name__)

SPREAD_S = 2.0  # between one contributor's turn to have the panel drawn and the next one's


class Audited:
    """This node as one whose work is audited, in one job."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._job, self._spec, self._parts = context.job, context.spec, context.parts
        self._commitment: bytes | None = None  # of the rows that are here
        self._resigned: set[tuple[int, int]] = set()  # (round, audit): rightly failed, as far as we can tell

    @property
    def applies(self) -> bool:
        return self._spec.reward.audits > 0

    # -- joining and training ---------------------------------------------------------------------------
    async def commitment(self) -> bytes | None:
        """What to join with: None where nothing is asked for, or it is on the chain already.

        Raises UsageError if these rows are not those that we committed to: nothing that we made of them would
        pass an audit.
        """
        if not self.applies:
            return None
        if self._commitment is None:
            self._commitment = (await self._shard()).commitment
        known = (await trio.to_thread.run_sync(self._parts.rows.shards, self._job)).get(self._context.me)
        if known is not None:
            self._check(self._commitment, known)
        return self._commitment if known is None else None

    async def _shard(self) -> Shard:
        data = self._parts.data.get(self._spec.app)
        if data is None:
            why = f"it holds no rows of {self._spec.app}"
            raise UsageError(f"this node cannot show what it trained on in job {self._job}", why=why)
        shard = await self._parts.trainer.shard(data)
        boxes.check_size(shard.rows)
        return shard

    def _check(self, ours: bytes, committed: bytes) -> None:
        if ours != committed:
            raise UsageError(
                f"job {self._job} has no use for the rows of this node",
                why=f"it committed to 0x{committed.hex()} when it joined, and holds 0x{ours.hex()} now",
                help_command="dfl-node start --shard …",
            )

    # -- what is due ------------------------------------------------------------------------------------
    def errands(self, now: float) -> tuple[Errand, ...]:
        """What the audits of this job ask of us. Blocks."""
        if not self.applies or not self._parts.share_rows:  # its owner's word of today, whatever it joined
            return ()
        found = list[Errand]()
        for round_ in self._parts.rows.unsettled_rounds(self._job):
            found += self._of_round(round_)
        for row in self._parts.rows.audits(self._job):
            if row.node != self._context.me or row.appeal_until is None or row.upheld is not None:
                continue
            if row.appealed:
                found += self._of_appeal(row.round, row.audit)
            elif now < row.appeal_until and (row.round, row.audit) not in self._resigned:
                found.append(Errand(Appeal(row.round, row.audit), now, row.appeal_until))
        return tuple(found)

    def _of_round(self, round_: int) -> list[Errand]:
        ledger, me = self._parts.ledger, self._context.me
        panel, published = ledger.panel(self._job, round_), ledger.publication(self._job, round_)
        own = self._own(round_)
        if panel.phase is not PanelPhase.COMMIT or published is None or own is None:
            return []
        index = own.index
        if not any(panel.seed):
            turn = (index - published.publisher_index) % max(1, published.contributions)
            due = published.published_at + turn * SPREAD_S
            return [Errand(DrawPanel(round_, 0), due, panel.commit_until)]
        found = list[Errand]()
        for number in range(panel.audits):
            if ledger.audited_index(self._job, round_, number) != index:
                continue
            here = case(self._parts, self._spec, (self._job, round_, number, 0), panel)
            if here.node == me and opening(self._parts, here) is None:
                found.append(Errand(OpenShard(round_, number, 0), here.since, here.open_until))
        return found

    def _of_appeal(self, round_: int, number: int) -> list[Errand]:
        jury = number + 1
        panel = self._parts.ledger.panel(self._job, round_, jury)
        if panel.phase is not PanelPhase.COMMIT:
            return []
        here = case(self._parts, self._spec, (self._job, round_, number, jury), panel)
        if not any(panel.seed):
            return [Errand(DrawPanel(round_, jury), here.since, panel.commit_until)]
        if opening(self._parts, here) is not None:
            return []
        return [Errand(OpenShard(round_, number, jury), here.since, here.open_until)]

    def _own(self, round_: int) -> ContributionRow | None:
        found = self._parts.rows.contributions(node=self._context.me, job=self._job, round_=round_)
        return found[-1] if found else None

    # -- acting -----------------------------------------------------------------------------------------
    async def draw(self, action: DrawPanel) -> None:
        await trio.to_thread.run_sync(self._parts.ledger.draw, self._job, action.round, action.panel)
        log.info("panel drawn", job=self._job, round=action.round, panel=action.panel)

    async def open(self, action: OpenShard) -> None:
        """Our rows to each juror, and on chain where they lie."""
        in_thread, ledger = trio.to_thread.run_sync, self._parts.ledger
        round_, number, jury = action.round, action.audit, action.panel
        state = await in_thread(ledger.panel, self._job, round_, jury)
        here = await in_thread(case, self._parts, self._spec, (self._job, round_, number, jury), state)
        shard = await self._committed_shard()
        made_in = await in_thread(self._made_in, here.piece)
        keys = await in_thread(self._juror_keys, round_, jury)
        seal = partial(boxes.seal, shard.rows, keys, here.context, made_in=made_in)
        cid = await self._parts.store.put(await in_thread(seal))
        await in_thread(ledger.open_shard, self._job, round_, number, cid)
        log.info(
            "rows opened to a jury",
            job=self._job,
            round=round_,
            audit=number,
            panel=jury,
            jurors=len(keys),
            boxes=str(cid),
        )

    async def appeal(self, action: Appeal) -> None:
        """Ask for a fresh jury, if our work done again is what we delivered."""
        in_thread, where = trio.to_thread.run_sync, (action.round, action.audit)
        own = await in_thread(self._own, action.round)
        if own is None:
            raise ChainUnreachable(f"the ledger lacks our piece of job {self._job} round {action.round}")
        try:
            shard = await self._committed_shard()
            update = await self._parts.store.get(
                Cid.parse(own.cid), max_bytes=self._spec.training.max_update_bytes
            )
            made_in = await in_thread(self._made_in, own)
            why = await objection(self._context, own, update, shard.rows, shard.commitment, made_in=made_in)
        except UsageError as changed:
            why = str(changed)
        if why:
            self._resigned.add(where)
            log.error("a failed audit is right: no appeal", job=self._job, round=action.round, why=why)
            return
        await in_thread(self._parts.ledger.appeal, self._job, action.round, action.audit)
        log.warning("appealed against a failed audit", job=self._job, round=action.round, audit=action.audit)

    async def _committed_shard(self) -> Shard:
        shard = await self._shard()
        known = (await trio.to_thread.run_sync(self._parts.rows.shards, self._job)).get(self._context.me)
        if known is None:
            raise DflError(f"the ledger lacks our commitment in job {self._job}", why="the index lags")
        self._check(shard.commitment, known)
        return shard

    def _made_in(self, piece: ContributionRow) -> int:
        work = self._parts.journal.work_of(self._job, Cid.parse(piece.cid))
        return piece.round if work is None else work.round

    def _juror_keys(self, round_: int, panel: int) -> list[bytes]:
        """The node key of each seat, as the registry has it; zeros for one that has left."""
        ledger = self._parts.ledger
        found = [ledger.node(seat.evaluator) for seat in ledger.seats(self._job, round_, panel)]
        return [bytes(32) if record is None else record.peer_key for record in found]
