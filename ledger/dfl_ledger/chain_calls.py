"""What the parts of `ChainLedger` have in common: calls over JSON-RPC, and what comes back decoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfl_ledger.accounts import LocalAccount
from dfl_ledger.contracts import ContractAbi, load
from dfl_ledger.deploy import Deployment, code_missing
from dfl_ledger.errors import ChainUnreachable, InsufficientFunds, WalletError, WrongChain
from dfl_ledger.records import Address, Cid, Event, TxHash
from dfl_ledger.rpc import HELP, Rpc, RpcError
from dfl_ledger.sent import SentJournal
from dfl_ledger.transactions import FeePolicy, Mined, Writer, refusal
from dfl_ledger.words import checksummed

FOR_EVER = 2**256 - 1
# https://eips.ethereum.org/EIPS/eip-2612
PERMIT = [
    {"name": "owner", "type": "address"},
    {"name": "spender", "type": "address"},
    {"name": "value", "type": "uint256"},
    {"name": "nonce", "type": "uint256"},
    {"name": "deadline", "type": "uint256"},
]


class ChainCalls:
    """One wallet's calls. See ChainLedger."""

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

    def genesis(self) -> str:
        """The hash of block 0, which no other chain has."""
        with self._understood("eth_getBlockByNumber"):
            return str(self._rpc.as_object(self._rpc_call("eth_getBlockByNumber", "0x0", False))["hash"])

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
        self._check_funds(amount_wei, call)
        self._write(token, "approve", spender, amount_wei)

    def _permit(self, spender: Address, amount_wei: int, call: str) -> tuple[int, int, bytes, bytes]:
        """Our signature under an allowance (EIP-2612): deadline, v, r, s. The contract asks for it by itself.

        Without end, so that a call is the same until it is mined, however often it is made. Who uses the
        permit first changes nothing: it lets the spender take what our own call would give it.
        """
        self._check_funds(amount_wei, call)
        token, owner = self._deployment.token, self.address
        nonce = int(self._read(token, "nonces", owner)[0])
        name = str(self._read(token, "name")[0])
        message = {
            "owner": owner,
            "spender": spender,
            "value": amount_wei,
            "nonce": nonce,
            "deadline": FOR_EVER,
        }
        domain = {"name": name, "version": "1", "chainId": self.chain_id, "verifyingContract": token}
        v, r, s = self._wallet().sign_typed_data(domain, {"Permit": PERMIT}, message)
        return FOR_EVER, v, r, s

    def _check_funds(self, amount_wei: int, call: str) -> None:
        held = self.balance_wei(self.address)
        if held < amount_wei:
            raise InsufficientFunds(
                f"{call} needs more VNX than the wallet has",
                why=f"needed are {amount_wei} wei, available are {held} wei",
                help_command="dfl-node wallet show",
            )

    def balance_wei(self, account: Address) -> int:
        return int(self._read(self._deployment.token, "balanceOf", account)[0])

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

    def _created(self, mined: Mined, event: str, number: str) -> int:
        """The number that an event of the transaction gives to what it created."""
        with self._understood(event):
            for entry in mined.logs:
                found = self._event(entry)
                if found is not None and found.name == event:
                    return int_of(found.args[number])
        raise ChainUnreachable("the chain did not say what it created", why=f"transaction {mined.receipt.tx}")


def cid_of(digest: str) -> Cid:
    return Cid.from_digest(bytes_of(digest))


def bytes_of(word: str) -> bytes:
    return bytes.fromhex(word[2:])


def int_of(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError("not a number")
    return value
