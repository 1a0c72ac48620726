"""The in-memory twin of the whole protocol: the same rules, errors and events, with a clock of its own.

`MemoryChain` is the state that all share, `MemoryLedger` one wallet's view of it. Time comes from the chain's
clock, so that a test may let an hour pass in no time.
"""

from __future__ import annotations

from collections.abc import Sequence

from dfl_ledger.contracts import commitment
from dfl_ledger.memory_contracts import MemoryChain as MemoryChain
from dfl_ledger.memory_judging import MemoryJudging
from dfl_ledger.memory_stakes import MemoryStakes
from dfl_ledger.records import (
    NOBODY,
    Address,
    BlockRef,
    Cid,
    ClaimRequest,
    Contribution,
    Event,
    JobId,
    JobState,
    JobTerms,
    Leaf,
    Lease,
    NodeRecord,
    Payee,
    ProofStep,
    Publication,
    Receipt,
    Revealed,
    Settlement,
    SettlementState,
)


class MemoryLedger(MemoryStakes, MemoryJudging):
    """One wallet's view of a MemoryChain. Raises UsageError for what is not an EIP-55 address."""

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

    def join(self, job: JobId, datasets: Sequence[int] = (), shard: bytes | None = None) -> Receipt:
        declared = shard if shard is not None else bytes(32) if datasets else None
        call = "join" if declared is None else "joinWith"
        return self._send(call, lambda tx: self._chain.jobs.join(tx, job, datasets, declared))

    def commit(self, contribution: Contribution, salt: bytes) -> Receipt:
        sealed = commitment(contribution, salt)
        job, round_ = contribution.job, contribution.round
        return self._send("commit", lambda tx: self._chain.jobs.commit(tx, job, round_, sealed))

    def committed(self, job: JobId, round_: int, node: Address) -> bool:
        found = self._chain.jobs.jobs.get(job)
        return found is not None and ((round_, node) in found.commitments or (round_, node) in found.revealed)

    def reveal(self, contribution: Contribution, salt: bytes) -> Receipt:
        return self._send(
            "reveal",
            lambda tx: self._chain.jobs.reveal(tx, contribution, salt),
        )

    def revealed(self, job: JobId, round_: int, node: Address) -> bool:
        found = self._chain.jobs.jobs.get(job)
        return found is not None and (round_, node) in found.revealed

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

    def unseal(self, job: JobId, position: int, key: bytes) -> Receipt:
        return self._send("unseal", lambda tx: self._chain.jobs.unseal(tx, job, position, key))

    def unsealed(self, job: JobId) -> tuple[int, bytes]:
        found = self._chain.jobs.jobs.get(job)
        return (0, bytes(32)) if found is None else (found.unsealed, found.key)

    def punish(self, job: JobId, round_: int, node: Address) -> Receipt:
        return self._send("punish", lambda tx: self._chain.jobs.punish(tx, job, round_, node))

    def expel(self, job: JobId, node: Address) -> Receipt:
        return self._send("expel", lambda tx: self._chain.jobs.expel(tx, job, node))

    def publication(self, job: JobId, round_: int) -> Publication | None:
        found = self._chain.jobs.jobs.get(job)
        return None if found is None else found.publication(round_)

    def publication_at(self, job: JobId, position: int) -> Publication | None:
        found = self._chain.jobs.jobs.get(job)
        known = found is not None and position < len(found.published)
        return found.published[position] if found is not None and known else None

    def position(self, job: JobId, round_: int) -> int | None:
        found = self._chain.jobs.jobs.get(job)
        return None if found is None else found.position(round_)

    def contribution(self, job: JobId, round_: int, node: Address) -> Revealed | None:
        found = self._chain.jobs.jobs.get(job)
        return None if found is None else found.revealed.get((round_, node))

    def payee_count(self, job: JobId) -> int:
        return len(self._payees(job))

    def payee(self, job: JobId, number: int) -> Payee | None:
        payees = self._payees(job)
        return payees[number] if number < len(payees) else None

    def payee_of(self, job: JobId, account: Address) -> int | None:
        return _index_of(self._payees(job), Payee(account, 0))

    def payee_of_asset(self, job: JobId, asset: int) -> int | None:
        return _index_of(self._payees(job), Payee(NOBODY, asset))

    def dataset_count(self, job: JobId) -> int:
        found = self._chain.jobs.jobs.get(job)
        return 0 if found is None else len(found.datasets)

    def dataset(self, job: JobId, place: int) -> int:
        found = self._chain.jobs.jobs.get(job)
        return 0 if found is None or place >= len(found.datasets) else found.datasets[place]

    def _payees(self, job: JobId) -> list[Payee]:
        found = self._chain.jobs.jobs.get(job)
        return [] if found is None else found.payees

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

    def settlement(self, job: JobId, round_: int) -> SettlementState | None:
        return self._chain.distributor.settlements.get((job, round_))

    def final_at(self, job: JobId) -> int:
        return self._chain.distributor.final_at(job)

    def unclaimed_wei(self, job: JobId) -> int:
        return self._chain.distributor.unclaimed_wei(job)

    def claimed_wei(self, job: JobId, account: Address, asset: int) -> int:
        return self._chain.distributor.claimed[job, NOBODY if asset else account, asset]

    def claim(self, job: JobId, round_: int, leaf: Leaf, proof: Sequence[ProofStep]) -> Receipt:
        request = ClaimRequest(job, round_, leaf, tuple(proof))
        return self._send("claim", lambda tx: self._chain.distributor.claim(tx, request))

    def claim_many(self, requests: Sequence[ClaimRequest]) -> Receipt:
        return self._send("claimMany", lambda tx: self._chain.distributor.claim_many(tx, requests))


def _index_of(payees: list[Payee], payee: Payee) -> int | None:
    return payees.index(payee) if payee in payees else None
