"""The `Ledger` Protocol: record, read, claim. `ChainLedger` is the real one, `MemoryLedger` its twin.

Calls block (sync web3); the node runs them in threads. Both pass tests/conformance/ledger.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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


class Ledger(Protocol):
    """One wallet's view of the chain. Raises ChainUnreachable, Reverted, InsufficientFunds, TimedOut."""

    @property
    def address(self) -> Address: ...

    @property
    def chain_id(self) -> int: ...

    # -- time and events ------------------------------------------------------------------------------
    def head(self) -> int:
        """Newest block number."""
        ...

    def block(self, number: int | None = None) -> BlockRef:
        """One block, the newest for None. Raises ChainUnreachable if the endpoint has none of this number."""
        ...

    def now(self) -> int:
        """Unix seconds as the chain would stamp a block mined now (never behind the newest block)."""
        ...

    def events(self, from_block: int, to_block: int) -> list[Event]:
        """Events of our contracts in the inclusive range, in chain order."""
        ...

    # -- nodes ----------------------------------------------------------------------------------------
    def balance_wei(self, account: Address) -> int:
        """VNX balance."""
        ...

    def native_wei(self, account: Address) -> int:
        """Balance of the chain's own coin, which pays for gas."""
        ...

    def node(self, node: Address) -> NodeRecord | None: ...

    def boot_addrs(self) -> tuple[str, ...]:
        """Multiaddrs of every bonded boot node."""
        ...

    def register(self, peer_key: bytes, stake_wei: int, boot_addrs: Sequence[str]) -> Receipt:
        """Register or update this wallet's node: sets the peer key and boot addresses and adds stake.

        Approves the stake's transfer first. Sends a transaction each time: compare with `node()` before.
        """
        ...

    # -- jobs -----------------------------------------------------------------------------------------
    def create_job(self, terms: JobTerms) -> JobId:
        """Escrow rounds * round_budget_wei and open the job."""
        ...

    def job(self, job: JobId) -> JobState | None: ...

    def active_round(self, job: JobId, node: Address) -> int:
        """The round this node may commit in, 0 if it never joined."""
        ...

    def join(self, job: JobId) -> Receipt: ...

    def commit(self, contribution: Contribution, salt: bytes) -> Receipt:
        """Bind to a contribution without showing it: H(job, round, parent, cid, …, node, salt)."""
        ...

    def committed(self, job: JobId, round_: int, node: Address) -> bool:
        """True once a commitment or a revealed contribution of this node is recorded for the round."""
        ...

    def reveal(self, contribution: Contribution, salt: bytes) -> Receipt:
        """Show what was committed. In every mode but ASYNC its parent must be the job's current model."""
        ...

    def revealed(self, job: JobId, round_: int, node: Address) -> bool:
        """True once the node's contribution to the round is on chain in the open."""
        ...

    def hop(self, job: JobId, round_: int, accept: bool, model: Cid, samples: int) -> Receipt:
        """CHAINED, while the lease is ours: pass on `model`, made from the last hop's model if `accept`, else
        from the last accepted one."""
        ...

    def lease(self, job: JobId) -> Lease | None:
        """CHAINED: whose hop is next; None while no lap is under way."""
        ...

    def publish_model(self, job: JobId, round_: int, model: Cid) -> Receipt:
        """As the drawn aggregator (or, later in the window, the next in line): end the round with a model."""
        ...

    def may_aggregate_at(self, job: JobId, node: Address) -> int | None:
        """Unix seconds from which this node may publish the current round's model; None if it may not."""
        ...

    def advance(self, job: JobId) -> Receipt:
        """End a phase whose deadline has passed. Anyone may."""
        ...

    def cancel(self, job: JobId) -> Receipt: ...

    def refund(self, job: JobId) -> Receipt:
        """Return to the requester what no round earned, once the job has ended."""
        ...

    def publication(self, job: JobId, round_: int) -> tuple[Address, int] | None:
        """Who published the round's model, and when (Unix seconds); None if nobody did."""
        ...

    def refundable_wei(self, job: JobId) -> int:
        """What `refund` would pay now."""
        ...

    # -- money ----------------------------------------------------------------------------------------
    def settle(self, settlement: Settlement) -> Receipt: ...

    def settlement(self, job: JobId, round_: int) -> tuple[Settlement, int] | None:
        """The round's settlement and the Unix second from which it can be claimed."""
        ...

    def claimed_wei(self, job: JobId, account: Address, asset: int) -> int: ...

    def claim(self, job: JobId, round_: int, leaf: Leaf, proof: Sequence[ProofStep]) -> Receipt:
        """Pay leaf.account what its cumulative reward exceeds earlier claims by. Anyone may send it."""
        ...
