"""A settlement gone through again by somebody who was not there: medians, trees, model, scores, payouts.

`verify_round` works on the ledger's rows and on files by CID, with a trainer of its own and nothing of a
running node. The money follows from the chain alone (recount.py). What the chain cannot tell, whether the
model is what its pieces give and whether the evaluators measured what there was, is done again through
`ModePart`, as an evaluator does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol, cast

import trio

from dfl_ledger import audit, evidence, recount
from dfl_ledger.errors import BlobNotFound, DflError, UpdateRefused, VerificationFailed
from dfl_ledger.evidence import Evidence
from dfl_ledger.facts import RoundFacts, Shares
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import NOBODY, REFUSED, Address, Cid, JobId, Leaf, Mode
from dfl_ledger.rows import SettlementRow
from dfl_node import jobspec
from dfl_node.bases import keep_base
from dfl_node.jobspec import JobSpec
from dfl_node.modes import pieces, sealed
from dfl_node.modes.measuring import TOLERANCE
from dfl_node.modes.mode import Context, ModePart, Worths, open_mode
from dfl_node.modes.pieces import Revealed
from dfl_node.parts import Parts
from dfl_node.rounds import vocabulary as rounds
from dfl_node.train.trainer import Trainer, Verdict

FETCH_S = 60.0
MAX_VARIANTS = 8  # of the round's pieces that a model is tried on
_VERDICTS = {1: "passed", 0: "not told", -1: "failed"}


class Files(Protocol):
    """What is needed of a `BlobStore`."""

    async def put(self, data: bytes, *, pin: bool = True) -> Cid: ...

    async def get(
        self, cid: Cid, *, max_bytes: int, timeout_s: float = 30.0, providers: tuple[str, ...] = ()
    ) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at and holds."""

    round: int
    what: str
    detail: str


class Mismatch(VerificationFailed):
    """Something does not hold; the checks before it do."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """Checks rounds of one job. `said` hears of each check as it is done."""

    job: JobId
    spec: JobSpec
    rows: LedgerRows
    files: Files
    mode: ModePart
    said: Callable[[Check], None]

    async def verify_round(self, round_: int) -> None:
        """Raises Mismatch with the first thing that does not hold, and other DflErrors for what could not be
        looked at: a file that is not to be had, a round without a settlement."""
        settled = await _in_thread(audit.settlement, self.rows, self.job, round_)
        if settled is None:
            raise VerificationFailed(
                f"job {self.job} round {round_} has no settlement",
                why="nothing was paid for it",
                help_command=f"dfl-node job status {self.job}",
            )
        facts = await _in_thread(self.rows.round_facts, self.job, round_)
        await self._check_terms(facts)
        found = await self._check_money(settled, facts)
        await self._check_work(facts)
        await self._check_payouts(found)

    async def _check_terms(self, facts: RoundFacts) -> None:
        """What the chain pays is what the job's spec promises."""
        job = await _in_thread(self.rows.job, self.job)
        promised = Shares.of(self.spec.terms(Cid.parse(job.spec), facts.model))
        self._require(
            facts.shares == promised,
            facts.round,
            "terms",
            f"the chain shares a round's budget as {facts.shares}, the job's spec as {promised}",
        )

    # -- the money: from the chain alone ----------------------------------------------------------------
    async def _check_money(self, settled: SettlementRow, facts: RoundFacts) -> Evidence:
        previous = await self._previous_leaves(settled.round)
        stated, gone = await self._evidence(settled)
        for finding in recount.recount(settled.settlement(), facts, previous, stated):
            self._require(finding.holds, settled.round, finding.what, finding.detail)
            self._ok(settled.round, finding.what, finding.detail)
        if stated is None:  # what was settled is right, but why a piece was refused stands there alone
            assert gone is not None  # noqa: S101
            raise gone
        await self._check_rows(settled, stated)
        return stated

    async def _check_rows(self, settled: SettlementRow, stated: Evidence) -> None:
        """This node's ledger says the same to whoever asks it."""
        for row, entry in zip(
            await _in_thread(self.rows.revealed, self.job, settled.round), stated.entries, strict=True
        ):
            same = row.accepted is None or (row.accepted, row.why) == (entry.accepted, entry.why)
            self._require(same, settled.round, "ledger", f"this node's ledger judges {row.id} otherwise")
        same = not settled.leaves or settled.leaves == stated.leaves
        self._require(same, settled.round, "ledger", "this node's ledger has other lines")

    async def _evidence(self, settled: SettlementRow) -> tuple[Evidence | None, BlobNotFound | None]:
        """None if it is not to be had, and why: whoever settled wrongly may well keep it to itself."""
        cid = Cid.parse(settled.evidence)
        try:
            data = await self.files.get(cid, max_bytes=evidence.MAX_EVIDENCE_BYTES, timeout_s=FETCH_S)
        except BlobNotFound as gone:
            return None, gone
        found = Evidence.decode(data)
        self._ok(settled.round, "evidence", f"{len(data)} bytes, as {cid} names them")
        return found, None

    async def _previous_leaves(self, round_: int) -> tuple[Leaf, ...]:
        """Those of the settlement before: cumulative rewards go on from there."""
        last = await _in_thread(self.rows.settled_before, self.job, round_)
        if last is None:
            return ()
        data = await self.files.get(last.evidence, max_bytes=evidence.MAX_EVIDENCE_BYTES, timeout_s=FETCH_S)
        found = Evidence.decode(data)
        found.check(last)
        return found.leaves

    # -- the work again -------------------------------------------------------------------------------
    async def _check_work(self, facts: RoundFacts) -> None:
        rows = await _in_thread(self.rows.revealed, self.job, facts.round)
        fetched = await pieces.fetch(
            cast(Parts, SimpleNamespace(store=self.files, channel=_Nobody())),
            rows,
            objection=partial(self.mode.objection, facts.round),
            max_bytes=self.mode.max_piece_bytes,
            patience_s=FETCH_S,
        )
        judged = self._as_judged(facts, fetched)
        verdicts = await self._check_model(facts, judged, fetched)
        await self._check_scores(facts, judged.accepted(verdicts))
        await self._check_audits(facts)

    async def _check_model(
        self, facts: RoundFacts, judged: Revealed, fetched: Revealed
    ) -> tuple[Verdict, ...]:
        """That it is what the pieces give. Gives the verdicts on those that counted.

        Who published may have had a piece that the evaluators could not get, or have lacked one of theirs:
        that is nobody's fault, and no fault of the model.
        """
        made, verdicts = await self.mode.combine(facts.round, facts.parent, judged)
        how = ""
        if made != facts.model:
            how = await self._of_others(facts, judged, fetched)
            why = f"published is {facts.model}, recomputed {made}"
            self._require(bool(how), facts.round, "model", why)
        publisher = await _in_thread(self.rows.publisher, self.job, facts.round)
        self._require(
            facts.median(facts.subjects - 1, publisher or NOBODY) >= 0,
            facts.round,
            "model",
            f"the panel says that {facts.model} is not what the pieces give, and it is",
        )
        self._ok(facts.round, "model", f"{len(judged.rows)} pieces give {facts.model}{how}")
        return verdicts

    async def _of_others(self, facts: RoundFacts, judged: Revealed, fetched: Revealed) -> str:
        """Of which pieces the model was made, if not of those that the panel accepted; "" if of none."""
        variants = [(fetched, ", with what the panel refused")]
        standing = [place for place, why in enumerate(judged.refused) if not why]
        if self.spec.mode in (Mode.SYNC, Mode.ASYNC) and 1 < len(standing) <= MAX_VARIANTS:
            for without in standing:
                fewer = tuple("left out" if at == without else why for at, why in enumerate(judged.refused))
                lacked = f", without {judged.rows[without].id}, which its publisher lacked"
                variants.append((replace(judged, refused=fewer), lacked))
        for pieces_, how in variants:
            with suppress(UpdateRefused):
                if (await self.mode.combine(facts.round, facts.parent, pieces_))[0] == facts.model:
                    return how
        return ""

    def _as_judged(self, facts: RoundFacts, revealed: Revealed) -> Revealed:
        """Without what the panel refused: that a piece did not arrive there cannot be seen here.

        Raises BlobNotFound when a piece that counted is not to be had, Mismatch when it may not count.
        """
        refused = []
        for piece, median, why in zip(facts.contributions, facts.medians, revealed.refused, strict=False):
            if median == REFUSED or not facts.judges:
                refused.append(why or ("refused by the panel" if median == REFUSED else ""))
                continue
            if why and not revealed.all_here and "nobody delivered" in why:
                raise BlobNotFound(f"piece {piece.cid} of job {self.job} round {facts.round}", why=why)
            self._require(not why, facts.round, "scores", f"{piece.cid} was accepted: {why}")
            refused.append("")
        return replace(revealed, refused=tuple(refused))

    async def _check_scores(self, facts: RoundFacts, standing: Revealed) -> None:
        """What an evaluator would say now, against what the panel said."""
        if not facts.judges:
            self._ok(facts.round, "scores", "nobody scored: equal shares")
            return
        uses = await _in_thread(self.rows.uses, self.job, facts.round) if facts.datasets else None
        found = Worths(
            (0,) * len(standing.refused), "no measurement: no validation rows were unsealed in time"
        )
        if await sealed.has_rows(self.files, self.rows, self.job, self.spec, facts.round):
            with suppress(*sealed.unsound(self.spec)):
                found = await self.mode.worth(facts.round, facts.parent, standing, uses or {})
        worths = [
            *(REFUSED if why else worth for why, worth in zip(standing.refused, found.pieces, strict=True)),
            *(found.datasets.get(asset, 0) for asset in facts.datasets),
        ]
        apart, strays = 0, set[tuple[int, Address]]()
        for subject, (measured, median) in enumerate(zip(worths, facts.medians, strict=True)):
            outside = recount.outliers(facts, subject, measured)
            off = abs(measured - median)  # beyond any tolerance if just one of them is REFUSED
            self._require(
                off <= TOLERANCE,
                facts.round,
                "scores",
                f"{recount.name_of(facts, subject)} got {recount.shown(median)}, recomputed "
                f"{recount.shown(measured)}; outside the tolerance: {_seats(outside) or 'no seat'}",
            )
            apart, strays = max(apart, off), strays | set(outside)
        how = "the same" if not apart else f"within {apart}e-9, as another machine's float32 may be"
        lone = f"; outside the tolerance, and outvoted: {_seats(sorted(strays))}" if strays else ""
        self._ok(facts.round, "scores", f"{len(worths)} by {found.method}: {how}{lone}")

    async def _check_audits(self, facts: RoundFacts) -> None:
        """What the chain says of the round's audits. The verdicts cannot be recomputed here, for rows are
        opened to the jury only; that nobody is banned whom its panel did not find wanting, can.
        """
        if not facts.audits:
            return
        known = {row.audit: row for row in await _in_thread(self.rows.audits, self.job, facts.round)}
        first, told = len(facts.contributions) + len(facts.datasets), []
        for number in range(facts.audits):
            row = known.get(number)
            node = NOBODY if row is None else row.node
            found = facts.both_medians(first + number, node)
            accused = row is not None and row.appeal_until is not None
            self._require(
                found.upper < 0 or not accused,
                facts.round,
                "audits",
                f"{node} is said to have failed audit {number}, and its panel's verdict is {found.upper}",
            )
            told.append(f"{number}: {_VERDICTS[(found.upper > 0) - (found.upper < 0)]}")
        detail = f"{', '.join(told)}; cannot be recomputed: rows are opened to the jury only"
        self._ok(facts.round, "audits", detail)

    # -- the claims -----------------------------------------------------------------------------------
    async def _check_payouts(self, found: Evidence) -> None:
        claims = await _in_thread(audit.payments, self.rows, self.job)
        wrong = audit.payout_mismatch(claims, found.round, found.leaves)
        self._require(not wrong, found.round, "payouts", wrong)
        own = [claim for claim in claims if claim.round == found.round]
        paid_wei = sum(claim.amount_wei for claim in own)
        self._ok(found.round, "payouts", f"{len(own)} claims of {paid_wei} wei pay what their leaves say")

    def _ok(self, round_: int, what: str, detail: str) -> None:
        self.said(Check(round_, what, detail))

    def _require(self, holds: bool, round_: int, what: str, why: str) -> None:
        if not holds:
            raise Mismatch(f"job {self.job} round {round_} fails the check of its {what}", why=why)


def _seats(found: Iterable[tuple[int, Address]]) -> str:
    return ", ".join(f"seat {seat} ({evaluator})" for seat, evaluator in found)


async def open_verifier(
    job: JobId, rows: LedgerRows, files: Files, trainer: Trainer, said: Callable[[Check], None]
) -> Verifier:
    """Raises DflError when the job's spec or base cannot be had."""
    row = await _in_thread(rows.job, job)
    if row is None:
        raise DflError(f"there is no job {job}", why="the ledger has none", help_command="dfl-node job list")
    data = await files.get(Cid.parse(row.spec), max_bytes=jobspec.MAX_SPEC_BYTES, timeout_s=FETCH_S)
    spec = jobspec.decode(data)
    parts: Any = SimpleNamespace(
        rows=rows,
        store=files,
        trainer=trainer,
        channel=_Nobody(),
        ledger=SimpleNamespace(address=NOBODY),
    )
    await keep_base(parts, spec)
    context = Context(job, spec, parts, time.time, lambda: rounds.State(me=NOBODY, trains=False))
    return Verifier(job, spec, rows, files, open_mode(context), said)


class _Nobody:
    """A channel without peers: whose files are wanted, is the business of whoever fetches them."""

    def peers(self) -> tuple[()]:
        return ()


async def _in_thread(call: Callable[..., Any], *args: object) -> Any:
    return await trio.to_thread.run_sync(call, *args)
