"""One wallet's transactions: nonce, gas, fees, and the wait for a receipt.

A transaction costs three round trips when nothing goes wrong: estimate, send, receipt. Nonces are counted
here and read again from the chain after every error, so that a second process with the same wallet, or a
transaction that was never sent, does no lasting harm. What is sent is journalled before (see sent.py): a
call whose end a process did not live to see is looked for, sent again as it was, and answers for the same
call made again. It is never made twice.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from dfl_ledger.accounts import LocalAccount
from dfl_ledger.contracts import DecodedError, decode_error
from dfl_ledger.errors import ChainUnreachable, DflError, InsufficientFunds, Reverted, TimedOut
from dfl_ledger.records import Address, Receipt, TxHash
from dfl_ledger.rpc import Rpc, RpcError
from dfl_ledger.sent import Call, Offer, Sent, SentJournal

log = structlog.get_logger(__name__)

_GWEI = 10**9
_FEES_FRESH_S = 1.0
_APPEARS_S = (0.0, 0.1, 0.2, 0.4, 0.8)  # pauses before each look
_SEND_ATTEMPTS = 4
# Another member's transaction in between may make ours the one that ends a phase, which writes more storage
# than the estimate saw. What is not used is not paid.
_GAS_HEADROOM = 60_000
_POLL_FIRST_S = 0.02
_POLL_MOST_S = 1.0
_OUTAGE_S = 10.0
_RECEIPT_LATE_S = 3.0  # that a receipt may come after its nonce counts as used
_RESUME_S = 30.0  # that a node's start waits for what its last life sent
# Calls that may be meant again with the same arguments. If an earlier one is on chain already it is no answer
# to a new one; one that is still on its way is.
_REPEATABLE = frozenset(
    {"advance", "approve", "join", "cancel", "refund", "unbond", "withdraw", "fund", "transfer"}
)


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
        self._journal = SentJournal(None, chain="", sender=self.address)
        self._awaited: set[int] = set()  # of the journal: some thread sees to it

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    @property
    def address(self) -> Address:
        return Address(self._account.address)

    def __repr__(self) -> str:
        return f"Writer({self.address})"

    def sign_typed_data(
        self, domain: dict[str, Any], types: dict[str, Any], message: dict[str, Any]
    ) -> tuple[int, bytes, bytes]:
        """Our signature of typed data (EIP-712): v, r, s."""
        signed = self._account.sign_typed_data(domain, types, message)
        return signed.v, signed.r.to_bytes(32, "big"), signed.s.to_bytes(32, "big")

    def send(self, call: str, to: Address | None, data: bytes, *, value_wei: int = 0) -> Mined:
        """Estimate, sign, send and wait. `call` names the function in messages.

        If the same call was sent before and its end is not known, that one is seen to its end instead.
        Raises Reverted, InsufficientFunds, ChainUnreachable, TimedOut (the transaction may still be mined;
        the same call made again goes on waiting for it), StoreUnavailable when it cannot be journalled.
        """
        made = Call(call, to, data, value_wei)
        if (earlier := self._adopt(made)) is not None:
            found = self._see_through(earlier)
            if found is not None:
                return found
        gas = self._estimate(made)
        sent = self._submit(made, gas)
        return self._wait(sent)

    def resume(self, journal: SentJournal) -> None:
        """Keep what is sent in this journal from now on, and see to what an earlier process left there open.

        Called before the first `send`. What the chain has not taken within half a minute stays open, for the
        same call to be made again.
        """
        self._journal.close()
        self._journal = journal
        left = journal.open()
        for sent in left:  # all of them first: a nonce waits for the one before
            log.info("transaction resumed", call=sent.call.name, nonce=sent.nonce, tx=sent.offers[-1].tx)
            self._send_again(sent)
        until = self._monotonic() + _RESUME_S
        for sent in left:
            try:
                self._wait(sent, is_old=True, patience_s=max(0.0, until - self._monotonic()))
            except (TimedOut, ChainUnreachable) as waiting:
                log.warning("transaction still open", call=sent.call.name, why=str(waiting))
            except DflError as end:  # reverted, or another one took its nonce
                log.info("transaction had no effect", call=sent.call.name, why=str(end))

    # -- before sending -------------------------------------------------------------------------------
    def _estimate(self, call: Call) -> int:
        try:
            needed = self._rpc.as_int(self._rpc.call_now("eth_estimateGas", self._fields(call)))
        except RpcError as error:
            raise refusal(call.name, error) from None
        return needed + needed // 4 + self._headroom

    def _fields(self, call: Call) -> dict[str, object]:
        """For eth_estimateGas and eth_call."""
        fields: dict[str, object] = {"from": self.address, "data": "0x" + call.data.hex()}
        if call.to is not None:
            fields["to"] = call.to
        if call.value_wei:
            fields["value"] = hex(call.value_wei)
        return fields

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

    # -- what was sent before -------------------------------------------------------------------------
    def unfinished(self, call: str, to: Address, start: bytes) -> bytes | None:
        """The data of a call that was sent and whose end is not known, if it begins like this.

        For calls that would have other bytes when made again, such as a signature under a nonce that was
        used.
        """
        with self._lock:
            open_ = [sent.call for sent in self._journal.open()]
        found = [own.data for own in open_ if (own.name, own.to) == (call, to) and own.data.startswith(start)]
        return found[-1] if found else None

    def _adopt(self, call: Call) -> Sent | None:
        """The same call, sent before, whose end nobody waits for."""
        with self._lock:
            for sent in self._journal.open():
                if sent.call == call and sent.id not in self._awaited:
                    self._awaited.add(sent.id)
                    return sent
        return None

    def _see_through(self, sent: Sent) -> Mined | None:
        """What became of it; None if it has no effect and the call is to be made anew."""
        try:
            if any(self._receipt(offer.tx) is not None for offer in sent.offers):
                if sent.call.name in _REPEATABLE:
                    self._journal.mined(sent.id)
                    return None
            else:
                self._send_again(sent)
            log.info("sent before", call=sent.call.name, nonce=sent.nonce, tx=sent.offers[-1].tx)
            return self._wait(sent, is_old=True)
        except (Overtaken, Reverted):
            return None
        finally:
            with self._lock:
                self._awaited.discard(sent.id)

    def _send_again(self, sent: Sent) -> None:
        """The same bytes: a pool that has them knows them, one that forgot them takes them again."""
        try:
            self._rpc.call("eth_sendRawTransaction", sent.offers[-1].raw)
        except RpcError as error:  # known, used, or underpriced by now: the wait finds out
            log.debug("not taken again", call=sent.call.name, nonce=sent.nonce, reason=error.message)

    # -- sending --------------------------------------------------------------------------------------
    def _submit(self, call: Call, gas: int) -> Sent:
        with self._lock:
            try:
                return self._submit_locked(call, gas)
            except DflError:
                self._nonce = None
                raise

    def _submit_locked(self, call: Call, gas: int) -> Sent:
        fees = self._current_fees()
        reason = ""
        for _ in range(_SEND_ATTEMPTS):
            if self._nonce is None:
                self._nonce = self._rpc.quantity("eth_getTransactionCount", self.address, "pending")
            nonce = self._nonce
            offer = self._sign(call, gas, nonce, fees)
            id_ = self._journal.begin(call, gas, nonce, offer)
            try:
                self._rpc.call("eth_sendRawTransaction", offer.raw)
            except RpcError as error:
                reason = error.message.lower()
                if _is_known(reason) or ("nonce too low" in reason and self._appears(offer.tx)):
                    pass  # an answer got lost: the chain has it already
                else:
                    self._journal.dropped(id_)
                    self._nonce = None
                    if "nonce" in reason:
                        log.info("nonce read again", address=self.address, nonce=nonce, reason=reason)
                    elif "underpriced" in reason or "less than block base fee" in reason:
                        # Either another process holds this nonce, or the base fee rose since we looked.
                        self._fees = None
                        fees = self._current_fees()
                    else:
                        raise self._send_refused(call, gas, fees, error) from None
                    continue
            self._nonce = nonce + 1
            self._awaited.add(id_)
            log.debug("transaction sent", call=call.name, tx=offer.tx, nonce=nonce, gas=gas)
            return Sent(id_, call, gas, nonce, (offer,))
        raise DflError(f"the chain did not take {call.name}", why=reason)

    def _appears(self, tx: TxHash) -> bool:
        """Whether the chain has this transaction.

        It counts a nonce a moment before it shows what used it. To take ours for somebody else's in that
        moment would be to send it twice.
        """
        for pause_s in _APPEARS_S:
            self._sleep(pause_s)
            if self._receipt(tx) is not None:
                return True
        return False

    def _sign(self, call: Call, gas: int, nonce: int, fees: Fees) -> Offer:
        fields: dict[str, Any] = {
            "type": 2,
            "chainId": self._chain_id,
            "nonce": nonce,
            "gas": gas,
            "maxFeePerGas": fees.max_fee_wei,
            "maxPriorityFeePerGas": fees.tip_wei,
            "value": call.value_wei,
            "data": call.data,
        }
        if call.to is not None:
            fields["to"] = call.to
        signed = self._account.sign_transaction(fields)
        return Offer(
            TxHash("0x" + signed.hash.hex()),
            "0x" + signed.raw_transaction.hex(),
            fees.max_fee_wei,
            fees.tip_wei,
        )

    def _send_refused(self, call: Call, gas: int, fees: Fees, error: RpcError) -> DflError:
        if "insufficient funds" not in error.message.lower():
            return refusal(call.name, error)
        needed = gas * fees.max_fee_wei + call.value_wei
        available = self._rpc.quantity("eth_getBalance", self.address, "latest")
        return InsufficientFunds(
            f"{self.address} cannot pay for {call.name}",
            why=f"gas needs up to {needed} wei of the chain's coin, available are {available} wei",
            help_command="dfl-node wallet show",
        )

    # -- waiting --------------------------------------------------------------------------------------
    def _wait(self, sent: Sent, *, is_old: bool = False, patience_s: float | None = None) -> Mined:
        """Until it is mined, or `patience_s` (None: the policy's deadline) has passed: then it stays open.

        What `is_old` may have lost its nonce to another transaction long ago.
        """
        try:
            return self._wait_for(sent, is_old, self._policy.deadline_s if patience_s is None else patience_s)
        finally:
            with self._lock:
                self._awaited.discard(sent.id)

    def _wait_for(self, sent: Sent, is_old: bool, patience_s: float) -> Mined:
        started = bumped = answered = self._monotonic()
        pause = _POLL_FIRST_S
        passed_at = started if is_old else None  # since when another transaction seems to have its nonce
        while True:
            try:
                for offer in sent.offers:
                    if (receipt := self._receipt(offer.tx)) is not None:
                        self._journal.mined(sent.id)
                        return self._mined(sent, offer.tx, receipt)
                answered = self._monotonic()
                now = self._monotonic()
                if now - started > patience_s:
                    self._forget_nonce()
                    raise TimedOut(
                        f"{sent.call.name} was not mined within {patience_s:g} s",
                        why=f"{sent.offers[-1].tx} may still be mined; "
                        f"it offers {sent.offers[-1].max_fee_wei} wei per gas",
                    )
                is_stuck = now - bumped > self._policy.stuck_after_s
                if is_stuck or passed_at is not None:
                    if self._passed(sent):
                        passed_at = now if passed_at is None else passed_at
                        if now - passed_at > _RECEIPT_LATE_S:
                            raise self._overtaken(sent)
                    else:
                        passed_at = None
                        if is_stuck:
                            bumped = now
                            sent = self._replace(sent)
            except ChainUnreachable:
                # The transaction is on its way: a short outage must not make its sender forget it.
                if self._monotonic() - answered > _OUTAGE_S:
                    self._forget_nonce()
                    raise
                self._sleep(_POLL_MOST_S)
                continue
            self._sleep(pause)
            pause = min(pause * 1.5, _POLL_MOST_S)

    def _passed(self, sent: Sent) -> bool:
        """A transaction with its nonce is mined."""
        return self._rpc.quantity("eth_getTransactionCount", self.address, "latest") > sent.nonce

    def _overtaken(self, sent: Sent) -> Overtaken:
        self._forget_nonce()
        self._journal.dropped(sent.id)
        return Overtaken(
            f"{sent.call.name} was replaced",
            why=f"another transaction of {self.address} took nonce {sent.nonce}: is the wallet used twice?",
        )

    def _replace(self, sent: Sent) -> Sent:
        """Offer more for the same nonce, unless the cap forbids it."""
        newest = sent.offers[-1]
        more = Fees(newest.max_fee_wei, newest.tip_wei).raised()
        if more.max_fee_wei > self._policy.max_fee_wei:
            return sent
        offer = self._sign(sent.call, sent.gas, sent.nonce, more)
        self._journal.raised(sent.id, offer)
        # Kept even if it is refused as underpriced: the pool wants a larger step, and the next builds on it.
        raised = replace(sent, offers=(*sent.offers, offer))
        try:
            self._rpc.call("eth_sendRawTransaction", offer.raw)
        except RpcError as error:
            log.info("fee not raised", call=sent.call.name, nonce=sent.nonce, reason=error.message)
        else:
            log.info(
                "fee raised", call=sent.call.name, nonce=sent.nonce, max_fee_wei=more.max_fee_wei, tx=offer.tx
            )
        return raised

    def _forget_nonce(self) -> None:
        with self._lock:
            self._nonce = None

    def _receipt(self, tx: TxHash) -> dict[str, Any] | None:
        try:
            answer = self._rpc.call("eth_getTransactionReceipt", tx)
        except RpcError:
            return None  # some endpoints say "indexing in progress" instead of null
        return None if answer is None else self._rpc.as_object(answer)

    def _mined(self, sent: Sent, tx: TxHash, receipt: dict[str, Any]) -> Mined:
        block = self._rpc.as_int(receipt.get("blockNumber"))
        gas_used = self._rpc.as_int(receipt.get("gasUsed"))
        if self._rpc.as_int(receipt.get("status")) != 1:
            why = self._why_reverted(sent, block, gas_used)
            raise Reverted(sent.call.name, why.name, why.args)
        logs = receipt.get("logs")
        created = receipt.get("contractAddress")
        return Mined(
            Receipt(tx, block, gas_used),
            tuple(self._rpc.as_object(entry) for entry in logs) if isinstance(logs, list) else (),
            created if isinstance(created, str) else "",
        )

    def _why_reverted(self, sent: Sent, block: int, gas_used: int) -> DecodedError:
        """Repeat the call on the block that refused it: the state there is what it ran into."""
        try:
            self._rpc.call("eth_call", self._fields(sent.call), hex(block))
        except RpcError as error:
            return decode_error(revert_data(error) or b"")
        return DecodedError("OutOfGas" if gas_used >= sent.gas else "Unknown", {})


class Overtaken(DflError):
    """Another transaction took its nonce: it has no effect and never will."""


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
