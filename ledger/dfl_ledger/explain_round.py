"""What is known of a round by whoever explains a payment: its panel, its medians, how far its money is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from dfl_ledger import audit, vectors
from dfl_ledger.errors import UsageError
from dfl_ledger.facts import RoundFacts, Shares
from dfl_ledger.median import is_outlier
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import NOBODY, REFUSED, Address, JobTerms, Leaf
from dfl_ledger.recount import name_of
from dfl_ledger.rewards import Pots
from dfl_ledger.rows import SCORES_PER_UNIT, ClaimRow, JobRow, RoundRow, Row, SettlementRow
from dfl_ledger.rows_rewards import AuditRow, OverturnedRow, PanelRow


@dataclass(frozen=True, slots=True)
class Judgement(Row):
    """What one seat of the panel said of something. Scores are in validation loss."""

    seat: int
    evaluator: Address
    weight_wei: int
    score: float | None  # None: refused, or not shown (`tx` None)
    refused: bool
    counts: bool  # False: nobody judges its own piece
    outlier: bool  # outside the tolerance around the median
    tx: str | None  # in which it was shown


@dataclass(frozen=True, slots=True)
class KnownJob:
    """A job, what it promises, and what it paid."""

    row: JobRow
    terms: JobTerms
    claims: tuple[ClaimRow, ...]
    overturned: tuple[OverturnedRow, ...]
    audits: tuple[AuditRow, ...]
    bans: frozenset[Address]

    @classmethod
    def of(cls, rows: LedgerRows, job: int) -> KnownJob:
        """Raises UsageError if there is none."""
        row, terms = rows.job(job), rows.terms(job)
        if row is None or terms is None:
            raise UsageError(f"there is no job {job}", why="the ledger has none")
        claims = audit.payments(rows, job)
        return cls(row, terms, claims, rows.overturned(job), rows.audits(job), rows.bans(job))

    def claim_of(self, payee: tuple[Address, int], round_: int) -> ClaimRow | None:
        """The payment that covered what an account (asset 0) or an asset earned in a round."""
        account, asset = payee
        for paid in self.claims:
            same = paid.asset == asset and (asset or paid.account == account)
            if same and paid.round >= round_:
                return paid
        return None


@dataclass
class KnownRound:
    """One round of it."""

    rows: LedgerRows = field(repr=False)
    job: KnownJob
    round: int

    @cached_property
    def row(self) -> RoundRow:
        return next(row for row in self.job.row.rounds if row.round == self.round)

    @cached_property
    def pots(self) -> Pots:
        return Pots.of(self.shares)

    @cached_property
    def shares(self) -> Shares:
        return Shares.of(self.job.terms)

    @cached_property
    def settlement(self) -> SettlementRow | None:
        """With its lines, once its evidence was checked."""
        return audit.settlement(self.rows, self.job.row.job, self.round)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return () if self.settlement is None else self.settlement.leaves

    @cached_property
    def panel(self) -> PanelRow | None:
        return self.rows.panel(self.job.row.job, self.round)

    @cached_property
    def facts(self) -> RoundFacts | None:
        """None before the round has a model."""
        known = self.row.state in ("published", "settled")
        return self.rows.round_facts(self.job.row.job, self.round) if known else None

    @property
    def pieces(self) -> int:
        """Contributions: the first subjects of a vector."""
        return 0 if self.facts is None else len(self.facts.contributions)

    @property
    def scored(self) -> bool:
        """The panel has said all that it will say: it was settled, or all who committed have shown theirs."""
        if self.facts is None:
            return False
        if self.settlement is not None or not self.job.terms.evaluators:
            return True
        seats = () if self.panel is None else self.panel.seats
        committed = [seat for seat in seats if seat.committed_tx]
        shown = [seat for seat in committed if seat.revealed_tx]
        return bool(shown) and len(shown) == len(committed)

    @cached_property
    def medians(self) -> tuple[int, ...]:
        """Of contributions, then of data sets; empty before the round is scored."""
        return self.facts.medians if self.facts is not None and self.scored else ()

    def judgements(self, subject: int, judged: Address) -> tuple[Judgement, ...]:
        """What each seat said of a subject; `judged` has no say."""
        if self.facts is None or self.panel is None:
            return ()
        median = self.medians[subject] if self.medians else None
        found = []
        for seat in self.panel.seats:
            score = self.facts.scores[seat.seat][subject] if seat.seat in self.facts.scores else None
            counts = seat.evaluator != judged
            found.append(
                Judgement(
                    seat=seat.seat,
                    evaluator=seat.evaluator,
                    weight_wei=seat.weight_wei,
                    score=in_loss(score),
                    refused=score == REFUSED,
                    counts=counts,
                    outlier=counts and None not in (score, median) and is_outlier(score or 0, median or 0),
                    tx=seat.revealed_tx,
                )
            )
        return tuple(found)

    def outliers(self, seat: int) -> tuple[str, ...]:
        """Whom a seat scored outside the tolerance of the median."""
        facts = self.facts
        if facts is None or seat not in facts.scores:
            return ()
        nodes = [piece.node for piece in facts.contributions] + [NOBODY] * len(facts.datasets)
        return tuple(
            name_of(facts, subject)
            for subject, median in enumerate(self.medians)
            if nodes[subject] != facts.ballots[seat].evaluator
            and is_outlier(facts.scores[seat][subject], median)
        )

    def progress(self) -> str:
        """How far the panel is."""
        if self.panel is None:
            return f"its {self.job.terms.evaluators} evaluators are not drawn yet"
        seats = self.panel.seats
        committed = sum(seat.committed_tx is not None for seat in seats)
        shown = sum(seat.revealed_tx is not None for seat in seats)
        return f"of {len(seats)} evaluators {committed} have committed to their scores and {shown} shown them"

    def _failed_audit(self, failed: AuditRow) -> str:
        """What became of it, and who said what."""
        end = {
            None: "was appealed" if failed.appealed else "may be appealed",
            True: "stands",
            False: "was overruled on appeal",
        }
        told = f"its audit {failed.audit} failed, which {end[failed.upheld]}"
        if self.facts is not None and failed.audit < self.facts.audits:
            subject = len(self.facts.contributions) + len(self.facts.datasets) + failed.audit
            said = {self.facts.ballots[seat].evaluator: v[subject] for seat, v in self.facts.scores.items()}
            told += f"; its jurors: {_votes(said, failed.node)}"
        jury = self.rows.panel(self.job.row.job, self.round, failed.audit + 1) if failed.appealed else None
        if jury is not None:
            shown = ((seat.evaluator, seat.vector) for seat in jury.seats)
            heard = {node: vectors.decode(vector, 1)[0] for node, vector in shown if vector is not None}
            told += f"; the appeal's: {_votes(heard, failed.node)}"
        return told

    def _sealed(self) -> str:
        """That there were no validation rows to score the round on, if so."""
        if not any(self.job.terms.seal_anchor) or not self.scored:
            return ""
        found, shared = self.rows.unsealed(self.job.row.job, self.round), "what was accepted shares alike"
        if found is None:
            return f"its requester did not unseal the round's validation shard: {shared}"
        if found.late_s is None or found.in_time:
            return ""
        late = f"{found.late_s} s after its model was published, and {found.due_s} s were allowed"
        return f"its requester unsealed the round's validation shard too late, {late}: {shared}"

    def notes(self, node: Address) -> tuple[str, ...]:
        """What else befell the round, or its contributor."""
        notes = [
            f"a settlement of {fallen.settler} was overturned in {fallen.tx} by {fallen.challenger}"
            + (f": its {fallen.why} was wrong" if fallen.why else ": an earlier one was wrong")
            for fallen in self.job.overturned
            if fallen.round == self.round
        ]
        notes += [
            self._failed_audit(failed)
            for failed in self.job.audits
            if failed.node == node and failed.round == self.round and failed.appeal_until is not None
        ]
        if sealed := self._sealed():
            notes.append(sealed)
        if node in self.job.bans:
            notes.append("its node is banned from the job: it can earn nothing more there")
        return tuple(notes)


def _votes(votes: Mapping[Address, int], judged: Address) -> str:
    """`0xab… passed, 0xcd… failed`, without the word of whom it is about."""
    names = {1: "passed", 0: "cannot tell", -1: "failed"}
    told = [f"{n} {names[(vote > 0) - (vote < 0)]}" for n, vote in votes.items() if n != judged]
    return ", ".join(told) or "none said anything"


def in_loss(score: int | None) -> float | None:
    """A score in validation loss; None for a refused one."""
    return None if score is None or score == REFUSED else score / SCORES_PER_UNIT
