"""The in-memory twin of the whole protocol: the same rules, errors and events, with a clock of its own.

`MemoryChain` is the state that all share, `MemoryLedger` one wallet's view of it. Time comes from the chain's
clock, so that a test may let an hour pass in no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from eth_utils.address import is_checksum_address, to_checksum_address
from eth_utils.crypto import keccak

from dfl_ledger.contracts import commitment
from dfl_ledger.errors import UsageError
from dfl_ledger.memory_chain import ETHER, Blocks, Token, Transaction
from dfl_ledger.memory_distributor import MemoryDistributor
from dfl_ledger.memory_jobs import MemoryJobs
from dfl_ledger.memory_registry import MemoryRegistry
from dfl_ledger.records import (
    Address,
    BlockRef,
    Cid,
    Contribution,
    Event,
    JobId,
    JobState,
    JobTerms,
    Leaf,
    Lease,
    NodeRecord,
    ProofStep,
    Receipt,
    Settlement,
)


def _contract_address(name: str) -> Address:
    return Address(to_checksum_address(keccak(text=name)[12:]))


class MemoryChain:
    """A chain with the four contracts on it. `seed` fixes its hashes, and so who is drawn to aggregate."""

    def __init__(
        self,
        now: Callable[[], int] = lambda: int(time.time()),
        *,
        chain_id: int = 31337,
        unbond_delay_s: int = 60,
        seed: bytes = b"dfl",
    ) -> None:
        self.chain_id = chain_id
        self.treasury = _contract_address("treasury")
        self.blocks = Blocks(now, seed)
        self.token = Token(self.treasury)
        self.registry = MemoryRegistry(self.token, _contract_address("NodeRegistry"), unbond_delay_s)
        self.jobs = MemoryJobs(self.blocks, self.token, self.registry, _contract_address("TrainingJobs"))
        self.distributor = MemoryDistributor(self.token, self.jobs, _contract_address("RewardDistributor"))

    def fund(self, address: Address, native_wei: int = ETHER, vnx_wei: int = 0) -> None:
        """Give an address coin for gas, and VNX from the treasury."""
        with self.blocks.reading():
            self.blocks.coin[address] += native_wei
            self.token.move("transfer", self.treasury, address, vnx_wei)


class MemoryLedger:
    """One wallet's view of a MemoryChain. Raises UsageError for what is not an EIP-55 address."""

    def __init__(self, chain: MemoryChain, address: Address) -> None:
        if not is_checksum_address(address):
            raise UsageError("not an EIP-55 address", why=repr(address))
        self._chain = chain
        self._blocks = chain.blocks
        self._address = address

    def __repr__(self) -> str:
        return f"MemoryLedger({self._address})"

    @property
    def address(self) -> Address:
        return self._address

    @property
    def chain_id(self) -> int:
        return self._chain.chain_id

    # -- time and events ------------------------------------------------------------------------------
    def head(self) -> int:
        return self._blocks.newest.number

    def block(self, number: int | None = None) -> BlockRef:
        return self._blocks.block(number)

    def now(self) -> int:
        return self._blocks.now()

    def events(self, from_block: int, to_block: int) -> list[Event]:
        return self._blocks.events(from_block, to_block)

    # -- nodes ----------------------------------------------------------------------------------------
    def balance_wei(self, account: Address) -> int:
        return self._chain.token.balances.get(account, 0)

    def native_wei(self, account: Address) -> int:
        return self._blocks.coin.get(account, 0)

    def node(self, node: Address) -> NodeRecord | None:
        return self._chain.registry.nodes.get(node)

    def boot_addrs(self) -> tuple[str, ...]:
        with self._blocks.reading():
            return self._chain.registry.boot_addrs()

    def register(self, peer_key: bytes, stake_wei: int, boot_addrs: Sequence[str]) -> Receipt:
        return self._send(
            "register", lambda tx: self._chain.registry.register(tx, peer_key, stake_wei, boot_addrs)
        )

    def unbond(self) -> Receipt:
        """Begin to leave: the node counts as gone at once, its stake is free after a delay."""
        return self._send("unbond", self._chain.registry.unbond)

    def withdraw(self) -> Receipt:
        """Take the stake back after `unbond` and its delay."""
        return self._send("withdraw", self._chain.registry.withdraw)

    # -- jobs -----------------------------------------------------------------------------------------
    def create_job(self, terms: JobTerms) -> JobId:
        created: list[JobId] = []
        self._send("createJob", lambda tx: created.append(self._chain.jobs.create(tx, terms)))
        return created[0]

    def job(self, job: JobId) -> JobState | None:
        with self._blocks.reading():
            found = self._chain.jobs.jobs.get(job)
            return None if found is None else found.state()

    def active_round(self, job: JobId, node: Address) -> int:
        found = self._chain.jobs.jobs.get(job)
        return 0 if found is None else found.active.get(node, 0)

    def join(self, job: JobId) -> Receipt:
        return self._send("join", lambda tx: self._chain.jobs.join(tx, job))

    def commit(self, contribution: Contribution, salt: bytes) -> Receipt:
        sealed = commitment(contribution, salt)
        job, round_ = contribution.job, contribution.round
        return self._send("commit", lambda tx: self._chain.jobs.commit(tx, job, round_, sealed))

    def committed(self, job: JobId, round_: int, node: Address) -> bool:
        found = self._chain.jobs.jobs.get(job)
        return found is not None and ((round_, node) in found.commitments or (round_, node) in found.indexes)

    def reveal(self, contribution: Contribution, salt: bytes) -> Receipt:
        return self._send(
            "reveal",
            lambda tx: self._chain.jobs.reveal(tx, contribution, salt),
        )

    def revealed(self, job: JobId, round_: int, node: Address) -> bool:
        found = self._chain.jobs.jobs.get(job)
        return found is not None and (round_, node) in found.indexes

    def hop(self, job: JobId, round_: int, accept: bool, model: Cid, samples: int) -> Receipt:
        return self._send("hop", lambda tx: self._chain.jobs.hop(tx, job, round_, accept, model, samples))

    def lease(self, job: JobId) -> Lease | None:
        with self._blocks.reading():
            return self._chain.jobs.lease(job)

    def publish_model(self, job: JobId, round_: int, model: Cid) -> Receipt:
        return self._send("publishModel", lambda tx: self._chain.jobs.publish_model(tx, job, round_, model))

    def may_aggregate_at(self, job: JobId, node: Address) -> int | None:
        with self._blocks.reading():
            return self._chain.jobs.may_aggregate_at(job, node)

    def publication(self, job: JobId, round_: int) -> tuple[Address, int] | None:
        with self._blocks.reading():
            return self._chain.jobs.publication(job, round_)

    def refundable_wei(self, job: JobId) -> int:
        now = self.now()
        with self._blocks.reading():
            return self._chain.jobs.refundable_wei(job, now)

    def advance(self, job: JobId) -> Receipt:
        return self._send("advance", lambda tx: self._chain.jobs.advance(tx, job))

    def cancel(self, job: JobId) -> Receipt:
        return self._send("cancel", lambda tx: self._chain.jobs.cancel(tx, job))

    def refund(self, job: JobId) -> Receipt:
        return self._send("refund", lambda tx: self._chain.jobs.refund(tx, job))

    # -- money ----------------------------------------------------------------------------------------
    def settle(self, settlement: Settlement) -> Receipt:
        return self._send("settle", lambda tx: self._chain.distributor.settle(tx, settlement))

    def settlement(self, job: JobId, round_: int) -> tuple[Settlement, int] | None:
        return self._chain.distributor.settlements.get((job, round_))

    def claimed_wei(self, job: JobId, account: Address, asset: int) -> int:
        return self._chain.distributor.claimed.get((job, account, asset), 0)

    def claim(self, job: JobId, round_: int, leaf: Leaf, proof: Sequence[ProofStep]) -> Receipt:
        return self._send("claim", lambda tx: self._chain.distributor.claim(tx, job, round_, leaf, proof))

    def _send(self, call: str, body: Callable[[Transaction], object]) -> Receipt:
        with self._blocks.transaction(call, self._address) as tx:
            body(tx)
        return tx.receipt
