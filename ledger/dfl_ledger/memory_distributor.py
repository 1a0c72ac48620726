"""The in-memory twin of RewardDistributor.sol: the escrow, settlements and claims. Challenges:
memory_challenges.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from eth_hash.auto import keccak

from dfl_ledger import merkle
from dfl_ledger.memory_assets import MemoryAssets
from dfl_ledger.memory_chain import Token, Transaction
from dfl_ledger.memory_jobs import MemoryJobs
from dfl_ledger.memory_registry import MemoryRegistry
from dfl_ledger.merkle import Top
from dfl_ledger.records import (
    NOBODY,
    Address,
    ClaimRequest,
    Fault,
    JobId,
    Opening,
    Settlement,
    SettlementState,
)

MAX_CLAIMS = 32
_NAME = "RewardDistributor"


@dataclass
class Account:
    """What is known of a job."""

    unclaimed_wei: int = 0
    head: int = 0  # the round settled last, 0 if none is
    epoch: int = 1  # one more than settlements overturned so far


def digest_of(opening: Opening) -> bytes:
    """The hash that the chain keeps of it."""
    settler = bytes.fromhex(opening.settler[2:]).rjust(32, b"\0")
    return keccak(opening.score_root + opening.weights.to_bytes(32, "big") + settler)


class MemoryDistributor:
    """Settlements and claims."""

    def __init__(
        self, token: Token, registry: MemoryRegistry, assets: MemoryAssets, jobs: MemoryJobs, address: Address
    ) -> None:
        self._token = token
        self._registry = registry
        self._assets = assets
        self._jobs = jobs
        self._address = address
        self._accounts: defaultdict[int, Account] = defaultdict(Account)
        self.claimed: defaultdict[tuple[int, Address, int], int] = defaultdict(int)
        self.settlements: dict[tuple[int, int], SettlementState] = {}

    def unclaimed_wei(self, job: int) -> int:
        return self._accounts[job].unclaimed_wei

    def final_at(self, job: int) -> int:
        """No settlement is final before the one it adds to, so that the last one is the last."""
        head = self.settlements.get((job, self._accounts[job].head))
        return head.claimable_at if head is not None else 0

    def settle(self, tx: Transaction, settlement: Settlement) -> None:
        number, round_, total = settlement.job, settlement.round, settlement.total_wei
        job, position, payees = self._jobs.check_release(tx, number, round_, total)
        settler = self._settler(tx, number, job.terms.required_stake_wei)
        account = self._accounts[number]
        claimable_at = tx.timestamp + job.terms.challenge_window_s
        before = self.settlements.get((number, account.head))
        if before is not None:  # it pays no fewer payees, and is final no earlier
            claimable_at = max(claimable_at, before.claimable_at)
            payees = max(payees, before.payees)
        account.unclaimed_wei += self._jobs.release(job, position, total)
        opening = Opening(settlement.score_root, settlement.weights, settler)
        self.settlements[number, round_] = SettlementState(
            JobId(number),
            round_,
            settlement.root,
            digest_of(opening),
            total,
            claimable_at,
            payees,
            account.head,
            account.epoch,
        )
        account.head = round_
        tx.emit(
            _NAME,
            "Settled",
            job=number,
            round=round_,
            settler=settler,
            root="0x" + settlement.root.hex(),
            total=total,
            scoreRoot="0x" + settlement.score_root.hex(),
            weights=settlement.weights,
            payees=payees,
            evidence="0x" + settlement.evidence.digest.hex(),
            claimableAt=claimable_at,
        )

    def claim_many(self, tx: Transaction, requests: Sequence[ClaimRequest]) -> None:
        """One that is refused stops them all."""
        if len(requests) > MAX_CLAIMS:
            raise tx.refused("TooManyClaims", count=len(requests), most=MAX_CLAIMS)
        paid: defaultdict[tuple[int, Address, int], int] = defaultdict(int)
        left: dict[int, int] = {}
        for request in requests:
            job, leaf = request.job, request.leaf
            key = (job, leaf.account, leaf.asset)
            paid[key] += self._check_claim(tx, request, paid[key], left.get(job, self.unclaimed_wei(job)))
            left[job] = self.unclaimed_wei(job) - sum(paid[other] for other in paid if other[0] == job)
        for request in requests:
            self._pay(tx, request)

    def claim(self, tx: Transaction, request: ClaimRequest) -> None:
        self._check_claim(tx, request, 0, self.unclaimed_wei(request.job))
        self._pay(tx, request)

    def _check_claim(self, tx: Transaction, request: ClaimRequest, paid: int, left: int) -> int:
        """What it would pay, after others of the same transaction: `paid` of the same leaf, `left` of the
        job.
        """
        job, round_, leaf = request.job, request.round, request.leaf
        settled = self.settlements.get((job, round_))
        if settled is None:
            raise tx.refused("NotSettled", job=job, round=round_)
        if tx.timestamp < settled.claimable_at:
            raise tx.refused("NotClaimableYet", job=job, round=round_, claimableAt=settled.claimable_at)
        if not merkle.verify(leaf, request.proof, top_of(settled)):
            error = {"account": leaf.account, "asset": leaf.asset}
            raise tx.refused("InvalidProof", job=job, round=round_, **error)
        before = self.claimed[job, leaf.account, leaf.asset] + paid
        if leaf.cumulative_wei <= before:
            raise tx.refused("NothingToClaim", job=job, account=leaf.account, asset=leaf.asset)
        amount = leaf.cumulative_wei - before
        if amount > left:
            raise tx.refused("JobFundsExceeded", job=job, amount=amount, left=left)
        if leaf.account == NOBODY and leaf.asset not in self._assets.assets:
            raise tx.refused("ERC721NonexistentToken", tokenId=leaf.asset)
        return amount

    def _pay(self, tx: Transaction, request: ClaimRequest) -> None:
        job, leaf = request.job, request.leaf
        key = (job, leaf.account, leaf.asset)
        amount = leaf.cumulative_wei - self.claimed[key]
        self.claimed[key] = leaf.cumulative_wei
        self._accounts[job].unclaimed_wei -= amount
        to = self._assets.assets[leaf.asset].owner if leaf.account == NOBODY else leaf.account
        self._token.move(tx.call, self._address, to, amount)
        paid = {"account": to, "asset": leaf.asset, "amount": amount}
        tx.emit(_NAME, "Claimed", job=job, round=request.round, **paid)

    def overturn(self, tx: Transaction, settled: SettlementState, settler: Address, why: Fault) -> None:
        """Take a settlement and all later ones of the job back, and the bond of who made it."""
        number, round_ = settled.job, settled.round
        account = self._accounts[number]
        previous = self.settlements.get((number, settled.previous_round))
        previous_total = previous.total_wei if previous is not None else 0
        # Earlier settlements that contradict each other can pay more than their own: that much is gone.
        handed = self.settlements[number, account.head].total_wei - previous_total
        amount = min(handed, account.unclaimed_wei)
        account.unclaimed_wei -= amount
        account.head = settled.previous_round
        account.epoch += 1
        for key in [key for key in self.settlements if key[0] == number and key[1] >= round_]:
            del self.settlements[key]
        challenger = self._registry.principal_of(tx.sender)
        found = {"challenger": challenger, "settler": settler, "why": int(why)}
        tx.emit(_NAME, "Overturned", job=number, round=round_, **found)
        self._jobs.retake(tx, number, round_, previous_total, amount)
        self._registry.slash(tx, settler, self._jobs.jobs[number].terms.bond_wei, challenger)

    def _settler(self, tx: Transaction, job: int, required: int) -> Address:
        settler = tx.sender
        if not self._registry.stake_of(settler):
            settler = self._registry.principal_of(settler)
        stake = self._registry.stake_of(settler)
        if stake < required or (stake == 0 and not self._registry.is_bonded(settler)):
            raise tx.refused("SettlerStakeTooLow", job=job, settler=settler, stake=stake, required=required)
        return settler


def top_of(settled: SettlementState) -> Top:
    """Of its reward tree."""
    return Top(settled.root, settled.total_wei, settled.payees)
