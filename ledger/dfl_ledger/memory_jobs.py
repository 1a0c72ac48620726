"""The in-memory twin of TrainingJobs.sol: the course of rounds. Its other half is memory_desk.py."""

from __future__ import annotations

from dataclasses import replace

from dfl_ledger import lap_order
from dfl_ledger.contracts import commitment
from dfl_ledger.memory_chain import Transaction
from dfl_ledger.memory_desk import MemoryDesk
from dfl_ledger.memory_job import Job
from dfl_ledger.records import (
    Address,
    Cid,
    Contribution,
    Kind,
    Lease,
    Mode,
    Phase,
    Publication,
    Revealed,
)

_NAME = "TrainingJobs"
_MAX_VOIDS = 3
_SLOTS = 4  # that the aggregate window is cut into


class MemoryJobs(MemoryDesk):
    """All jobs of the chain."""

    # -- contributions --------------------------------------------------------------------------------
    def commit(self, tx: Transaction, number: int, round_: int, value: bytes) -> None:
        job = self._in_time(tx, number, round_, Phase.COMMIT)
        if job.is_chained:
            raise tx.refused("WrongMode", job=number, mode=int(job.terms.mode))
        node = self._actor(tx, job)
        active = job.active.get(node, 0)
        if not (0 < active <= round_ if job.stands else active == round_):
            raise tx.refused("NotActive", job=number, round=round_, node=node)
        if (round_, node) in job.commitments:
            raise tx.refused("AlreadyCommitted", job=number, round=round_, node=node)
        if int.from_bytes(value, "big") <= 3:
            raise tx.refused("InvalidCommitment", commitment="0x" + value.hex())
        job.commitments[round_, node] = _sealed(value)
        job.commits += 1
        tx.emit(
            _NAME, "ContributionCommitted", job=number, round=round_, node=node, commitment="0x" + value.hex()
        )
        # more than enough may have committed, if one that was expected was shut out
        if job.commits >= min(job.terms.target or job.expected, job.expected):
            self._enter(tx, job, Phase.REVEAL, job.terms.reveal_window_s)

    def reveal(self, tx: Transaction, shown: Contribution, salt: bytes) -> None:
        number, round_ = shown.job, shown.round
        job = self._in_time(tx, number, round_, Phase.REVEAL)
        if job.terms.mode is not Mode.ASYNC and shown.parent != job.model:
            raise tx.refused("ParentMismatch", job=number, round=round_, parent=_hex(shown.parent))
        node = self._actor(tx, job)
        if (round_, node) not in job.commitments:
            raise tx.refused("NotCommitted", job=number, round=round_, node=node)
        if (round_, node) in job.revealed:
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
        self._record(tx, job, replace(shown, node=node))
        if job.reveals == job.commits:
            self._open_aggregate(tx, job)

    def hop(self, tx: Transaction, number: int, round_: int, accept: bool, model: Cid, samples: int) -> None:
        job = self._in_time(tx, number, round_, Phase.COMMIT)
        if not job.is_chained:
            raise tx.refused("WrongMode", job=number, mode=int(job.terms.mode))
        node = self._actor(tx, job)
        lease = self.lease(number)
        if lease is None or lease.node != node:
            raise tx.refused("NotYourLease", job=number, round=round_, node=node)
        if job.active.get(node, 0) != round_:  # it may have been shut out since the lap began
            raise tx.refused("NotActive", job=number, round=round_, node=node)
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
        job.revealed[shown.round, shown.node] = Revealed(index, shown.kind, shown.samples)
        job.reveals += 1
        tx.emit(
            _NAME,
            "ContributionRevealed",
            job=job.job,
            round=shown.round,
            node=shown.node,
            kind=int(shown.kind),
            index=index,
            update=_hex(shown.cid),
            parent=_hex(shown.parent),
            samples=shown.samples,
        )

    def publish_model(self, tx: Transaction, number: int, round_: int, model: Cid) -> None:
        job = self._in_time(tx, number, round_, Phase.AGGREGATE)
        node = self._actor(tx, job)
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
        job.published.append(
            Publication(
                tx.timestamp,
                round_,
                job.seal_block,
                job.reveals,
                job.revealed[round_, node].index,
                len(job.payees),
            )
        )
        tx.emit(_NAME, "ModelPublished", job=number, round=round_, aggregator=node, model=_hex(model))
        if job.completed == job.terms.rounds:
            self._end(tx, job, Phase.COMPLETED)
        elif job.cancel_requested:
            self._end(tx, job, Phase.CANCELLED)
        else:
            self._next_round(tx, job, at_least=0)

    def may_aggregate_at(self, number: int, node: Address) -> int | None:
        job = self.jobs.get(number)
        if job is None or job.phase is not Phase.AGGREGATE:
            return None
        own = job.revealed.get((job.round, node))
        if own is None:
            return None
        rank = (own.index - job.draw) % job.reveals
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
                if lease is not None and job.active.get(lease.node, 0) == job.round:
                    job.active[lease.node] = 0  # whoever misses its lease joins again
                self._next_lease(tx, job)
            case Phase.COMMIT if job.commits >= quorum:
                self._enter(tx, job, Phase.REVEAL, job.terms.reveal_window_s)
            case Phase.REVEAL if job.reveals >= quorum:
                self._open_aggregate(tx, job)
            case _:
                self._void(tx, job)

    # -- steps shared by several ----------------------------------------------------------------------
    def _in_time(self, tx: Transaction, number: int, round_: int, phase: Phase) -> Job:
        job = self.get(tx, number)
        if job.phase is not phase:
            raise tx.refused("WrongPhase", job=number, phase=int(job.phase))
        if job.round != round_:
            raise tx.refused("WrongRound", job=number, round=round_, current=job.round)
        self._check_in_time(tx, job)
        return job

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

    def _open_aggregate(self, tx: Transaction, job: Job) -> None:
        # not before: whoever knew which place is audited could reveal so as to come at another
        job.seal_block = tx.block
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
        if job.phase is Phase.COMMIT:
            job.unrevealed.add(job.round)
        job.voids += 1
        job.candidate = None
        if job.voids == _MAX_VOIDS:
            self._end(tx, job, Phase.FAILED)
        elif job.cancel_requested:
            self._end(tx, job, Phase.CANCELLED)
        else:
            self._next_round(tx, job, at_least=job.terms.min_nodes)


def _sealed(commitment_: bytes) -> bytes:
    """As the contract keeps it: its lowest bit is taken for the mark of a reveal."""
    return commitment_[:-1] + bytes((commitment_[-1] & 0xFE,))


def _hex(cid: Cid) -> str:
    return "0x" + cid.digest.hex()
