"""A job of the in-memory contracts: what it keeps, and what of its rounds may be settled and refunded."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from dfl_ledger.memory_chain import Transaction
from dfl_ledger.records import (
    BANNED,
    NOBODY,
    Address,
    Cid,
    JobId,
    JobState,
    JobTerms,
    Mode,
    Payee,
    Phase,
    Publication,
    Revealed,
)

_NAME = "TrainingJobs"


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
    held_wei: int = 0  # of the escrow, what no round has earned yet
    spent_wei: int = 0
    voids: int = 0  # in a row
    cancel_requested: bool = False
    seal_block: int = 0  # in which AGGREGATE of the round opened
    settled: int = 0  # published rounds that are settled, or were passed over
    reopened_at: int = 0  # when a settlement was last overturned
    active: dict[Address, int] = field(default_factory=dict)
    bans: defaultdict[Address, int] = field(default_factory=lambda: defaultdict(int))
    declared: set[Address] = field(default_factory=set)
    commitments: dict[tuple[int, Address], bytes] = field(default_factory=dict)
    revealed: dict[tuple[int, Address], Revealed] = field(default_factory=dict)
    punished: set[tuple[int, Address]] = field(default_factory=set)
    unrevealed: set[int] = field(default_factory=set)  # rounds that ended in COMMIT: nobody could reveal
    published: list[Publication] = field(default_factory=list)
    payees: list[Payee] = field(default_factory=list)
    datasets: list[int] = field(default_factory=list)
    unsealed: int = 0
    key: bytes = bytes(32)  # of the last validation shard that is unsealed
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

    @property
    def refunded_wei(self) -> int:
        """With what was claimed beyond what is settled: as the contract has it, whatever is neither."""
        return self.terms.rounds * self.terms.round_budget_wei - self.held_wei - self.spent_wei

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

    def publication(self, round_: int) -> Publication | None:
        return next((p for p in self.published if p.round == round_), None)

    def position(self, round_: int) -> int | None:
        return next((i for i, p in enumerate(self.published) if p.round == round_), None)

    def payee_of(self, payee: Payee) -> int | None:
        """Its number."""
        return self.payees.index(payee) if payee in self.payees else None

    def until(self, published_at: int) -> int:
        """When a round's window to settle ends: after its scoring, or after what was settled was
        overturned.
        """
        until = published_at + 2 * self.terms.score_window_s + self.terms.settle_window_s
        return max(until, self.reopened_at + self.terms.settle_window_s) if self.reopened_at else until


def add_payee(tx: Transaction, job: Job, payee: Payee) -> int:
    """Give it a number, unless it has one."""
    number = job.payee_of(payee)
    if number is None:
        number = len(job.payees)
        job.payees.append(payee)
        tx.emit(_NAME, "PayeeAdded", job=job.job, index=number, account=payee.account, asset=payee.asset)
    return number


def add_asset(tx: Transaction, job: Job, asset: int) -> None:
    add_payee(tx, job, Payee(NOBODY, asset))


def leave(job: Job, node: Address) -> None:
    """Take a node out of those who are expected, where its absence would be waited for."""
    active = job.active.get(node, 0)
    if active == 0 or job.is_chained:
        return
    if active > job.round:
        job.expected_next -= 1
    elif job.stands or (job.phase is Phase.OPEN and active == job.round):
        job.expected -= 1


def unban(job: Job, node: Address) -> bool:
    """Take a ban back; True if no other stands."""
    job.bans[node] -= 1
    if job.bans[node]:
        return False
    job.active[node] = 0
    return True


def ban(job: Job, node: Address) -> None:
    job.bans[node] += 1
    if job.bans[node] == 1:
        leave(job, node)
        job.active[node] = BANNED


def position_to_settle(tx: Transaction, job: Job, round_: int) -> int:
    """The round's place among the published ones, if it may be settled now, but for its scores."""
    position = job.position(round_)
    if position is None:
        raise tx.refused("RoundNotPublished", job=job.job, round=round_)
    if position < job.settled:
        last = job.published[job.settled - 1].round
        raise tx.refused("RoundPassed", job=job.job, round=round_, lastSettled=last)
    if position > job.settled:
        # times rise: if the round just before is past its window, all earlier ones are
        earlier = job.published[position - 1]
        ahead = job.until(earlier.published_at)
        if tx.timestamp < ahead:
            raise tx.refused(
                "EarlierRoundOpen", job=job.job, round=round_, earlier=earlier.round, until=ahead
            )
    until = job.until(job.published[position].published_at)
    if tx.timestamp >= until:
        raise tx.refused("SettleWindowPassed", job=job.job, round=round_, until=until)
    return position


def refundable_wei(job: Job, timestamp: int) -> int:
    """What is held, but for the budget of each published round that may still be settled."""
    open_ = sum(1 for p in job.published[job.settled :] if timestamp < job.until(p.published_at))
    return max(0, job.held_wei - open_ * job.terms.round_budget_wei)
