"""The in-memory twin of TrainingJobs.sol: phases, rounds, escrow. Function by function in its order."""

from __future__ import annotations

from dataclasses import replace

from dfl_ledger import lap_order
from dfl_ledger.contracts import commitment
from dfl_ledger.memory_chain import Blocks, Token, Transaction
from dfl_ledger.memory_job import Job, Publication, position_to_settle, refundable_wei
from dfl_ledger.memory_registry import MemoryRegistry
from dfl_ledger.memory_terms import check_terms
from dfl_ledger.records import (
    Address,
    Cid,
    Contribution,
    JobId,
    JobTerms,
    Kind,
    Lease,
    Mode,
    Phase,
)

_NAME = "TrainingJobs"
_MAX_VOIDS = 3
_SLOTS = 4  # that the aggregate window is cut into


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
        check_terms(tx, terms)
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
            target=terms.target,
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
        in_time = active == job.round and job.phase in (Phase.OPEN, Phase.COMMIT)
        if (active and job.stands) or active > job.round or in_time:
            raise tx.refused("AlreadyJoined", job=number, node=node, round=active)
        target = job.round if job.phase is Phase.OPEN else job.round + 1
        job.active[node] = target
        if job.is_chained:
            job.lap[target].append(node)
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
        if job.is_chained:
            raise tx.refused("WrongMode", job=number, mode=int(job.terms.mode))
        active = job.active.get(node, 0)
        if not (0 < active <= round_ if job.stands else active == round_):
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
        if job.commits == min(job.terms.target or job.expected, job.expected):
            self._enter(tx, job, Phase.REVEAL, job.terms.reveal_window_s)

    def reveal(self, tx: Transaction, shown: Contribution, salt: bytes) -> None:
        number, round_ = shown.job, shown.round
        job, node = self._in_time(tx, number, round_, Phase.REVEAL), tx.sender
        if job.terms.mode is not Mode.ASYNC and shown.parent != job.model:
            raise tx.refused("ParentMismatch", job=number, round=round_, parent=_hex(shown.parent))
        if (round_, node) not in job.commitments:
            raise tx.refused("NotCommitted", job=number, round=round_, node=node)
        if (round_, node) in job.indexes:
            raise tx.refused("AlreadyRevealed", job=number, round=round_, node=node)
        computed = commitment(replace(shown, node=node), salt)
        if _sealed(computed) != job.commitments[round_, node]:
            raise tx.refused(
                "CommitmentMismatch", job=number, round=round_, node=node, computed="0x" + computed.hex()
            )
        # It may have joined the next round already, for fear of missing this phase.
        if not job.stands and job.active.get(node, 0) == round_:
            job.active[node] = round_ + 1
            job.expected_next += 1
        self._record(tx, job, shown)
        if job.reveals == job.commits:
            self._open_aggregate(tx, job)

    def hop(self, tx: Transaction, number: int, round_: int, accept: bool, model: Cid, samples: int) -> None:
        job, node = self._in_time(tx, number, round_, Phase.COMMIT), tx.sender
        if not job.is_chained:
            raise tx.refused("WrongMode", job=number, mode=int(job.terms.mode))
        lease = self.lease(number)
        if lease is None or lease.node != node:
            raise tx.refused("NotYourLease", job=number, round=round_, node=node)
        if accept and job.candidate is not None:
            job.model = job.candidate
        job.candidate = model if any(model.digest) else None  # the contract has zero for none
        job.active[node] = round_ + 1
        job.lap[round_ + 1].append(node)
        job.expected_next += 1
        self._record(tx, job, Contribution(job.job, round_, node, Kind.HOP, model, job.model, samples))
        self._next_lease(tx, job)

    def lease(self, number: int) -> Lease | None:
        job = self.jobs.get(number)
        if job is None or not job.is_chained or job.phase is not Phase.COMMIT:
            return None
        lap = job.lap[job.round]
        node = lap[lap_order.index_at(job.lap_seed, job.commits, len(lap))]
        return Lease(node, job.commits, job.deadline)

    def _record(self, tx: Transaction, job: Job, shown: Contribution) -> None:
        index = job.reveals
        job.indexes[shown.round, tx.sender] = index
        job.reveals += 1
        tx.emit(
            _NAME,
            "ContributionRevealed",
            job=job.job,
            round=shown.round,
            node=tx.sender,
            kind=int(shown.kind),
            index=index,
            update=_hex(shown.cid),
            parent=_hex(shown.parent),
            samples=shown.samples,
        )

    def publish_model(self, tx: Transaction, number: int, round_: int, model: Cid) -> None:
        job, node = self._in_time(tx, number, round_, Phase.AGGREGATE), tx.sender
        allowed_from = self.may_aggregate_at(number, node)
        if allowed_from is None:
            raise tx.refused("NotAggregator", job=number, round=round_, node=node)
        if tx.timestamp < allowed_from:
            error: dict[str, object] = {"job": number, "round": round_, "node": node, "from": allowed_from}
            raise tx.refused("NotYourTurn", **error)
        if job.is_chained and model not in (job.candidate, job.model):
            raise tx.refused("NotACandidate", job=number, round=round_, model=_hex(model))
        job.model = model
        job.candidate = None
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
            case Phase.COMMIT if job.is_chained:
                lease = self.lease(number)
                if lease is not None:
                    job.active[lease.node] = 0  # whoever misses its lease joins again
                self._next_lease(tx, job)
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
        amount = refundable_wei(job, tx.timestamp)
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
        return 0 if job is None or not job.phase.terminal else refundable_wei(job, now)

    def release(self, tx: Transaction, number: int, round_: int, total: int, to: Address) -> tuple[int, int]:
        """Move a settled round's money to the distributor: (amount, when it can be claimed)."""
        job = self.get(tx, number)
        position = position_to_settle(tx, job, round_)
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
        if job.phase is not phase:
            raise tx.refused("WrongPhase", job=number, phase=int(job.phase))
        if job.round != round_:
            raise tx.refused("WrongRound", job=number, round=round_, current=job.round)
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
        if job.is_chained:
            job.lap_seed = self._blocks.randomness(job.job, job.round).to_bytes(32, "big")
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
        if job.is_chained:
            self._emit_lease(tx, job)

    def _next_lease(self, tx: Transaction, job: Job) -> None:
        """The next in the lap's order; after the last one the lap counts, or is void."""
        job.commits += 1
        if job.commits < job.expected:
            job.deadline = tx.timestamp + job.terms.commit_window_s
            self._emit_lease(tx, job)
        elif job.reveals >= job.terms.quorum:
            self._open_aggregate(tx, job)
        else:
            self._void(tx, job)

    def _emit_lease(self, tx: Transaction, job: Job) -> None:
        lease = self.lease(job.job)
        if lease is not None:
            tx.emit(
                _NAME,
                "HopLeased",
                job=job.job,
                round=job.round,
                node=lease.node,
                position=lease.position,
                deadline=lease.until,
            )

    def _open_aggregate(self, tx: Transaction, job: Job) -> None:
        job.draw = self._blocks.randomness(job.job, job.round) % job.reveals
        self._enter(tx, job, Phase.AGGREGATE, job.terms.aggregate_window_s)

    def _next_round(self, tx: Transaction, job: Job, *, at_least: int) -> None:
        """COMMIT at once with enough members, else OPEN for others to join."""
        job.round += 1
        job.expected = job.expected_next + (job.expected if job.stands else 0)
        job.expected_next = 0
        job.commits = job.reveals = 0
        if job.expected >= at_least:
            self._open_commit(tx, job)
        else:
            self._enter(tx, job, Phase.OPEN, job.terms.open_window_s)

    def _void(self, tx: Transaction, job: Job) -> None:
        tx.emit(_NAME, "RoundVoided", job=job.job, round=job.round, phase=int(job.phase))
        job.voids += 1
        job.candidate = None
        if job.voids == _MAX_VOIDS:
            self._end(tx, job, Phase.FAILED)
        elif job.cancel_requested:
            self._end(tx, job, Phase.CANCELLED)
        else:
            self._next_round(tx, job, at_least=job.terms.min_nodes)

    def _end(self, tx: Transaction, job: Job, phase: Phase) -> None:
        job.phase = phase
        job.deadline = 0
        tx.emit(_NAME, "JobEnded", job=job.job, phase=int(phase))


def _sealed(commitment_: bytes) -> bytes:
    """As the contract keeps it: its lowest bit is taken for the mark of a reveal."""
    return commitment_[:-1] + bytes((commitment_[-1] & 0xFE,))


def _hex(cid: Cid) -> str:
    return "0x" + cid.digest.hex()
