"""What the ledger says of the reward protocol. A part of LedgerRows, see query.py."""

from __future__ import annotations

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from dfl_ledger import rewards, round_facts
from dfl_ledger.errors import VerificationFailed
from dfl_ledger.facts import RoundFacts
from dfl_ledger.merkle import RewardTree
from dfl_ledger.records import (
    Address,
    AssetKind,
    AssetUse,
    Cid,
    Fault,
    JobId,
    JobTerms,
    Leaf,
    Opening,
    Payee,
    Phase,
)
from dfl_ledger.rows import SETTLEMENT_COLUMNS, SettlementRow, read_settlement
from dfl_ledger.rows_rewards import (
    AssetRow,
    AuditRow,
    OffenceRow,
    OpeningRow,
    OverturnedRow,
    PanelRow,
    SeatRow,
    SlashRow,
    UnsealedRow,
)

# Of the window of commitments to scores, by the blocks' times: a shard that is unsealed later does not count.
# A rule that only looks at the chain, so that all who judge agree on it; enough is left of the window then.
UNSEAL_PERCENT = 40


class RewardRows(ABC):
    """Reads what was judged, declared and punished."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[sqlite3.Connection]: ...

    # -- jobs and rounds ------------------------------------------------------------------------------
    def terms(self, job: int) -> JobTerms | None:
        """What the requester promised."""
        with self.reading() as db:
            return round_facts.job_terms(db, job)

    def round_facts(self, job: int, round_: int) -> RoundFacts:
        """Everything of a round that its settlement follows from, once its panel is done.

        Raises UsageError for a round without a model.
        """
        with self.reading() as db:
            return round_facts.read(db, job, round_)

    def publisher(self, job: int, round_: int) -> Address | None:
        """Who published the round's model."""
        with self.reading() as db:
            row = db.execute(
                "SELECT aggregator FROM rounds WHERE job = ? AND round = ?", (job, round_)
            ).fetchone()
        return None if row is None or row[0] is None else Address(row[0])

    def payees(self, job: int) -> tuple[Payee, ...]:
        """Who or what can earn in a job, by number."""
        with self.reading() as db:
            return round_facts.payees(db, job)

    def datasets(self, job: int) -> tuple[int, ...]:
        """The assets that were declared, by place."""
        with self.reading() as db:
            return round_facts.datasets(db, job)

    def datasets_by_node(self, job: int) -> Mapping[Address, tuple[int, ...]]:
        """Which node trains on which data sets."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT node, asset FROM datasets WHERE job = ? ORDER BY place", (job,)
            ).fetchall()
        found: dict[Address, tuple[int, ...]] = {}
        for node, asset in rows:
            found[Address(node)] = (*found.get(Address(node), ()), asset)
        return found

    def uses(self, job: int, round_: int) -> Mapping[Address, tuple[int, ...]] | None:
        """Which node had declared which data sets when the round's panel was drawn, in chain order; None if
        it is not drawn. What was declared later is not measured in the round."""
        with self.reading() as db:
            drawn = db.execute(
                "SELECT seq FROM events WHERE job = ? AND name = 'PanelDrawn' "
                "AND json_extract(args, '$.round') = ? AND json_extract(args, '$.panel') = 0",
                (job, round_),
            ).fetchone()
            if drawn is None:
                return None
            rows = db.execute(
                "SELECT json_extract(args, '$.node'), json_extract(args, '$.asset') FROM events "
                "WHERE job = ? AND name = 'DatasetDeclared' AND seq < ? ORDER BY seq",
                (job, *drawn),
            ).fetchall()
        found: dict[Address, tuple[int, ...]] = {}
        for node, asset in rows:
            found[Address(node)] = (*found.get(Address(node), ()), asset)
        return found

    def shards(self, job: int) -> Mapping[Address, bytes]:
        """Each node's commitment to the rows it trains on."""
        with self.reading() as db:
            rows = db.execute("SELECT node, shard FROM shards WHERE job = ?", (job,)).fetchall()
        return {Address(node): _bytes(shard) for node, shard in rows}

    def shard_keys(self, job: int) -> tuple[bytes, ...]:
        """The keys of the validation shards that are unsealed, by position."""
        with self.reading() as db:
            rows = db.execute("SELECT key FROM shard_keys WHERE job = ? ORDER BY position", (job,)).fetchall()
        return tuple(_bytes(key) for (key,) in rows)

    def unsealed(self, job: int, round_: int) -> UnsealedRow | None:
        """The key that a published round is scored by; None while its shard is sealed."""
        with self.reading() as db:
            terms = round_facts.job_terms(db, job)
            row = db.execute(
                "SELECT position, key, late_s FROM shard_keys WHERE job = ?1 AND position = (SELECT count(*) "
                "FROM rounds WHERE job = ?1 AND round < ?2 AND model IS NOT NULL) AND EXISTS "
                "(SELECT 1 FROM rounds WHERE job = ?1 AND round = ?2 AND model IS NOT NULL)",
                (job, round_),
            ).fetchone()
            if terms is None or row is None:
                return None
            position, key, late_s = row
            before = db.execute(
                "SELECT key FROM shard_keys WHERE job = ? AND position = ?", (job, position - 1)
            ).fetchone()
        previous = terms.seal_anchor if before is None else _bytes(before[0])
        due_s = terms.score_window_s * UNSEAL_PERCENT // 100
        return UnsealedRow(position, _bytes(key), previous, late_s, due_s)

    # -- judging --------------------------------------------------------------------------------------
    def panel(self, job: int, round_: int, panel: int = 0) -> PanelRow | None:
        """A panel with its seats; None before it is drawn."""
        key = (job, round_, panel)
        with self.reading() as db:
            row = db.execute(
                "SELECT subjects, drawn_block, tx FROM panels WHERE job = ? AND round = ? AND panel = ?", key
            ).fetchone()
            seats = db.execute(
                "SELECT seat, evaluator, weight, committed_tx, revealed_tx, vector, withheld_tx, "
                "penalized_tx FROM seats WHERE job = ? AND round = ? AND panel = ? ORDER BY seat",
                key,
            ).fetchall()
        if row is None:
            return None
        subjects, drawn_block, tx = row
        return PanelRow(JobId(job), round_, panel, subjects, drawn_block, tx, tuple(map(_seat, seats)))

    def judged_rounds(self, job: int) -> tuple[int, ...]:
        """Rounds whose panel was drawn, oldest first."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT round FROM panels WHERE job = ? AND panel = 0 ORDER BY round", (job,)
            ).fetchall()
        return tuple(round_ for (round_,) in rows)

    def seats_of(
        self, evaluator: str | None, job: int | None = None
    ) -> tuple[tuple[JobId, int, int, int], ...]:
        """Where an evaluator (None: any) sits or sat: (job, round, panel, seat)."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT job, round, panel, seat FROM seats WHERE (? IS NULL OR evaluator = ?) "
                "AND (? IS NULL OR job = ?) ORDER BY job, round, panel, seat",
                (evaluator, evaluator, job, job),
            ).fetchall()
        return tuple((JobId(own), round_, panel, seat) for own, round_, panel, seat in rows)

    def audits(self, job: int, round_: int | None = None) -> tuple[AuditRow, ...]:
        with self.reading() as db:
            rows = db.execute(
                "SELECT job, round, audit, node, boxes, appeal_until, appealed, upheld FROM audits "
                "WHERE job = ? AND (? IS NULL OR round = ?) ORDER BY round, audit",
                (job, round_, round_),
            ).fetchall()
        return tuple(map(_audit, rows))

    def openings(self, job: int, round_: int, audit: int) -> tuple[OpeningRow, ...]:
        """Where the audited node said that its rows lie, in chain order: for each of its juries, or again."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT args, block FROM events WHERE job = ? AND name = 'ShardOpened' "
                "AND json_extract(args, '$.round') = ? AND json_extract(args, '$.audit') = ? ORDER BY seq",
                (job, round_, audit),
            ).fetchall()
        told = [(json.loads(args), block) for args, block in rows]
        return tuple(
            OpeningRow(Address(args["node"]), str(Cid.from_digest(_bytes(args["boxes"]))), block)
            for args, block in told
        )

    def bans(self, job: int) -> frozenset[Address]:
        """Who is shut out of a job."""
        with self.reading() as db:
            rows = db.execute("SELECT node FROM bans WHERE job = ?", (job,)).fetchall()
        return frozenset(Address(node) for (node,) in rows)

    def offences(self, job: int | None = None, node: str | None = None) -> tuple[OffenceRow, ...]:
        """What cost a bond, in chain order."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT job, round, node, kind, tx, block FROM offences "
                "WHERE (? IS NULL OR job = ?) AND (? IS NULL OR node = ?) ORDER BY seq",
                (job, job, node, node),
            ).fetchall()
        return tuple(OffenceRow(*row) for row in rows)

    def slashes(self, node: str | None = None) -> tuple[SlashRow, ...]:
        """Stake that was taken, in chain order."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT node, reporter, slashed_wei, reward_wei, tx, block FROM slashes "
                "WHERE ? IS NULL OR node = ? ORDER BY seq",
                (node, node),
            ).fetchall()
        return tuple(
            SlashRow(own, reporter, int(slashed), int(reward), tx, block)
            for own, reporter, slashed, reward, tx, block in rows
        )

    def withheld(self, job: int) -> tuple[tuple[int, Address], ...]:
        """(round, node) of every commitment that was not revealed while it could be, and not punished yet."""
        with self.reading() as db:
            rows = db.execute(
                _SELECT_WITHHELD, {"job": job, "reveal": int(Phase.REVEAL), "over": int(Phase.AGGREGATE)}
            ).fetchall()
        return tuple((round_, Address(node)) for round_, node in rows)

    # -- settlements ----------------------------------------------------------------------------------
    def settlement(self, job: int, round_: int) -> SettlementRow | None:
        """A settlement without its lines; None once it is overturned."""
        with self.reading() as db:
            row = db.execute(f"{_SELECT_SETTLEMENTS} WHERE job = ? AND round = ?", (job, round_)).fetchone()
        return None if row is None else read_settlement(row, ())

    def open_settlements(self, job: int, now: int) -> tuple[SettlementRow, ...]:
        """Those that can be overturned at `now` (Unix seconds of the chain), oldest first, without lines."""
        with self.reading() as db:
            rows = db.execute(
                f"{_SELECT_SETTLEMENTS} WHERE job = ? AND claimable_at > ? ORDER BY round", (job, now)
            ).fetchall()
        return tuple(read_settlement(row, ()) for row in rows)

    def lines(self, job: int, round_: int) -> tuple[Leaf, ...]:
        """What the round's settlement has to say: from the chain alone, whatever was settled.

        Raises UsageError for a round without a model, VerificationFailed if a settlement before it is wrong.
        """
        return rewards.leaves(self.round_facts(job, round_), self.lines_before(job, round_))

    def lines_before(self, job: int, round_: int) -> tuple[Leaf, ...]:
        """The lines of the last settlement before the round's; none if there is none.

        They are worked out where its evidence is not here. Raises as `lines` does.
        """
        with self.reading() as db:
            row = db.execute(
                f"{_SELECT_SETTLEMENTS} WHERE job = ? AND round < ? ORDER BY round DESC LIMIT 1",
                (job, round_),
            ).fetchone()
            if row is None:
                return ()
            last = read_settlement(row, ())
            known = round_facts.leaves(db, job, last.round)
        if known:
            return known
        found = self.lines(job, last.round)
        if RewardTree(found).root != last.root:
            raise VerificationFailed(
                f"the settlement of job {job} round {last.round} is wrong",
                why="its root is not that of the lines that follow from the chain",
                help_command=f"dfl-node ledger verify {job}.{last.round}",
            )
        return found

    def opening(self, job: int, round_: int) -> Opening | None:
        """What a challenge of the round's settlement has to show."""
        with self.reading() as db:
            row = db.execute(
                "SELECT score_root, weights, settler FROM settlements WHERE job = ? AND round = ?",
                (job, round_),
            ).fetchone()
        return None if row is None else Opening(_bytes(row[0]), int(row[1]), Address(row[2]))

    def overturned(self, job: int | None = None) -> tuple[OverturnedRow, ...]:
        """Settlements that are void, in chain order."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT job, round, settler, root, challenger, why, tx, block FROM overturned "
                "WHERE ? IS NULL OR job = ? ORDER BY seq, round",
                (job, job),
            ).fetchall()
        return tuple(
            OverturnedRow(
                *(own, round_, settler, _bytes(root), challenger),
                why=None if why is None else Fault(why).name.lower(),
                tx=tx,
                block=block,
            )
            for own, round_, settler, root, challenger, why, tx, block in rows
        )

    # -- assets ---------------------------------------------------------------------------------------
    def assets(self, owner: str | None = None) -> tuple[AssetRow, ...]:
        """Every asset, by number."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT asset, owner, kind, manifest, licence, uses, price_bps, parents, revoked, "
                "minted_block FROM assets WHERE ? IS NULL OR owner = ? ORDER BY asset",
                (owner, owner),
            ).fetchall()
        return tuple(map(_asset, rows))


_SELECT_SETTLEMENTS = f"SELECT {SETTLEMENT_COLUMNS} FROM settlements"  # noqa: S608
# Nobody could reveal in a round that ended in COMMIT.
_SELECT_WITHHELD = """
WITH told (round, node, name) AS (
    SELECT json_extract(args, '$.round'), json_extract(args, '$.node'), name FROM events
    WHERE job = :job AND name IN ('ContributionCommitted', 'ContributionRevealed', 'RevealWithheld')
), revealing (round) AS (
    SELECT json_extract(args, '$.round') FROM events
    WHERE job = :job AND name = 'PhaseChanged' AND json_extract(args, '$.phase') = :reveal
)
SELECT c.round, c.node FROM told c JOIN jobs j ON j.job = :job
WHERE c.name = 'ContributionCommitted' AND c.round IN (SELECT round FROM revealing)
AND (c.round < j.round OR j.phase >= :over)
AND NOT EXISTS (
    SELECT 1 FROM told o WHERE o.round = c.round AND o.node = c.node AND o.name <> 'ContributionCommitted'
) ORDER BY c.round, c.node
"""


def _seat(row: tuple[Any, ...]) -> SeatRow:
    seat, evaluator, weight, *rest = row
    return SeatRow(seat, evaluator, int(weight), *rest)


def _audit(row: tuple[Any, ...]) -> AuditRow:
    job, round_, audit, node, boxes, until, appealed, upheld = row
    decided = None if upheld is None else bool(upheld)
    return AuditRow(job, round_, audit, node, boxes, until, bool(appealed), decided)


def _asset(row: tuple[Any, ...]) -> AssetRow:
    asset, owner, kind, manifest, licence, uses, price_bps, parents, revoked, block = row
    return AssetRow(
        asset,
        owner,
        AssetKind(kind),
        manifest,
        _bytes(licence),
        AssetUse(uses),
        price_bps,
        tuple(json.loads(parents)),
        bool(revoked),
        block,
    )


def _bytes(word: str) -> bytes:
    return bytes.fromhex(word.removeprefix("0x"))
