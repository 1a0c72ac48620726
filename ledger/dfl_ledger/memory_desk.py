"""The in-memory twin of JobDesk.sol: jobs and their members, from the first promise to the last refund."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from eth_hash.auto import keccak

from dfl_ledger import terms as abi_terms
from dfl_ledger.memory_assets import MemoryAssets
from dfl_ledger.memory_chain import Blocks, Token, Transaction
from dfl_ledger.memory_job import (
    Job,
    add_asset,
    add_payee,
    ban,
    leave,
    position_to_settle,
    refundable_wei,
    unban,
)
from dfl_ledger.memory_registry import MemoryRegistry
from dfl_ledger.memory_terms import check_terms, check_use
from dfl_ledger.records import Address, AssetKind, Cid, JobId, JobTerms, Lease, Payee, Phase

_NAME = "TrainingJobs"
_MAX_NODE_DATASETS = 8
_MAX_DATASETS = 64


class MemoryDesk(ABC):
    """What is done about jobs outside the course of their rounds. `vault` is where the escrow lies."""

    def __init__(
        self, blocks: Blocks, token: Token, registry: MemoryRegistry, assets: MemoryAssets, vault: Address
    ) -> None:
        self._blocks = blocks
        self._token = token
        self._registry = registry
        self._assets = assets
        self._vault = vault
        self.jobs: dict[int, Job] = {}
        # what the score board and the distributor say, which are made after the jobs
        self.outcome: Callable[[Job, int, int], tuple[bool, int]] = lambda job, round_, now: (True, 0)
        self.final_at: Callable[[int], int] = lambda job: 0

    @abstractmethod
    def lease(self, number: int) -> Lease | None: ...

    def get(self, tx: Transaction, job: int) -> Job:
        if job not in self.jobs:
            raise tx.refused("JobUnknown", job=job)
        return self.jobs[job]

    # -- opening and joining --------------------------------------------------------------------------
    def create(self, tx: Transaction, terms: JobTerms) -> JobId:
        check_terms(tx, terms, self._registry, self._assets)
        escrow_wei = terms.rounds * terms.round_budget_wei
        self._token.move(tx.call, tx.sender, self._vault, escrow_wei)
        number = JobId(len(self.jobs) + 1)
        job = Job(number, tx.sender, terms, terms.model, tx.timestamp + terms.open_window_s)
        job.key, job.held_wei = terms.seal_anchor, escrow_wei
        self.jobs[number] = job
        tx.emit(
            _NAME,
            "JobCreated",
            job=number,
            requester=tx.sender,
            spec=_hex(terms.spec),
            terms=abi_terms.to_args(terms),
        )
        for asset in (terms.model_asset, terms.algorithm_asset):
            if asset:
                add_asset(tx, job, asset)
        self._emit_phase(tx, job)
        return number

    def join(
        self, tx: Transaction, number: int, datasets: Sequence[int] = (), shard: bytes | None = None
    ) -> None:
        """With `shard`, of 32 bytes, it declares what it trains on."""
        job = self._running(tx, number)
        node = self._actor(tx, job)
        if shard is not None and node in job.declared:
            raise tx.refused("AlreadyDeclared", job=number, node=node)
        missing = node not in job.declared if shard is None else not any(shard)
        if job.terms.audits and missing:
            raise tx.refused("ShardMissing", job=number, node=node)
        self._check_join(tx, job, node)
        self._check_datasets(tx, job, node, datasets)
        if shard is not None:
            job.declared.add(node)
            if any(shard):
                tx.emit(_NAME, "ShardCommitted", job=number, node=node, shard="0x" + shard.hex())
        self._join(tx, job, node)
        for asset in datasets:
            if asset not in job.datasets:
                job.datasets.append(asset)
                add_asset(tx, job, asset)
            place = job.datasets.index(asset)
            tx.emit(_NAME, "DatasetDeclared", job=number, node=node, asset=asset, place=place)

    def _check_join(self, tx: Transaction, job: Job, node: Address) -> None:
        if job.bans[node]:
            raise tx.refused("Banned", job=job.job, node=node)
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
            raise tx.refused("AlreadyJoined", job=job.job, node=node, round=active)

    def _join(self, tx: Transaction, job: Job, node: Address) -> None:
        target = job.round if job.phase is Phase.OPEN else job.round + 1
        job.active[node] = target
        if job.is_chained:
            job.lap[target].append(node)
        add_payee(tx, job, Payee(node, 0))
        tx.emit(_NAME, "NodeJoined", job=job.job, node=node, round=target)
        if job.phase is not Phase.OPEN:
            job.expected_next += 1
            return
        job.expected += 1
        if job.expected >= job.terms.min_nodes:
            self._open_commit(tx, job)

    def _check_datasets(self, tx: Transaction, job: Job, node: Address, datasets: Sequence[int]) -> None:
        if len(datasets) > _MAX_NODE_DATASETS:
            raise tx.refused("TooManyDatasets", job=job.job, count=len(datasets), most=_MAX_NODE_DATASETS)
        for asset in datasets:
            check_use(tx, self._assets, asset, AssetKind.DATASET, job.terms.data_bps)
            if not self._assets.may_use(node, asset):
                raise tx.refused("MayNotUse", asset=asset, node=node)
        count = len(set(job.datasets) | set(datasets))
        if count > _MAX_DATASETS:
            raise tx.refused("TooManyDatasets", job=job.job, count=count, most=_MAX_DATASETS)

    # -- keys of validation shards --------------------------------------------------------------------
    def unseal(self, tx: Transaction, number: int, position: int, key: bytes) -> None:
        job = self.get(tx, number)
        closed = job.phase in (Phase.REVEAL, Phase.AGGREGATE)
        late = position > job.completed or (position == job.completed and not closed)
        if position != job.unsealed or late:
            raise tx.refused("ShardNotDue", job=number, position=position, next=job.unsealed)
        if keccak(key) != job.key:
            raise tx.refused("WrongKey", job=number, position=position, key="0x" + key.hex())
        job.unsealed += 1
        job.key = key
        tx.emit(_NAME, "ShardUnsealed", job=number, position=position, key="0x" + key.hex())

    # -- members who do wrong -------------------------------------------------------------------------
    def punish(self, tx: Transaction, number: int, round_: int, node: Address) -> None:
        job = self.get(tx, number)
        over = round_ < job.round or (round_ == job.round and job.phase >= Phase.AGGREGATE)
        own = (round_, node)
        sealed = own in job.commitments and own not in job.revealed and own not in job.punished
        if not over or round_ in job.unrevealed or not sealed:
            raise tx.refused("NothingWithheld", job=number, round=round_, node=node)
        job.punished.add(own)
        tx.emit(_NAME, "RevealWithheld", job=number, round=round_, node=node)
        self._registry.slash(tx, node, job.terms.bond_wei, tx.sender)

    def expel(self, tx: Transaction, number: int, node: Address) -> None:
        job = self.get(tx, number)
        if job.bans[node]:
            raise tx.refused("Banned", job=number, node=node)
        if not job.active.get(node, 0):
            raise tx.refused("NotActive", job=number, round=job.round, node=node)
        stake, required = self._registry.stake_of(node), job.terms.required_stake_wei
        if self._registry.is_bonded(node) and stake >= required:
            raise tx.refused("StakeSuffices", node=node, stake=stake, required=required)
        leave(job, node)
        job.active[node] = 0
        tx.emit(_NAME, "NodeExpelled", job=number, node=node)

    def ban(self, tx: Transaction, job: Job, node: Address) -> None:
        """On the word of the score board."""
        ban(job, node)
        tx.emit(_NAME, "NodeBanned", job=job.job, node=node)

    def unban(self, tx: Transaction, job: Job, node: Address) -> None:
        """On the word of the score board."""
        if unban(job, node):
            tx.emit(_NAME, "NodeUnbanned", job=job.job, node=node)

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
        amount = self.refundable_wei(number, tx.timestamp)
        if amount == 0:
            raise tx.refused("NothingToRefund", job=number)
        job.held_wei -= amount
        self._token.move(tx.call, self._vault, job.requester, amount)
        tx.emit(_NAME, "Refunded", job=number, to=job.requester, amount=amount)

    def refundable_wei(self, number: int, now: int) -> int:
        """Nothing while a settlement can be overturned: what it left may go to another one."""
        job = self.jobs.get(number)
        if job is None or not job.phase.terminal or now < self.final_at(number):
            return 0
        return refundable_wei(job, now)

    # -- settlements, on the word of the distributor --------------------------------------------------
    def check_release(self, tx: Transaction, number: int, round_: int, total: int) -> tuple[Job, int, int]:
        """The job, the round's position and the least number of payees, if it may be settled now."""
        job = self.get(tx, number)
        position = position_to_settle(tx, job, round_)
        # never less than the budget, but where more was claimed than was settled
        least, most = job.spent_wei, job.spent_wei + min(job.held_wei, job.terms.round_budget_wei)
        if not least <= total <= most:
            raise tx.refused("TotalOutOfRange", job=number, total=total, least=least, most=most)
        payees = job.published[position].payees
        if job.terms.evaluators:
            scored, seated = self.outcome(job, round_, tx.timestamp)
            if not scored:
                raise tx.refused("StillScoring", job=number, round=round_)
            payees = max(payees, seated)
        return job, position, payees

    def release(self, job: Job, position: int, total: int) -> int:
        """Hand over the money of a round that `check_release` found may be settled; gives the amount."""
        amount = total - job.spent_wei
        job.settled = position + 1
        job.held_wei -= amount
        job.spent_wei = total
        return amount

    def retake(self, tx: Transaction, number: int, round_: int, previous_total: int, amount: int) -> None:
        """`amount` is what is left of what this settlement and those after it were handed."""
        job = self.get(tx, number)
        position = job.position(round_)
        assert position is not None  # it was settled  # noqa: S101
        job.settled = position
        job.held_wei += amount
        job.spent_wei = previous_total
        job.reopened_at = tx.timestamp
        tx.emit(_NAME, "RoundReopened", job=number, round=round_)

    # -- steps shared with the course of rounds -------------------------------------------------------
    def _actor(self, tx: Transaction, job: Job) -> Address:
        """Who acts: the sender, or the node that it is a delegate of."""
        if Payee(tx.sender, 0) in job.payees:
            return tx.sender
        return self._registry.principal_of(tx.sender)

    def _running(self, tx: Transaction, number: int) -> Job:
        job = self.get(tx, number)
        if job.phase.terminal:
            raise tx.refused("WrongPhase", job=number, phase=int(job.phase))
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

    def _end(self, tx: Transaction, job: Job, phase: Phase) -> None:
        job.phase = phase
        job.deadline = 0
        tx.emit(_NAME, "JobEnded", job=job.job, phase=int(phase))


def _hex(cid: Cid) -> str:
    return "0x" + cid.digest.hex()
