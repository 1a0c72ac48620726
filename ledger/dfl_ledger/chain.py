"""The `Ledger` on a real chain, over JSON-RPC."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from eth_utils.address import to_checksum_address

from dfl_ledger.accounts import LocalAccount
from dfl_ledger.contracts import ContractAbi, commitment, load
from dfl_ledger.deploy import Deployment, code_missing, find_deployment
from dfl_ledger.errors import ChainUnreachable, InsufficientFunds, RangeTooLarge, WalletError, WrongChain
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
    Mode,
    NodeRecord,
    Phase,
    ProofStep,
    Receipt,
    Settlement,
    TxHash,
)
from dfl_ledger.rpc import HELP, ResponseTooLarge, Rpc, RpcError
from dfl_ledger.sent import SentJournal
from dfl_ledger.transactions import FeePolicy, Mined, Writer, refusal
from dfl_ledger.words import checksummed

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


class ChainLedger:
    """One wallet's view of the chain. Threads may share it.

    Without `account` it only reads, and `address` and every write raise WalletError. Reads raise
    ChainUnreachable; writes raise Reverted, InsufficientFunds, TimedOut and ChainUnreachable.
    The constructor raises UsageError for a bad URL, WrongChain, and ChainUnreachable.
    """

    def __init__(
        self,
        rpc_url: str,
        deployment: Deployment,
        account: LocalAccount | None = None,
        *,
        fees: FeePolicy | None = None,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rpc = Rpc(rpc_url, timeout_s=timeout_s)
        self._deployment = deployment
        self._clock = clock
        self._abis = {address: load(name) for name, address in deployment.addresses.items()}
        served = self._rpc_quantity("eth_chainId")
        if served != deployment.chain_id:
            raise WrongChain(
                f"{self._rpc.shown} serves chain {served}",
                why=f"the deployment is on chain {deployment.chain_id}",
                help_command=HELP,
            )
        if missing := code_missing(self._rpc, deployment):
            raise WrongChain(
                f"no contract at the address of {', '.join(missing)}",
                why=f"chain {served} at {self._rpc.shown} is another one than the deployment's, or was reset",
                help_command="dfl-node chain deploy",
            )
        self._writer = None if account is None else Writer(self._rpc, served, account, fees or FeePolicy())

    def __repr__(self) -> str:
        who = self._writer.address if self._writer else "read-only"
        return f"ChainLedger({self._rpc.shown}, {who})"

    def close(self) -> None:
        """Close the kept connections."""
        self._rpc.close()
        if self._writer is not None:
            self._writer.close()

    def resume(self, path: Path) -> None:
        """Journal what is sent in this file, and first see to what an earlier process left open there.

        Raises StoreUnavailable, ChainUnreachable.
        """
        writer = self._wallet()
        writer.resume(SentJournal(path, chain=self.genesis(), sender=writer.address))

    @property
    def address(self) -> Address:
        return self._wallet().address

    @property
    def chain_id(self) -> int:
        return self._deployment.chain_id

    @property
    def deployment(self) -> Deployment:
        return self._deployment

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

    def genesis(self) -> str:
        """The hash of block 0, which no other chain has."""
        with self._understood("eth_getBlockByNumber"):
            return str(self._rpc.as_object(self._rpc_call("eth_getBlockByNumber", "0x0", False))["hash"])

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
            "address": [d.registry, d.jobs, d.distributor],
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
    def balance_wei(self, account: Address) -> int:
        return int(self._read(self._deployment.token, "balanceOf", account)[0])

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

    def unbond(self) -> Receipt:
        """Begin to leave: the node counts as gone at once, its stake is free after a delay."""
        return self._write(self._deployment.registry, "unbond").receipt

    def withdraw(self) -> Receipt:
        """Take the stake back after `unbond` and its delay."""
        return self._write(self._deployment.registry, "withdraw").receipt

    # -- jobs -----------------------------------------------------------------------------------------
    def create_job(self, terms: JobTerms) -> JobId:
        jobs = self._deployment.jobs
        self._allow(jobs, terms.rounds * terms.round_budget_wei, "createJob")
        mined = self._write(jobs, "createJob", _terms_to_abi(terms))
        with self._understood("createJob"):
            for entry in mined.logs:
                event = self._event(entry)
                if event is not None and event.name == "JobCreated":
                    return JobId(_int(event.args["job"]))
        raise ChainUnreachable(
            "the chain did not say which job it created", why=f"transaction {mined.receipt.tx}"
        )

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
                _terms_from_abi(terms),
                Phase(phase),
                round_,
                completed,
                deadline,
                _cid(model),
                expected,
                commits,
                reveals,
                draw,
                spent,
                refunded,
                _cid(candidate) if int(candidate, 16) else None,
            )

    def active_round(self, job: JobId, node: Address) -> int:
        return int(self._read(self._deployment.jobs, "activeRound", job, node)[0])

    def join(self, job: JobId) -> Receipt:
        return self._write(self._deployment.jobs, "join", job).receipt

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

    def publication(self, job: JobId, round_: int) -> tuple[Address, int] | None:
        found = self._read(self._deployment.jobs, "publication", job, round_)[0]
        publisher, published_at = found[0], int(found[1])
        return (Address(to_checksum_address(publisher)), published_at) if published_at else None

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
        return self._write(
            self._deployment.distributor, "settle", s.job, s.round, s.root, s.total_wei, s.evidence.digest
        ).receipt

    def settlement(self, job: JobId, round_: int) -> tuple[Settlement, int] | None:
        found = self._read(self._deployment.distributor, "settlement", job, round_)[0]
        root, evidence, total, claimable_at = found
        if claimable_at == 0:
            return None
        return Settlement(job, round_, bytes.fromhex(root[2:]), total, _cid(evidence)), claimable_at

    def claimed_wei(self, job: JobId, account: Address, asset: int) -> int:
        return int(self._read(self._deployment.distributor, "claimed", job, account, asset)[0])

    def claim(self, job: JobId, round_: int, leaf: Leaf, proof: Sequence[ProofStep]) -> Receipt:
        line = (leaf.account, leaf.asset, leaf.score, leaf.reward_wei, leaf.cumulative_wei)
        steps = [(step.hash, step.sum_wei, step.is_left) for step in proof]
        return self._write(self._deployment.distributor, "claim", job, round_, line, steps).receipt

    # -- calls ----------------------------------------------------------------------------------------
    def _wallet(self) -> Writer:
        if self._writer is None:
            raise WalletError(
                "no wallet to write with",
                why="the chain was opened for reading",
                help_command="dfl-node wallet new",
            )
        return self._writer

    def _write(self, contract: Address, function: str, *args: object) -> Mined:
        return self._wallet().send(function, contract, self._abis[contract].encode(function, *args))

    def _read(self, contract: Address, function: str, *args: object, now: bool = False) -> list[Any]:
        """What a view function returns at the newest block, or (`now`) as in a block mined now."""
        abi: ContractAbi = self._abis[contract]
        call: dict[str, object] = {"to": contract, "data": "0x" + abi.encode(function, *args).hex()}
        try:
            answer = (
                self._rpc.call_now("eth_call", call) if now else self._rpc.call("eth_call", call, "latest")
            )
        except RpcError as error:
            raise refusal(function, error) from None
        with self._understood(function):
            return abi.decode_result(function, self._rpc.as_bytes(answer))

    def _allow(self, spender: Address, amount_wei: int, call: str) -> None:
        """Let a contract take VNX. An allowance that an interrupted call left behind is used up first."""
        if amount_wei == 0:
            return
        token, owner = self._deployment.token, self.address
        if self._read(token, "allowance", owner, spender)[0] >= amount_wei:
            return
        held = self.balance_wei(owner)
        if held < amount_wei:
            raise InsufficientFunds(
                f"{call} needs more VNX than the wallet has",
                why=f"needed are {amount_wei} wei, available are {held} wei",
                help_command="dfl-node wallet show",
            )
        self._write(token, "approve", spender, amount_wei)

    def _event(self, entry: dict[str, Any]) -> Event | None:
        """None for what is not ours. Raises ValueError, KeyError, TypeError for what is not a log."""
        contract = checksummed(self._rpc.as_bytes(entry["address"]))
        abi = self._abis.get(Address(contract))
        if abi is None:
            return None
        topics = [self._rpc.as_bytes(topic) for topic in entry["topics"]]
        decoded = abi.decode_event(topics, self._rpc.as_bytes(entry["data"]))
        if decoded is None:
            return None
        name, args = decoded
        return Event(
            self._rpc.as_int(entry["blockNumber"]),
            "0x" + self._rpc.as_bytes(entry["blockHash"]).hex(),
            self._rpc.as_int(entry["logIndex"]),
            TxHash("0x" + self._rpc.as_bytes(entry["transactionHash"]).hex()),
            abi.name,
            name,
            args,
        )

    def _rpc_call(self, method: str, *params: object) -> Any:
        try:
            return self._rpc.call(method, *params)
        except RpcError as error:
            raise self._refused(error) from None

    def _rpc_quantity(self, method: str, *params: object) -> int:
        return self._rpc.as_int(self._rpc_call(method, *params))

    def _refused(self, error: RpcError) -> ChainUnreachable:
        return ChainUnreachable(
            f"{self._rpc.shown} refuses {error.method}", why=error.message, help_command=HELP
        )

    @contextmanager
    def _understood(self, what: str) -> Iterator[None]:
        """Whatever cannot be decoded is the endpoint's fault."""
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ChainUnreachable(
                f"{self._rpc.shown} answered {what} with something else",
                why=type(error).__name__,
                help_command=HELP,
            ) from error


def _terms_to_abi(terms: JobTerms) -> tuple[object, ...]:
    """In the order of `struct JobTerms`."""
    return (
        terms.spec.digest,
        terms.model.digest,
        int(terms.mode),
        terms.rounds,
        terms.quorum,
        terms.min_nodes,
        terms.open_window_s,
        terms.commit_window_s,
        terms.reveal_window_s,
        terms.aggregate_window_s,
        terms.target,
        terms.settle_window_s,
        terms.challenge_window_s,
        terms.round_budget_wei,
        terms.required_stake_wei,
    )


def _terms_from_abi(fields: Sequence[Any]) -> JobTerms:
    spec, model, mode, *numbers = fields
    return JobTerms(_cid(spec), _cid(model), Mode(mode), *numbers)


def _cid(digest: str) -> Cid:
    return Cid.from_digest(bytes.fromhex(digest[2:]))


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError("not a number")
    return value
