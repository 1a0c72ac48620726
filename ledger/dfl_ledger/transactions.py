"""One wallet's transactions: nonce, gas, fees, and the wait for a receipt.

A transaction costs three round trips when nothing goes wrong: estimate, send, receipt. Nonces are counted
here and read again from the chain after every error, so that a second process with the same wallet, or a
transaction that was never sent, does no lasting harm.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from dfl_ledger.accounts import LocalAccount
from dfl_ledger.contracts import DecodedError, decode_error
from dfl_ledger.errors import ChainUnreachable, DflError, InsufficientFunds, Reverted, TimedOut
from dfl_ledger.records import Address, Receipt, TxHash
from dfl_ledger.rpc import Rpc, RpcError

log = structlog.get_logger(__name__)

_GWEI = 10**9
_FEES_FRESH_S = 1.0
_SEND_ATTEMPTS = 4
# Another member's transaction in between may make ours the one that ends a phase, which writes more storage
# than the estimate saw. What is not used is not paid.
_GAS_HEADROOM = 60_000
_POLL_FIRST_S = 0.02
_POLL_MOST_S = 1.0
_OUTAGE_S = 10.0


@dataclass(frozen=True, slots=True)
class FeePolicy:
    """How much gas may cost and how long a transaction may take. Fees in wei per gas."""

    max_fee_wei: int = 500 * _GWEI
    min_tip_wei: int = 1
    stuck_after_s: float = 30.0  # no receipt by then: the fee is raised
    deadline_s: float = 180.0


@dataclass(frozen=True, slots=True)
class Fees:
    """EIP-1559 fees, wei per gas."""

    max_fee_wei: int
    tip_wei: int

    def raised(self) -> Fees:
        """An eighth more, rounded up: the least that replaces a waiting transaction."""
        return Fees(-(-self.max_fee_wei * 9 // 8) + 1, -(-self.tip_wei * 9 // 8) + 1)


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction that succeeded, with its raw logs."""

    receipt: Receipt
    logs: tuple[dict[str, Any], ...]
    created: str  # the new contract's address, "" if none


@dataclass(frozen=True, slots=True)
class _Request:
    call: str  # the contract function, for messages
    to: Address | None
    data: bytes
    value_wei: int
    gas: int


class Writer:
    """Sends one account's transactions. Threads may share it: only nonce and sending are serialised."""

    def __init__(
        self,
        rpc: Rpc,
        chain_id: int,
        account: LocalAccount,
        policy: FeePolicy,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rpc = rpc
        self._chain_id = chain_id
        self._account = account
        self._policy = policy
        self._sleep = sleep
        self._monotonic = monotonic
        # Two processes that make the same call with the same nonce must not sign the same transaction: each
        # would take the other's receipt for its own. A gas limit of one's own tells them apart.
        self._headroom = _GAS_HEADROOM + secrets.randbelow(_GAS_HEADROOM // 4)
        self._lock = threading.Lock()
        self._nonce: int | None = None
        self._fees: tuple[float, Fees] | None = None

    @property
    def address(self) -> Address:
        return Address(self._account.address)

    def __repr__(self) -> str:
        return f"Writer({self.address})"

    def send(self, call: str, to: Address | None, data: bytes, *, value_wei: int = 0) -> Mined:
        """Estimate, sign, send and wait. `call` names the function in messages.

        Raises Reverted, InsufficientFunds, ChainUnreachable, TimedOut (the transaction may still be mined).
        """
        gas = self._estimate(call, to, data, value_wei)
        request = _Request(call, to, data, value_wei, gas)
        nonce, fees, tx = self._submit(request)
        return self._wait(request, nonce, fees, tx)

    # -- before sending -------------------------------------------------------------------------------
    def _estimate(self, call: str, to: Address | None, data: bytes, value_wei: int) -> int:
        fields: dict[str, object] = {"from": self.address, "data": "0x" + data.hex()}
        if to is not None:
            fields["to"] = to
        if value_wei:
            fields["value"] = hex(value_wei)
        try:
            needed = self._rpc.as_int(self._rpc.call_now("eth_estimateGas", fields))
        except RpcError as error:
            raise refusal(call, error) from None
        return needed + needed // 4 + self._headroom

    def _current_fees(self) -> Fees:
        if self._fees is not None and self._monotonic() - self._fees[0] < _FEES_FRESH_S:
            return self._fees[1]
        history = self._rpc.as_object(self._rpc.call("eth_feeHistory", "0x5", "latest", [50]))
        bases, rewards = history.get("baseFeePerGas"), history.get("reward")
        if not isinstance(bases, list) or not bases:
            raise ChainUnreachable("the chain gives no base fee", why="it predates EIP-1559")
        base = self._rpc.as_int(bases[-1])
        tips = [self._rpc.as_int(r[0]) for r in rewards or () if isinstance(r, list) and r]
        tip = max(sorted(tips)[len(tips) // 2] if tips else 0, self._policy.min_tip_wei)
        most = min(2 * base + tip, self._policy.max_fee_wei)
        fees = Fees(most, min(tip, most))
        self._fees = (self._monotonic(), fees)
        return fees

    # -- sending --------------------------------------------------------------------------------------
    def _submit(self, request: _Request) -> tuple[int, Fees, TxHash]:
        with self._lock:
            try:
                return self._submit_locked(request)
            except DflError:
                self._nonce = None
                raise

    def _submit_locked(self, request: _Request) -> tuple[int, Fees, TxHash]:
        fees = self._current_fees()
        reason = ""
        for _ in range(_SEND_ATTEMPTS):
            if self._nonce is None:
                self._nonce = self._rpc.quantity("eth_getTransactionCount", self.address, "pending")
            nonce = self._nonce
            tx, raw = self._sign(request, nonce, fees)
            try:
                self._rpc.call("eth_sendRawTransaction", raw)
            except RpcError as error:
                reason = error.message.lower()
                if _is_known(reason) or ("nonce too low" in reason and self._receipt(tx) is not None):
                    pass  # an answer got lost: the chain has it already
                elif "nonce" in reason:
                    log.info("nonce read again", address=self.address, nonce=nonce, reason=reason)
                    self._nonce = None
                    continue
                elif "underpriced" in reason or "less than block base fee" in reason:
                    # Either another process holds this nonce, or the base fee rose since we looked.
                    self._nonce = self._fees = None
                    fees = self._current_fees()
                    continue
                else:
                    raise self._send_refused(request, fees, error) from None
            self._nonce = nonce + 1
            log.debug("transaction sent", call=request.call, tx=tx, nonce=nonce, gas=request.gas)
            return nonce, fees, tx
        raise DflError(f"the chain did not take {request.call}", why=reason)

    def _sign(self, request: _Request, nonce: int, fees: Fees) -> tuple[TxHash, str]:
        fields: dict[str, Any] = {
            "type": 2,
            "chainId": self._chain_id,
            "nonce": nonce,
            "gas": request.gas,
            "maxFeePerGas": fees.max_fee_wei,
            "maxPriorityFeePerGas": fees.tip_wei,
            "value": request.value_wei,
            "data": request.data,
        }
        if request.to is not None:
            fields["to"] = request.to
        signed = self._account.sign_transaction(fields)
        return TxHash("0x" + signed.hash.hex()), "0x" + signed.raw_transaction.hex()

    def _send_refused(self, request: _Request, fees: Fees, error: RpcError) -> DflError:
        if "insufficient funds" not in error.message.lower():
            return refusal(request.call, error)
        needed = request.gas * fees.max_fee_wei + request.value_wei
        available = self._rpc.quantity("eth_getBalance", self.address, "latest")
        return InsufficientFunds(
            f"{self.address} cannot pay for {request.call}",
            why=f"gas needs up to {needed} wei of the chain's coin, available are {available} wei",
            help_command="dfl-node wallet show",
        )

    # -- waiting --------------------------------------------------------------------------------------
    def _wait(self, request: _Request, nonce: int, fees: Fees, tx: TxHash) -> Mined:
        started = bumped = answered = self._monotonic()
        sent = [tx]
        pause = _POLL_FIRST_S
        while True:
            try:
                for candidate in sent:
                    if (receipt := self._receipt(candidate)) is not None:
                        return self._mined(request, candidate, receipt)
                answered = self._monotonic()
            except ChainUnreachable:
                # The transaction is on its way: a short outage must not make its sender forget it.
                if self._monotonic() - answered > _OUTAGE_S:
                    self._forget_nonce()
                    raise
                self._sleep(_POLL_MOST_S)
                continue
            now = self._monotonic()
            if now - started > self._policy.deadline_s:
                self._forget_nonce()
                raise TimedOut(
                    f"{request.call} was not mined within {self._policy.deadline_s:g} s",
                    why=f"{sent[-1]} may still be mined; it offers {fees.max_fee_wei} wei per gas",
                )
            if now - bumped > self._policy.stuck_after_s:
                bumped = now
                fees, replacement = self._replace(request, nonce, fees, sent)
                if replacement is not None:
                    sent.append(replacement)
            self._sleep(pause)
            pause = min(pause * 1.5, _POLL_MOST_S)

    def _replace(
        self, request: _Request, nonce: int, fees: Fees, sent: Sequence[TxHash]
    ) -> tuple[Fees, TxHash | None]:
        """Offer more for the same nonce. (fees, None) when the cap forbids it or nothing is to be done."""
        mined_nonce = self._rpc.quantity("eth_getTransactionCount", self.address, "latest")
        if mined_nonce > nonce and all(self._receipt(tx) is None for tx in sent):
            self._forget_nonce()
            raise DflError(
                f"{request.call} was replaced",
                why=f"another transaction of {self.address} took nonce {nonce}: is the wallet used twice?",
            )
        more = fees.raised()
        if mined_nonce > nonce or more.max_fee_wei > self._policy.max_fee_wei:
            return fees, None
        tx, raw = self._sign(request, nonce, more)
        try:
            self._rpc.call("eth_sendRawTransaction", raw)
        except RpcError as error:
            # Underpriced (the pool wants a larger step: the next one is built on this), or mined meanwhile.
            log.info("fee not raised", call=request.call, nonce=nonce, reason=error.message)
            return (more, tx) if _is_known(error.message.lower()) else (more, None)
        log.info("fee raised", call=request.call, nonce=nonce, max_fee_wei=more.max_fee_wei, tx=tx)
        return more, tx

    def _forget_nonce(self) -> None:
        with self._lock:
            self._nonce = None

    def _receipt(self, tx: TxHash) -> dict[str, Any] | None:
        try:
            answer = self._rpc.call("eth_getTransactionReceipt", tx)
        except RpcError:
            return None  # some endpoints say "indexing in progress" instead of null
        return None if answer is None else self._rpc.as_object(answer)

    def _mined(self, request: _Request, tx: TxHash, receipt: dict[str, Any]) -> Mined:
        block = self._rpc.as_int(receipt.get("blockNumber"))
        gas_used = self._rpc.as_int(receipt.get("gasUsed"))
        if self._rpc.as_int(receipt.get("status")) != 1:
            why = self._why_reverted(request, block, gas_used)
            raise Reverted(request.call, why.name, why.args)
        logs = receipt.get("logs")
        created = receipt.get("contractAddress")
        return Mined(
            Receipt(tx, block, gas_used),
            tuple(self._rpc.as_object(entry) for entry in logs) if isinstance(logs, list) else (),
            created if isinstance(created, str) else "",
        )

    def _why_reverted(self, request: _Request, block: int, gas_used: int) -> DecodedError:
        """Repeat the call on the block that refused it: the state there is what it ran into."""
        fields: dict[str, object] = {"from": self.address, "data": "0x" + request.data.hex()}
        if request.to is not None:
            fields["to"] = request.to
        try:
            self._rpc.call("eth_call", fields, hex(block))
        except RpcError as error:
            return decode_error(revert_data(error) or b"")
        return DecodedError("OutOfGas" if gas_used >= request.gas else "Unknown", {})


def revert_data(error: RpcError) -> bytes | None:
    """What the contract returned on its revert, None when the error is not a revert. Clients nest it."""
    data = error.data
    if isinstance(data, dict):
        data = data.get("data")
    if isinstance(data, str):
        text = data.removeprefix("Reverted ").removeprefix("0x")
        try:
            return bytes.fromhex(text)
        except ValueError:
            return None
    return b"" if "revert" in error.message.lower() else None


def refusal(call: str, error: RpcError) -> DflError:
    """The error for a call or an estimate that the endpoint refused."""
    data = revert_data(error)
    if data is not None:
        reason = decode_error(data)
        if reason.name == "ERC20InsufficientBalance":
            return InsufficientFunds(
                f"{call} needs more VNX than the wallet has",
                why=f"needed are {reason.args['needed']} wei, available are {reason.args['balance']} wei",
                help_command="dfl-node wallet show",
            )
        return Reverted(call, reason.name, reason.args)
    if "insufficient funds" in error.message.lower():
        return InsufficientFunds(f"{call} cannot be paid", why=error.message)
    return DflError(f"the chain did not take {call}", why=error.message)


def _is_known(reason: str) -> bool:
    return "already known" in reason or "already imported" in reason or "known transaction" in reason
