"""A job of the in-memory contracts: what it keeps, and what of its rounds may be settled and refunded."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from dfl_ledger.memory_chain import Transaction
from dfl_ledger.records import Address, Cid, JobId, JobState, JobTerms, Mode, Phase


@dataclass(frozen=True)
class Publication:
    """A round that ended with a model."""

    round: int
    publisher: Address
    at: int


@dataclass
class Job:
    """A job's storage."""

    job: JobId
    requester: Address
    terms: JobTerms
    model: Cid
    deadline: int
    phase: Phase = Phase.OPEN
    round: int = 1
    completed: int = 0
    expected: int = 0
    expected_next: int = 0  # members active in round + 1
    commits: int = 0
    reveals: int = 0
    draw: int = 0
    spent_wei: int = 0
    refunded_wei: int = 0
    voids: int = 0  # in a row
    cancel_requested: bool = False
    settled: int = 0  # published rounds that are settled, or were passed over
    active: dict[Address, int] = field(default_factory=dict)
    commitments: dict[tuple[int, Address], bytes] = field(default_factory=dict)
    indexes: dict[tuple[int, Address], int] = field(default_factory=dict)  # of revealed contributions
    published: list[Publication] = field(default_factory=list)
    candidate: Cid | None = None
    lap_seed: bytes = bytes(32)
    lap: dict[int, list[Address]] = field(default_factory=lambda: defaultdict(list))  # members by round

    @property
    def stands(self) -> bool:
        """Members stay members, whether they contribute or not."""
        return self.terms.target > 0

    @property
    def is_chained(self) -> bool:
        return self.terms.mode is Mode.CHAINED

    def state(self) -> JobState:
        return JobState(
            self.job,
            self.requester,
            self.terms,
            self.phase,
            self.round,
            self.completed,
            self.deadline,
            self.model,
            self.expected,
            self.commits,
            self.reveals,
            self.draw,
            self.spent_wei,
            self.refunded_wei,
            self.candidate,
        )


def position_to_settle(tx: Transaction, job: Job, round_: int) -> int:
    """The round's place among the published ones, if the sender may settle it now."""
    window = job.terms.settle_window_s
    position = next((i for i, p in enumerate(job.published) if p.round == round_), None)
    if position is None:
        raise tx.refused("RoundNotPublished", job=job.job, round=round_)
    if position < job.settled:
        last = job.published[job.settled - 1].round
        raise tx.refused("RoundPassed", job=job.job, round=round_, lastSettled=last)
    if position > job.settled:
        earlier = job.published[position - 1]
        until = earlier.at + window
        if tx.timestamp < until:
            raise tx.refused(
                "EarlierRoundOpen", job=job.job, round=round_, earlier=earlier.round, until=until
            )
    own = job.published[position]
    if tx.timestamp >= own.at + window:
        raise tx.refused("SettleWindowPassed", job=job.job, round=round_, until=own.at + window)
    others_from = own.at + window // 2
    is_other = (round_, tx.sender) in job.indexes and tx.timestamp >= others_from
    if tx.sender != own.publisher and not is_other:
        raise tx.refused("NotSettler", job=job.job, round=round_, account=tx.sender, othersFrom=others_from)
    return position


def refundable_wei(job: Job, timestamp: int) -> int:
    """What is held, but for the budget of each published round that may still be settled."""
    held = job.terms.rounds * job.terms.round_budget_wei - job.spent_wei - job.refunded_wei
    settleable = sum(1 for p in job.published[job.settled :] if timestamp < p.at + job.terms.settle_window_s)
    return held - settleable * job.terms.round_budget_wei
