"""The in-memory twin of TrainingJobs.sol: phases, rounds, escrow. Function by function in its order."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfl_ledger.contracts import commitment
from dfl_ledger.memory_chain import Blocks, Token, Transaction
from dfl_ledger.memory_registry import MemoryRegistry
from dfl_ledger.records import Address, Cid, Contribution, JobId, JobState, JobTerms, Kind, Phase

_NAME = "TrainingJobs"
_MAX_VOIDS = 3
_SLOTS = 4  # that the aggregate window is cut into
_MAX_WINDOW_S = 30 * 24 * 3600 - 1


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
        )


class MemoryJobs:
    """All jobs of the chain."""

    def __init__(self, blocks: Blocks, token: Token, registry: MemoryRegistry, address: Address) -> None:
        self._blocks = blocks
        self._token = token
        self._registry = registry
        self._address = address
        self.jobs: dict[int, Job] = {}

    def get(self, tx: Transaction, job: int) -> Job:
        if job not in self.jobs:
            raise tx.refused("JobUnknown", job=job)
        return self.jobs[job]

    # -- opening and joining --------------------------------------------------------------------------
    def create(self, tx: Transaction, terms: JobTerms) -> JobId:
        _check_terms(tx, terms)
        self._token.move(tx.call, tx.sender, self._address, terms.rounds * terms.round_budget_wei)
        number = JobId(len(self.jobs) + 1)
        job = Job(number, tx.sender, terms, terms.model, tx.timestamp + terms.open_window_s)
        self.jobs[number] = job
        tx.emit(
            _NAME,
            "JobCreated",
            job=number,
            requester=tx.sender,
            spec=_hex(terms.spec),
            model=_hex(terms.model),
            mode=int(terms.mode),
            rounds=terms.rounds,
            quorum=terms.quorum,
            minNodes=terms.min_nodes,
            roundBudget=terms.round_budget_wei,
            requiredStake=terms.required_stake_wei,
        )
        self._emit_phase(tx, job)
        return number

    def join(self, tx: Transaction, number: int) -> None:
        job, node = self._running(tx, number), tx.sender
        if job.phase is Phase.OPEN:
            self._check_in_time(tx, job)
        if not self._registry.is_bonded(node):
            raise tx.refused("NodeNotBonded", node=node)
        stake, required = self._registry.stake_of(node), job.terms.required_stake_wei
        if stake < required:
            raise tx.refused("StakeTooLow", node=node, stake=stake, required=required)
        active = job.active.get(node, 0)
        # Whoever can still commit in this round has nothing to join.
        if active > job.round or (active == job.round and job.phase in (Phase.OPEN, Phase.COMMIT)):
            raise tx.refused("AlreadyJoined", job=number, node=node, round=active)
        target = job.round if job.phase is Phase.OPEN else job.round + 1
        job.active[node] = target
        tx.emit(_NAME, "NodeJoined", job=number, node=node, round=target)
        if job.phase is not Phase.OPEN:
            job.expected_next += 1
            return
        job.expected += 1
        if job.expected >= job.terms.min_nodes:
            self._open_commit(tx, job)

    # -- contributions --------------------------------------------------------------------------------
    def commit(self, tx: Transaction, number: int, round_: int, value: bytes) -> None:
        job, node = self._in_time(tx, number, round_, Phase.COMMIT), tx.sender
        if job.active.get(node, 0) != round_:
            raise tx.refused("NotActive", job=number, round=round_, node=node)
        if (round_, node) in job.commitments:
            raise tx.refused("AlreadyCommitted", job=number, round=round_, node=node)
        if not any(_sealed(value)):
            raise tx.refused("InvalidCommitment", commitment="0x" + value.hex())
        job.commitments[round_, node] = _sealed(value)
        job.commits += 1
        tx.emit(
            _NAME, "ContributionCommitted", job=number, round=round_, node=node, commitment="0x" + value.hex()
        )
        if job.commits == job.expected:
            self._enter(tx, job, Phase.REVEAL, job.terms.reveal_window_s)

    def reveal(
        self, tx: Transaction, number: int, round_: int, kind: Kind, update: Cid, samples: int, salt: bytes
    ) -> None:
        job, node = self._in_time(tx, number, round_, Phase.REVEAL), tx.sender
        if (round_, node) not in job.commitments:
            raise tx.refused("NotCommitted", job=number, round=round_, node=node)
        if (round_, node) in job.indexes:
            raise tx.refused("AlreadyRevealed", job=number, round=round_, node=node)
        shown = Contribution(JobId(number), round_, node, kind, update, job.model, samples)
        computed = commitment(shown, salt)
        if _sealed(computed) != job.commitments[round_, node]:
            raise tx.refused(
                "CommitmentMismatch", job=number, round=round_, node=node, computed="0x" + computed.hex()
            )
        index = job.reveals
        job.indexes[round_, node] = index
        job.reveals += 1
        # It may have joined the next round already, for fear of missing this phase.
        if job.active.get(node, 0) == round_:
            job.active[node] = round_ + 1
            job.expected_next += 1
        tx.emit(
            _NAME,
            "ContributionRevealed",
            job=number,
            round=round_,
            node=node,
            kind=int(kind),
            index=index,
            update=_hex(update),
            parent=_hex(job.model),
            samples=samples,
        )
        if job.reveals == job.commits:
            self._open_aggregate(tx, job)

    def publish_model(self, tx: Transaction, number: int, round_: int, model: Cid) -> None:
        job, node = self._in_time(tx, number, round_, Phase.AGGREGATE), tx.sender
        allowed_from = self.may_aggregate_at(number, node)
        if allowed_from is None:
            raise tx.refused("NotAggregator", job=number, round=round_, node=node)
        if tx.timestamp < allowed_from:
            error: dict[str, object] = {"job": number, "round": round_, "node": node, "from": allowed_from}
            raise tx.refused("NotYourTurn", **error)
        job.model = model
        job.completed += 1
        job.voids = 0
        job.published.append(Publication(round_, node, tx.timestamp))
        tx.emit(_NAME, "ModelPublished", job=number, round=round_, aggregator=node, model=_hex(model))
        if job.completed == job.terms.rounds:
            self._end(tx, job, Phase.COMPLETED)
        elif job.cancel_requested:
            self._end(tx, job, Phase.CANCELLED)
        else:
            self._next_round(tx, job, at_least=job.terms.quorum)

    def may_aggregate_at(self, number: int, node: Address) -> int | None:
        job = self.jobs.get(number)
        if job is None or job.phase is not Phase.AGGREGATE:
            return None
        index = job.indexes.get((job.round, node))
        if index is None:
            return None
        rank = (index - job.draw) % job.reveals
        window = job.terms.aggregate_window_s
        slot = window // min(job.reveals, _SLOTS)
        return job.deadline - window + slot * min(rank, _SLOTS - 1)

    # -- the clock ------------------------------------------------------------------------------------
    def advance(self, tx: Transaction, number: int) -> None:
        job = self._running(tx, number)
        if tx.timestamp < job.deadline:
            raise tx.refused("DeadlineAhead", job=number, deadline=job.deadline)
        quorum = job.terms.quorum
        match job.phase:
            case Phase.OPEN if job.expected >= quorum:
                self._open_commit(tx, job)
            case Phase.OPEN:
                self._end(tx, job, Phase.FAILED)
            case Phase.COMMIT if job.commits >= quorum:
                self._enter(tx, job, Phase.REVEAL, job.terms.reveal_window_s)
            case Phase.REVEAL if job.reveals >= quorum:
                self._open_aggregate(tx, job)
            case _:
                self._void(tx, job)

    # -- the end --------------------------------------------------------------------------------------
    def cancel(self, tx: Transaction, number: int) -> None:
        job = self._running(tx, number)
        if tx.sender != job.requester:
            raise tx.refused("NotRequester", job=number, caller=tx.sender)
        if job.cancel_requested:
            raise tx.refused("CancelAlreadyRequested", job=number)
        job.cancel_requested = True
        tx.emit(_NAME, "JobCancelRequested", job=number)
        if job.phase is Phase.OPEN and job.round == 1:
            self._end(tx, job, Phase.CANCELLED)

    def refund(self, tx: Transaction, number: int) -> None:
        job = self.get(tx, number)
        if not job.phase.terminal:
            raise tx.refused("WrongPhase", job=number, phase=int(job.phase))
        amount = _refundable_wei(job, tx.timestamp)
        if amount == 0:
            raise tx.refused("NothingToRefund", job=number)
        job.refunded_wei += amount
        self._token.move(tx.call, self._address, job.requester, amount)
        tx.emit(_NAME, "Refunded", job=number, to=job.requester, amount=amount)

    def publication(self, number: int, round_: int) -> tuple[Address, int] | None:
        job = self.jobs.get(number)
        published = () if job is None else job.published
        return next(((p.publisher, p.at) for p in published if p.round == round_), None)

    def refundable_wei(self, number: int, now: int) -> int:
        job = self.jobs.get(number)
        return 0 if job is None or not job.phase.terminal else _refundable_wei(job, now)

    def release(self, tx: Transaction, number: int, round_: int, total: int, to: Address) -> tuple[int, int]:
        """Move a settled round's money to the distributor: (amount, when it can be claimed)."""
        job = self.get(tx, number)
        position = _position_to_settle(tx, job, round_)
        least, most = job.spent_wei, job.spent_wei + job.terms.round_budget_wei
        if not least <= total <= most:
            raise tx.refused("TotalOutOfRange", job=number, total=total, least=least, most=most)
        amount = total - job.spent_wei
        job.settled = position + 1
        job.spent_wei = total
        self._token.move(tx.call, self._address, to, amount)
        return amount, tx.timestamp + job.terms.challenge_window_s

    # -- steps shared by several ----------------------------------------------------------------------
    def _running(self, tx: Transaction, number: int) -> Job:
        job = self.get(tx, number)
        if job.phase.terminal:
            raise tx.refused("WrongPhase", job=number, phase=int(job.phase))
        return job

    def _in_time(self, tx: Transaction, number: int, round_: int, phase: Phase) -> Job:
        job = self.get(tx, number)
        if job.round != round_:
            raise tx.refused("WrongRound", job=number, round=round_, current=job.round)
        if job.phase is not phase:
            raise tx.refused("WrongPhase", job=number, phase=int(job.phase))
        self._check_in_time(tx, job)
        return job

    def _check_in_time(self, tx: Transaction, job: Job) -> None:
        if tx.timestamp >= job.deadline:
            raise tx.refused("DeadlinePassed", job=job.job, deadline=job.deadline)

    def _enter(self, tx: Transaction, job: Job, phase: Phase, window_s: int) -> None:
        job.phase = phase
        job.deadline = tx.timestamp + window_s
        self._emit_phase(tx, job)

    def _emit_phase(self, tx: Transaction, job: Job) -> None:
        tx.emit(
            _NAME,
            "PhaseChanged",
            job=job.job,
            round=job.round,
            phase=int(job.phase),
            deadline=job.deadline,
        )

    def _open_commit(self, tx: Transaction, job: Job) -> None:
        self._enter(tx, job, Phase.COMMIT, job.terms.commit_window_s)
        tx.emit(
            _NAME,
            "RoundOpened",
            job=job.job,
            round=job.round,
            parent=_hex(job.model),
            expected=job.expected,
            deadline=job.deadline,
        )

    def _open_aggregate(self, tx: Transaction, job: Job) -> None:
        job.draw = self._blocks.randomness(job.job, job.round) % job.reveals
        self._enter(tx, job, Phase.AGGREGATE, job.terms.aggregate_window_s)

    def _next_round(self, tx: Transaction, job: Job, *, at_least: int) -> None:
        """COMMIT at once with enough members, else OPEN for others to join."""
        job.round += 1
        job.expected, job.expected_next = job.expected_next, 0
        job.commits = job.reveals = 0
        if job.expected >= at_least:
            self._open_commit(tx, job)
        else:
            self._enter(tx, job, Phase.OPEN, job.terms.open_window_s)

    def _void(self, tx: Transaction, job: Job) -> None:
        tx.emit(_NAME, "RoundVoided", job=job.job, round=job.round, phase=int(job.phase))
        job.voids += 1
        if job.cancel_requested:
            self._end(tx, job, Phase.CANCELLED)
        elif job.voids == _MAX_VOIDS:
            self._end(tx, job, Phase.FAILED)
        else:
            self._next_round(tx, job, at_least=job.terms.min_nodes)

    def _end(self, tx: Transaction, job: Job, phase: Phase) -> None:
        job.phase = phase
        job.deadline = 0
        tx.emit(_NAME, "JobEnded", job=job.job, phase=int(phase))


def _check_terms(tx: Transaction, terms: JobTerms) -> None:
    if not any(terms.spec.digest):
        raise tx.refused("TermOutOfRange", term="spec", value=0, least=1, most=2**256 - 1)
    many = 2**32 - 1
    limits = (
        ("rounds", terms.rounds, 1, many),
        ("quorum", terms.quorum, 1, many),
        ("minNodes", terms.min_nodes, terms.quorum, many),
        ("openWindow", terms.open_window_s, 1, _MAX_WINDOW_S),
        ("commitWindow", terms.commit_window_s, 1, _MAX_WINDOW_S),
        ("revealWindow", terms.reveal_window_s, 1, _MAX_WINDOW_S),
        ("aggregateWindow", terms.aggregate_window_s, 1, _MAX_WINDOW_S),
        ("settleWindow", terms.settle_window_s, 2, _MAX_WINDOW_S),
        ("challengeWindow", terms.challenge_window_s, 1, _MAX_WINDOW_S),
        ("roundBudget", terms.round_budget_wei, 1, (2**112 - 1) // max(terms.rounds, 1)),
    )
    for term, value, least, most in limits:
        if not least <= value <= most:
            raise tx.refused("TermOutOfRange", term=term, value=value, least=least, most=most)


def _position_to_settle(tx: Transaction, job: Job, round_: int) -> int:
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


def _refundable_wei(job: Job, timestamp: int) -> int:
    """What is held, but for the budget of each published round that may still be settled."""
    held = job.terms.rounds * job.terms.round_budget_wei - job.spent_wei - job.refunded_wei
    settleable = sum(1 for p in job.published[job.settled :] if timestamp < p.at + job.terms.settle_window_s)
    return held - settleable * job.terms.round_budget_wei


def _sealed(commitment_: bytes) -> bytes:
    """As the contract keeps it: its lowest bit is taken for the mark of a reveal."""
    return commitment_[:-1] + bytes((commitment_[-1] & 0xFE,))


def _hex(cid: Cid) -> str:
    return "0x" + cid.digest.hex()
