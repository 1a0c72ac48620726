"""The `Ledger` Protocol: record, read, claim. `ChainLedger` is the real one, `MemoryLedger` its twin.

Calls block (sync web3); the node runs them in threads. Both pass tests/conformance/ledger.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dfl_ledger.ledger_assets import AssetLedger, StakeLedger
from dfl_ledger.ledger_judging import ChallengeLedger, PanelLedger
from dfl_ledger.records import (
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


class Ledger(StakeLedger, AssetLedger, PanelLedger, ChallengeLedger, Protocol):
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
        """The round this node may commit in, 0 if it never joined or has to join again, or BANNED."""
        ...

    def join(self, job: JobId, datasets: Sequence[int] = (), shard: bytes | None = None) -> Receipt:
        """Take part. `datasets` (assets) and `shard` (32 bytes: a commitment to the rows) say what the node
        trains on: once for a job, it holds for later joins too. Jobs with audits ask for a shard."""
        ...

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

    def unseal(self, job: JobId, position: int, key: bytes) -> Receipt:
        """Publish the key of the next validation shard, once COMMIT of its round has closed. Anyone who has
        it may. Keys are a chain: keccak256 of each is the one before, of the first the terms' seal anchor."""
        ...

    def unsealed(self, job: JobId) -> tuple[int, bytes]:
        """How many shards are unsealed, and the last key."""
        ...

    def punish(self, job: JobId, round_: int, node: Address) -> Receipt:
        """Take the bond of a node that committed and did not reveal."""
        ...

    def expel(self, job: JobId, node: Address) -> Receipt:
        """End the membership of a node that has less stake than the job asks for."""
        ...

    def publication(self, job: JobId, round_: int) -> Publication | None:
        """How the round ended with a model; None if it did not."""
        ...

    def publication_at(self, job: JobId, position: int) -> Publication | None:
        """The published round at a position, which counts from 0."""
        ...

    def position(self, job: JobId, round_: int) -> int | None:
        """The position of a round among the published ones: it is scored on the shard with this number."""
        ...

    def contribution(self, job: JobId, round_: int, node: Address) -> Revealed | None:
        """What a node revealed in a round."""
        ...

    def payee_count(self, job: JobId) -> int: ...

    def payee(self, job: JobId, number: int) -> Payee | None:
        """Who or what earns in the job under a number, from 0."""
        ...

    def payee_of(self, job: JobId, account: Address) -> int | None:
        """An account's number among the payees."""
        ...

    def payee_of_asset(self, job: JobId, asset: int) -> int | None: ...

    def dataset_count(self, job: JobId) -> int: ...

    def dataset(self, job: JobId, place: int) -> int:
        """The asset at a place among the job's data sets, 0 beyond the last."""
        ...

    def refundable_wei(self, job: JobId) -> int:
        """What `refund` would pay now."""
        ...

    # -- money ----------------------------------------------------------------------------------------
    def settle(self, settlement: Settlement) -> Receipt:
        """Settle a published round, once it is scored. Our stake vouches for it until it is final."""
        ...

    def settlement(self, job: JobId, round_: int) -> SettlementState | None:
        """None if there is none, or if it was overturned."""
        ...

    def final_at(self, job: JobId) -> int:
        """Unix seconds from which no settlement of the job can be overturned any more; 0 if it has none."""
        ...

    def unclaimed_wei(self, job: JobId) -> int:
        """What the job's settlements hold that nobody has claimed yet."""
        ...

    def claimed_wei(self, job: JobId, account: Address, asset: int) -> int:
        """What was claimed so far: by an account for its work (asset 0), or for an asset, whoever owned
        it.
        """
        ...

    def claim(self, job: JobId, round_: int, leaf: Leaf, proof: Sequence[ProofStep]) -> Receipt:
        """Pay leaf.account, or the owner of leaf.asset, what its cumulative reward exceeds earlier claims by.
        Anyone may send it."""
        ...

    def claim_many(self, requests: Sequence[ClaimRequest]) -> Receipt:
        """At most 32 claims, of any jobs. One that is refused stops them all."""
        ...
