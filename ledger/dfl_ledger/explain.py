"""Why somebody was paid what: what was measured, by whom, the formula with its numbers, and why nothing came.

Reads the rows alone. Scores follow from the vectors that the chain has, so that they are known as soon as the
panel has shown them; money is told of once the round is settled. The formulas are those of rewards.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dfl_ledger import rewards
from dfl_ledger.errors import UsageError
from dfl_ledger.explain_round import Judgement, KnownJob, KnownRound, in_loss
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import NOBODY, REFUSED, Address, JobId
from dfl_ledger.rows import ContributionRow, Row, to_json
from dfl_ledger.rows_rewards import AssetRow


class Unpaid(Enum):
    """Why something has brought nothing, or nothing yet."""

    VOID = "the round is void: it ended without a model, and pays nothing"
    OPEN = "the round is still open"
    UNSCORED = "not scored yet"
    UNSETTLED = "the round has a model but no settlement yet"
    OVERTURNED = "its settlement was shown to be wrong, and there is no other yet"
    LAPSED = "nobody settled the round within its window; its budget went back to the requester"
    NO_EVIDENCE = "the round is settled, but its evidence is not here or does not support the settlement"
    REFUSED = "refused"
    WORTHLESS = "its measured worth is not above 0"
    WITHHELD = "it showed no scores"
    JUROR = "a juror of an appeal earns nothing"
    UNMEASURED = "it was declared after the round's panel was drawn, and not measured"
    WINDOW = "earned; the challenge window is still open"
    CLAIMABLE = "earned and not claimed yet"


@dataclass(frozen=True, slots=True)
class Money(Row):
    """What something brought in a round, and how it came to it. What is not known yet is None."""

    round_state: str  # "open", "published", "settled" or "void"
    settler: Address | None  # who vouches for the settlement
    evidence: str | None
    settlement_tx: str | None
    round_budget_wei: int
    pot_wei: int  # of the budget: what is shared among its like
    weight: int | None  # in 1e-9 of validation loss, or 1 where all share equally
    total_weight: int | None  # of the round
    reward_wei: int | None
    share: float | None  # of the round's budget, 0 to 1
    formula: str | None  # with its numbers
    claimable_at: int | None  # Unix seconds
    claim_tx: str | None  # the payment that covered it
    unpaid: Unpaid | None
    reason: str  # "" once it is paid
    notes: tuple[str, ...]  # what else happened to it


class _Explained(Row):
    """Its money stands beside its other fields in JSON."""

    __slots__ = ()
    money: Money

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = to_json(self)
        return {**told, **told.pop("money")}


@dataclass(frozen=True, slots=True)
class Explanation(_Explained):
    """One contribution and its money."""

    contribution: ContributionRow
    median: float | None  # in validation loss; None: not scored, or refused
    judgements: tuple[Judgement, ...]
    money: Money


@dataclass(frozen=True, slots=True)
class Evaluation(_Explained):
    """A seat of a panel and its money."""

    job: JobId
    round: int
    panel: int  # 0 scores a round, 1 + k is the jury of an appeal against its audit k
    seat: int
    evaluator: Address
    weight_wei: int
    committed_tx: str | None
    revealed_tx: str | None
    withheld_tx: str | None  # in which it lost a bond for showing nothing
    penalized_tx: str | None  # or for a score far from the median
    outliers: tuple[str, ...]  # whom it scored outside the tolerance
    money: Money


@dataclass(frozen=True, slots=True)
class AssetEarning(_Explained):
    """An asset in a round of a job that pays for it."""

    job: JobId
    round: int
    asset: int
    kind: str  # "dataset", "model" or "algorithm"
    owner: Address
    manifest: str
    used_by: tuple[Address, ...]  # who declared to train on it
    median: float | None  # what a data set was worth, in validation loss
    judgements: tuple[Judgement, ...]
    money: Money


class Explainer:
    """Explains rows of one ledger as of `now` (Unix seconds: whether challenge windows are over)."""

    def __init__(self, rows: LedgerRows, now: float) -> None:
        self._rows = rows
        self._now = now
        self._jobs: dict[int, KnownJob] = {}
        self._rounds: dict[tuple[int, int], KnownRound] = {}

    def contribution(self, c: ContributionRow) -> Explanation:
        round_, index = self._round(c.job, c.round), c.index
        median = weights = None
        if round_.medians:
            median = round_.medians[index]
            weights = _weights(round_, index)
        unpaid = _by_score(median, weights)
        why = c.why or "by the median of its evaluators"
        return Explanation(
            contribution=c,
            median=in_loss(median),
            judgements=round_.judgements(index, c.node),
            money=self._money(
                round_,
                (c.node, 0),
                pot_wei=round_.pots.compute_wei,
                weights=weights,
                reward_wei=c.reward_wei,
                unpaid=unpaid,
                detail=why if unpaid is Unpaid.REFUSED else "",
                notes=round_.notes(c.node),
            ),
        )

    def evaluation(self, job: int, round_: int, panel: int, seat: int) -> Evaluation:
        """Raises UsageError if there is no such seat."""
        found = self._round(job, round_)
        row = found.panel if panel == 0 else self._rows.panel(job, round_, panel)
        if row is None or seat >= len(row.seats):
            raise UsageError(f"job {job} round {round_} has no seat {seat} in panel {panel}")
        own = row.seats[seat]
        showed, pot_wei = own.vector is not None, 0 if panel else found.pots.evaluator_wei
        weights = (int(showed), len(row.seats)) if found.scored and not panel else None
        unpaid = Unpaid.WITHHELD if (weights is not None and not showed) or own.withheld_tx else None
        lost = f"lost its bond in {own.penalized_tx} for a score far from the median"
        return Evaluation(
            job=JobId(job),
            round=round_,
            panel=panel,
            seat=seat,
            evaluator=own.evaluator,
            weight_wei=own.weight_wei,
            committed_tx=own.committed_tx,
            revealed_tx=own.revealed_tx,
            withheld_tx=own.withheld_tx,
            penalized_tx=own.penalized_tx,
            outliers=() if panel else found.outliers(seat),
            money=self._money(
                found,
                (own.evaluator, 0),
                pot_wei=pot_wei,
                weights=weights,
                reward_wei=pot_wei // len(row.seats) * showed if found.leaves and not panel else None,
                unpaid=Unpaid.JUROR if panel else unpaid,
                detail=f"it lost its bond for that in {own.withheld_tx}" if own.withheld_tx else "",
                notes=(lost,) if own.penalized_tx else (),
            ),
        )

    def asset(self, job: int, round_: int, asset: AssetRow) -> AssetEarning:
        """Of an asset that is a payee of the job."""
        found, number = self._round(job, round_), asset.asset
        tools = {found.shares.model_asset: "model", found.shares.algorithm_asset: "algorithm"}
        kind, facts = tools.get(number, "dataset"), found.facts
        median = weights = unpaid = subject = None
        if kind != "dataset":
            pot_wei = found.pots.model_wei if kind == "model" else found.pots.algorithm_wei
            if found.medians:
                sound = any(score != REFUSED for score in found.medians[: found.pieces])
                weights = (int(sound), 1)
        else:
            pot_wei = found.pots.data_wei
            if facts is not None and number in facts.datasets:
                subject = found.pieces + facts.datasets.index(number)
            if found.medians and subject is not None:
                median = found.medians[subject]
                total = sum(max(worth, 0) for worth in found.medians[found.pieces :])
                weights = (max(median, 0), total)
            elif found.medians:
                unpaid = Unpaid.UNMEASURED
        leaf = next((leaf for leaf in found.leaves if leaf.asset == number), None)
        return AssetEarning(
            job=JobId(job),
            round=round_,
            asset=number,
            kind=kind,
            owner=asset.owner,
            manifest=asset.manifest,
            used_by=tuple(n for n, own in self._rows.datasets_by_node(job).items() if number in own),
            median=in_loss(median),
            judgements=() if subject is None else found.judgements(subject, NOBODY),
            money=self._money(
                found,
                (NOBODY, number),
                pot_wei=pot_wei,
                weights=weights,
                reward_wei=None if leaf is None else leaf.reward_wei,
                unpaid=unpaid or _by_score(median, weights),
            ),
        )

    # -- of an address --------------------------------------------------------------------------------
    def evaluations(
        self, evaluator: str | None, limit: int | None, job: int | None = None
    ) -> tuple[Evaluation, ...]:
        """The newest seats of an evaluator (None: of all), in the order of their rounds."""
        places = self._rows.seats_of(evaluator, job)
        return tuple(self.evaluation(*place) for place in places[-(limit or len(places)) :])

    def assets(
        self, owner: str | None, limit: int | None, job: int | None = None
    ) -> tuple[AssetEarning, ...]:
        """What the assets of an owner (None: of all) brought in the newest rounds that pay for them."""
        owned = {asset.asset: asset for asset in self._rows.assets(owner)}
        places = []
        for row in self._rows.jobs() if owned else ():
            paid = [owned[p.asset] for p in self._rows.payees(row.job) if p.asset in owned]
            if paid and job in (None, row.job):
                places += [(row.job, r.round, asset) for r in self._job(row.job).row.rounds for asset in paid]
        return tuple(self.asset(*place) for place in places[-(limit or len(places)) :])

    # -- what all have in common ----------------------------------------------------------------------
    def _money(
        self,
        round_: KnownRound,
        payee: tuple[Address, int],
        *,
        pot_wei: int,
        weights: tuple[int, int] | None,
        reward_wei: int | None,
        unpaid: Unpaid | None,
        detail: str = "",
        notes: Sequence[str] = (),
    ) -> Money:
        """`weights`: its own and that of all, once known. `unpaid`: why it earns nothing, where that does not
        depend on how far the round is."""
        settled, budget_wei = round_.settlement, round_.shares.round_budget_wei
        claim = round_.job.claim_of(payee, round_.round) if reward_wei else None
        if unpaid is None:
            unpaid = _pending(round_)
            detail = round_.progress() if unpaid is Unpaid.UNSCORED else ""
        if unpaid is None and not reward_wei:
            unpaid = Unpaid.WORTHLESS
        if unpaid is None:
            waits = settled is not None and self._now < settled.claimable_at
            unpaid = Unpaid.WINDOW if waits else Unpaid.CLAIMABLE
        return Money(
            round_state=round_.row.state,
            settler=None if settled is None else settled.settler,
            evidence=None if settled is None else settled.evidence,
            settlement_tx=None if settled is None else settled.tx,
            round_budget_wei=budget_wei,
            pot_wei=pot_wei,
            weight=None if weights is None else weights[0],
            total_weight=None if weights is None else weights[1],
            reward_wei=reward_wei,
            share=None if reward_wei is None else reward_wei / budget_wei if budget_wei else 0.0,
            formula=None if weights is None else _formula(pot_wei, *weights),
            claimable_at=None if settled is None else settled.claimable_at,
            claim_tx=None if claim is None else claim.tx,
            unpaid=None if claim is not None else unpaid,
            reason="" if claim is not None else f"{unpaid.value}: {detail}" if detail else unpaid.value,
            notes=tuple(notes),
        )

    def _job(self, job: int) -> KnownJob:
        if job not in self._jobs:
            self._jobs[job] = KnownJob.of(self._rows, job)
        return self._jobs[job]

    def _round(self, job: int, round_: int) -> KnownRound:
        if (job, round_) not in self._rounds:
            self._rounds[job, round_] = KnownRound(self._rows, self._job(job), round_)
        return self._rounds[job, round_]


def _weights(round_: KnownRound, index: int) -> tuple[int, int]:
    """A contribution's weight and the sum of all; if none is above 0, those accepted count alike."""
    packed = [rewards.contribution_weight(score) for score in round_.medians[: round_.pieces]]
    total = sum(map(rewards.compute_weight, packed))
    if total:
        return rewards.compute_weight(packed[index]), total
    return rewards.accepted(packed[index]), sum(map(rewards.accepted, packed))


def _by_score(median: int | None, weights: tuple[int, int] | None) -> Unpaid | None:
    """Why a thing that is scored earns nothing."""
    if median == REFUSED:
        return Unpaid.REFUSED
    return Unpaid.WORTHLESS if weights is not None and not weights[0] else None


def _formula(pot_wei: int, weight: int, total: int) -> str:
    return (
        f"{pot_wei} wei * {weight} // {total} = {pot_wei * weight // total} wei"
        if weight
        else "a weight of 0: nothing"
    )


def _pending(round_: KnownRound) -> Unpaid | None:
    """Why a round pays nobody, or nobody yet."""
    match round_.row.state:
        case "void":
            return Unpaid.VOID
        case "open":
            return Unpaid.OPEN
        case "published" if round_.job.row.refunded_wei:
            return Unpaid.LAPSED
        case "published" if not round_.scored:
            return Unpaid.UNSCORED
        case "published" if any(fallen.round == round_.round for fallen in round_.job.overturned):
            return Unpaid.OVERTURNED
        case "published":
            return Unpaid.UNSETTLED
    return None if round_.leaves else Unpaid.NO_EVIDENCE
