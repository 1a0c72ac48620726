"""The `Ledger` on a real chain, over JSON-RPC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from dfl_ledger.accounts import LocalAccount
from dfl_ledger.chain_calls import FOR_EVER, bytes_of, cid_of
from dfl_ledger.chain_judging import ChainJudging, leaf_to_abi, steps_to_abi
from dfl_ledger.chain_stakes import ChainStakes
from dfl_ledger.contracts import commitment
from dfl_ledger.deploy import Deployment, find_deployment
from dfl_ledger.errors import ChainUnreachable, RangeTooLarge
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
    Kind,
    Leaf,
    Lease,
    NodeRecord,
    Payee,
    Phase,
    ProofStep,
    Publication,
    Receipt,
    Revealed,
    Settlement,
    SettlementState,
)
from dfl_ledger.rpc import HELP, ResponseTooLarge, Rpc, RpcError
from dfl_ledger.terms import from_args, to_abi

_SIGNATURE_BYTES = 3 * 32  # v, r and s at the end of a call
log = structlog.get_logger(__name__)

_BOOT_PAGE = 50
_MOST_BOOT_NODES = 1000  # registering costs next to nothing: a flood of boot nodes must not fill our memory
# How endpoints say that a range of blocks is too much for them; there is no standard code.
_RANGE_WORDS = ("range", "too many", "more than", "exceed", "limit", "too large", "response size")


def open_chain(
    rpc_url: str, deployment: Path | None, search: Sequence[Path], account: LocalAccount | None = None
) -> ChainLedger:
    """The chain behind an endpoint; without a deployment file, with the one found for its chain id."""
    if deployment is not None:
        return ChainLedger(rpc_url, Deployment.read(deployment), account)
    rpc = Rpc(rpc_url)
    try:
        served = rpc.quantity("eth_chainId")
    finally:
        rpc.close()
    return ChainLedger(rpc_url, find_deployment(served, search), account)


class ChainLedger(ChainStakes, ChainJudging):
    """One wallet's view of the chain. Threads may share it.

    Without `account` it only reads, and `address` and every write raise WalletError. Reads raise
    ChainUnreachable; writes raise Reverted, InsufficientFunds, TimedOut and ChainUnreachable.
    The constructor raises UsageError for a bad URL, WrongChain, and ChainUnreachable.
    """

    # -- time and events ------------------------------------------------------------------------------
    def head(self) -> int:
        return self._rpc_quantity("eth_blockNumber")

    def block(self, number: int | None = None) -> BlockRef:
        tag = "latest" if number is None else hex(number)
        found = self._rpc_call("eth_getBlockByNumber", tag, False)
        if found is None:
            raise ChainUnreachable(
                f"{self._rpc.shown} has no block {tag}",
                why="it lags behind, or its blocks were replaced",
                help_command=HELP,
            )
        with self._understood("eth_getBlockByNumber"):
            digest = "0x" + self._rpc.as_bytes(found["hash"]).hex()
            return BlockRef(self._rpc.as_int(found["number"]), digest, self._rpc.as_int(found["timestamp"]))

    def now(self) -> int:
        block = self._rpc.as_object(self._rpc_call("eth_getBlockByNumber", "latest", False))
        return max(self._rpc.as_int(block.get("timestamp")), int(self._clock()))

    def events(self, from_block: int, to_block: int) -> list[Event]:
        """Raises RangeTooLarge when the endpoint wants a smaller range, ChainUnreachable otherwise.

        The token's own events are left out: a transfer between strangers is none of the network's affairs.
        """
        if from_block > to_block:
            return []
        try:
            logs = self._logs(from_block, to_block)
        except RangeTooLarge:
            # Some endpoints refuse blocks that are not there yet in the same words.
            head = self.head()
            if head >= to_block:
                raise
            to_block = head
            logs = self._logs(from_block, to_block) if from_block <= to_block else []
        with self._understood("eth_getLogs"):
            if not isinstance(logs, list):
                raise TypeError("not a list")
            found = [self._event(entry) for entry in logs if not entry.get("removed")]
            events = [event for event in found if event is not None]
            if any(not from_block <= event.block <= to_block for event in events):
                raise ValueError("a log outside the range")
        return sorted(events, key=lambda event: (event.block, event.log_index))

    def _logs(self, from_block: int, to_block: int) -> Any:
        d = self._deployment
        wanted = {
            "address": [d.registry, d.assets, d.jobs, d.board, d.distributor],
            "fromBlock": hex(from_block),
            "toBlock": hex(to_block),
        }
        try:
            return self._rpc.call("eth_getLogs", wanted)
        except ResponseTooLarge as error:
            why = error.why
        except RpcError as error:
            if not any(word in error.message.lower() for word in _RANGE_WORDS):
                raise self._refused(error) from None
            why = error.message
        raise RangeTooLarge(f"no events of blocks {from_block} to {to_block}", why=why)

    # -- nodes ----------------------------------------------------------------------------------------
    def native_wei(self, account: Address) -> int:
        return self._rpc_quantity("eth_getBalance", account, "latest")

    def node(self, node: Address) -> NodeRecord | None:
        peer_key, stake, unbond_at, addrs = self._read(self._deployment.registry, "node", node)[0]
        key = bytes.fromhex(peer_key[2:])
        return NodeRecord(node, key, stake, unbond_at, tuple(addrs)) if any(key) else None

    def boot_addrs(self) -> tuple[str, ...]:
        addrs: list[str] = []
        offset = 0
        while offset < _MOST_BOOT_NODES:
            page, total = self._read(self._deployment.registry, "bootNodes", offset, _BOOT_PAGE)
            addrs.extend(addr for _node, _key, listed in page for addr in listed)
            offset += _BOOT_PAGE
            if offset >= total:
                break
        return tuple(addrs)

    def register(self, peer_key: bytes, stake_wei: int, boot_addrs: Sequence[str]) -> Receipt:
        registry = self._deployment.registry
        self._allow(registry, stake_wei, "register")
        return self._write(registry, "register", peer_key, stake_wei, list(boot_addrs)).receipt

    # -- jobs -----------------------------------------------------------------------------------------
    def create_job(self, terms: JobTerms) -> JobId:
        jobs, escrow_wei = self._deployment.jobs, terms.rounds * terms.round_budget_wei
        encode, told = self._abis[jobs].encode, to_abi(terms)
        # Made again after a kill, it is the same job: only the permit would be another one.
        unsigned = encode("createJobWithPermit", told, FOR_EVER, 0, bytes(32), bytes(32))[:-_SIGNATURE_BYTES]
        data = self._wallet().unfinished("createJob", jobs, unsigned)
        if data is None:
            data = encode("createJobWithPermit", told, *self._permit(jobs, escrow_wei, "createJob"))
        mined = self._wallet().send("createJob", jobs, data)
        return JobId(self._created(mined, "JobCreated", "job"))

    def job(self, job: JobId) -> JobState | None:
        state = self._read(self._deployment.jobs, "job", job)[0]
        with self._understood("job"):
            requester, terms, phase, *numbers = state
            if Phase(phase) is Phase.NONE:
                return None
            *numbers, candidate = numbers
            round_, completed, deadline, model, expected, commits, reveals, draw, spent, refunded = numbers
            return JobState(
                job,
                Address(requester),
                from_args(terms),
                Phase(phase),
                round_,
                completed,
                deadline,
                cid_of(model),
                expected,
                commits,
                reveals,
                draw,
                spent,
                refunded,
                cid_of(candidate) if int(candidate, 16) else None,
            )

    def active_round(self, job: JobId, node: Address) -> int:
        return int(self._read(self._deployment.jobs, "activeRound", job, node)[0])

    def join(self, job: JobId, datasets: Sequence[int] = (), shard: bytes | None = None) -> Receipt:
        jobs = self._deployment.jobs
        if shard is None and not datasets:
            return self._write(jobs, "join", job).receipt
        return self._write(jobs, "joinWith", job, list(datasets), shard or bytes(32)).receipt

    def commit(self, contribution: Contribution, salt: bytes) -> Receipt:
        sealed = commitment(contribution, salt)
        return self._write(
            self._deployment.jobs, "commit", contribution.job, contribution.round, sealed
        ).receipt

    def committed(self, job: JobId, round_: int, node: Address) -> bool:
        return bool(self._read(self._deployment.jobs, "committed", job, round_, node)[0])

    def reveal(self, contribution: Contribution, salt: bytes) -> Receipt:
        c = contribution
        shown = (int(c.kind), c.cid.digest, c.parent.digest, c.samples, salt)
        return self._write(self._deployment.jobs, "reveal", c.job, c.round, *shown).receipt

    def revealed(self, job: JobId, round_: int, node: Address) -> bool:
        return bool(self._read(self._deployment.jobs, "revealed", job, round_, node)[0])

    def hop(self, job: JobId, round_: int, accept: bool, model: Cid, samples: int) -> Receipt:
        passed_on = (accept, model.digest, samples)
        return self._write(self._deployment.jobs, "hop", job, round_, *passed_on).receipt

    def lease(self, job: JobId) -> Lease | None:
        node, position, until = self._read(self._deployment.jobs, "lease", job)
        return Lease(Address(node), int(position), int(until)) if int(until) else None

    def publish_model(self, job: JobId, round_: int, model: Cid) -> Receipt:
        return self._write(self._deployment.jobs, "publishModel", job, round_, model.digest).receipt

    def may_aggregate_at(self, job: JobId, node: Address) -> int | None:
        return int(self._read(self._deployment.jobs, "mayAggregateAt", job, node)[0]) or None

    def unseal(self, job: JobId, position: int, key: bytes) -> Receipt:
        return self._write(self._deployment.jobs, "unseal", job, position, key).receipt

    def unsealed(self, job: JobId) -> tuple[int, bytes]:
        count, key = self._read(self._deployment.jobs, "unsealed", job)
        return int(count), bytes_of(key)

    def punish(self, job: JobId, round_: int, node: Address) -> Receipt:
        return self._write(self._deployment.jobs, "punish", job, round_, node).receipt

    def expel(self, job: JobId, node: Address) -> Receipt:
        return self._write(self._deployment.jobs, "expel", job, node).receipt

    def publication(self, job: JobId, round_: int) -> Publication | None:
        return _publication(self._read(self._deployment.jobs, "publication", job, round_)[0])

    def publication_at(self, job: JobId, position: int) -> Publication | None:
        return _publication(self._read(self._deployment.jobs, "publicationAt", job, position)[0])

    def position(self, job: JobId, round_: int) -> int | None:
        return self._found("position", job, round_)

    def contribution(self, job: JobId, round_: int, node: Address) -> Revealed | None:
        jobs = self._deployment.jobs
        revealed, index, kind, samples = self._read(jobs, "contribution", job, round_, node)
        return Revealed(int(index), Kind(kind), int(samples)) if revealed else None

    def payee_count(self, job: JobId) -> int:
        return int(self._read(self._deployment.jobs, "payeeCount", job)[0])

    def payee(self, job: JobId, number: int) -> Payee | None:
        account, asset = self._read(self._deployment.jobs, "payee", job, number)[0]
        return Payee(Address(account), int(asset)) if account != NOBODY or asset else None

    def payee_of(self, job: JobId, account: Address) -> int | None:
        return self._found("payeeOf", job, account)

    def payee_of_asset(self, job: JobId, asset: int) -> int | None:
        return self._found("payeeOfAsset", job, asset)

    def dataset_count(self, job: JobId) -> int:
        return int(self._read(self._deployment.jobs, "datasetCount", job)[0])

    def dataset(self, job: JobId, place: int) -> int:
        return int(self._read(self._deployment.jobs, "dataset", job, place)[0])

    def _found(self, function: str, *args: object) -> int | None:
        """Of the views that say whether there is such a number, and which."""
        found, number = self._read(self._deployment.jobs, function, *args)
        return int(number) if found else None

    def refundable_wei(self, job: JobId) -> int:
        return int(self._read(self._deployment.jobs, "refundable", job, now=True)[0])

    def advance(self, job: JobId) -> Receipt:
        return self._write(self._deployment.jobs, "advance", job).receipt

    def cancel(self, job: JobId) -> Receipt:
        return self._write(self._deployment.jobs, "cancel", job).receipt

    def refund(self, job: JobId) -> Receipt:
        return self._write(self._deployment.jobs, "refund", job).receipt

    # -- money ----------------------------------------------------------------------------------------
    def settle(self, settlement: Settlement) -> Receipt:
        s = settlement
        told = (s.root, s.total_wei, s.score_root, s.weights, s.evidence.digest)
        return self._write(self._deployment.distributor, "settle", s.job, s.round, *told).receipt

    def settlement(self, job: JobId, round_: int) -> SettlementState | None:
        found = self._read(self._deployment.distributor, "settlement", job, round_)[0]
        root, digest, *numbers = found
        if numbers[1] == 0:
            return None
        return SettlementState(job, round_, bytes_of(root), bytes_of(digest), *map(int, numbers))

    def final_at(self, job: JobId) -> int:
        return int(self._read(self._deployment.distributor, "finalAt", job)[0])

    def unclaimed_wei(self, job: JobId) -> int:
        return int(self._read(self._deployment.distributor, "unclaimed", job)[0])

    def claimed_wei(self, job: JobId, account: Address, asset: int) -> int:
        who = NOBODY if asset else account
        return int(self._read(self._deployment.distributor, "claimed", job, who, asset)[0])

    def claim(self, job: JobId, round_: int, leaf: Leaf, proof: Sequence[ProofStep]) -> Receipt:
        told = (leaf_to_abi(leaf), steps_to_abi(proof))
        return self._write(self._deployment.distributor, "claim", job, round_, *told).receipt

    def claim_many(self, requests: Sequence[ClaimRequest]) -> Receipt:
        told = [(r.job, r.round, leaf_to_abi(r.leaf), steps_to_abi(r.proof)) for r in requests]
        return self._write(self._deployment.distributor, "claimMany", told).receipt


def _publication(found: Sequence[int]) -> Publication | None:
    return Publication(*map(int, found)) if int(found[0]) else None
