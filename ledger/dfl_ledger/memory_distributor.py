"""The in-memory twin of RewardDistributor.sol."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dfl_ledger import merkle
from dfl_ledger.memory_chain import Token, Transaction
from dfl_ledger.memory_jobs import MemoryJobs
from dfl_ledger.records import Address, Leaf, ProofStep, Settlement

_NAME = "RewardDistributor"


class MemoryDistributor:
    """Settlements and claims."""

    def __init__(self, token: Token, jobs: MemoryJobs, address: Address) -> None:
        self._token = token
        self._jobs = jobs
        self._address = address
        self._unclaimed: defaultdict[int, int] = defaultdict(int)
        self.claimed: defaultdict[tuple[int, Address, int], int] = defaultdict(int)
        self.settlements: dict[tuple[int, int], tuple[Settlement, int]] = {}

    def settle(self, tx: Transaction, settlement: Settlement) -> None:
        job, round_ = settlement.job, settlement.round
        total = settlement.total_wei
        amount, claimable_at = self._jobs.release(tx, job, round_, total, self._address)
        self.settlements[job, round_] = (settlement, claimable_at)
        self._unclaimed[job] += amount
        tx.emit(
            _NAME,
            "Settled",
            job=job,
            round=round_,
            settler=tx.sender,
            root="0x" + settlement.root.hex(),
            total=total,
            evidence="0x" + settlement.evidence.digest.hex(),
            claimableAt=claimable_at,
        )

    def claim(self, tx: Transaction, job: int, round_: int, leaf: Leaf, proof: Sequence[ProofStep]) -> None:
        found = self.settlements.get((job, round_))
        if found is None:
            raise tx.refused("NotSettled", job=job, round=round_)
        settlement, claimable_at = found
        if tx.timestamp < claimable_at:
            raise tx.refused("NotClaimableYet", job=job, round=round_, claimableAt=claimable_at)
        account, asset = leaf.account, leaf.asset
        if not merkle.verify(leaf, proof, settlement.root, settlement.total_wei):
            raise tx.refused("InvalidProof", job=job, round=round_, account=account, asset=asset)
        before = self.claimed[job, account, asset]
        if leaf.cumulative_wei <= before:
            raise tx.refused("NothingToClaim", job=job, account=account, asset=asset)
        amount, left = leaf.cumulative_wei - before, self._unclaimed[job]
        if amount > left:
            raise tx.refused("JobFundsExceeded", job=job, amount=amount, left=left)
        self._unclaimed[job] = left - amount
        self.claimed[job, account, asset] = leaf.cumulative_wei
        self._token.move(tx.call, self._address, account, amount)
        tx.emit(_NAME, "Claimed", job=job, round=round_, account=account, asset=asset, amount=amount)
