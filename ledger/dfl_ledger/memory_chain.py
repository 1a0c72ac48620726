"""The ground the in-memory contracts stand on: blocks, time, events, the coin for gas, and the VNX token."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from eth_utils.crypto import keccak

from dfl_ledger.errors import ChainUnreachable, InsufficientFunds, Reverted
from dfl_ledger.records import Address, BlockRef, Event, Receipt, TxHash

# What a transaction costs here: the twin knows neither opcodes nor a fee market.
GAS = 100_000
FEE_WEI = 10**9

HASHES = 256  # blocks whose hashes a chain remembers

ETHER = 10**18
CAP_WEI = 1_000_000_000 * ETHER
_PENDING = Receipt(TxHash(""), 0, 0)


@dataclass
class Transaction:
    """A call on its way into the next block. Contracts check first and change state after the last check."""

    call: str
    sender: Address
    timestamp: int  # of the block it goes into
    block: int
    emitted: list[tuple[str, str, dict[str, object]]] = field(default_factory=list)
    receipt: Receipt = _PENDING  # set once mined

    def emit(self, contract: str, name: str, **args: object) -> None:
        self.emitted.append((contract, name, args))

    def refused(self, error: str, **args: object) -> Reverted:
        """The exception for a custom error."""
        return Reverted(self.call, error, args)


@dataclass(frozen=True)
class Block:
    number: int
    timestamp: int
    hash: bytes


class Blocks:
    """A chain that mines a block for each transaction. Threads may share it."""

    def __init__(self, now: Callable[[], int], seed: bytes) -> None:
        self._now = now
        self._seed = seed
        self._lock = threading.RLock()
        self._mined = [Block(0, now(), keccak(seed))]
        self._events: list[Event] = []
        self.coin: defaultdict[Address, int] = defaultdict(int)

    @property
    def newest(self) -> Block:
        return self._mined[-1]

    def now(self) -> int:
        """What a block mined now would be stamped with."""
        return max(self._now(), self.newest.timestamp)

    def randomness(self, *salts: int) -> int:
        """As prevrandao and the last block's hash give it: fixed by the seed and the height."""
        return int.from_bytes(
            keccak(self.newest.hash + b"".join(s.to_bytes(32, "big") for s in salts)), "big"
        )

    def block(self, number: int | None) -> BlockRef:
        """The newest one for None. Raises ChainUnreachable if there is none of this number."""
        with self._lock:
            if number is not None and not 0 <= number < len(self._mined):
                raise ChainUnreachable(f"there is no block {number}", why=f"the head is {self.newest.number}")
            found = self.newest if number is None else self._mined[number]
        return BlockRef(found.number, "0x" + found.hash.hex(), found.timestamp)

    def hash_seen(self, number: int, block: int) -> bytes | None:
        """The hash of a block as a transaction in `block` sees it: of the last 256 before it only."""
        return self._mined[number].hash if max(0, block - HASHES) <= number < block else None

    def events(self, from_block: int, to_block: int) -> list[Event]:
        with self._lock:
            return [event for event in self._events if from_block <= event.block <= to_block]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keeps what is read together in one block."""
        with self._lock:
            yield

    @contextmanager
    def transaction(self, call: str, sender: Address) -> Iterator[Transaction]:
        """Mines a block when the body ends well; an exception leaves the chain as it was."""
        with self._lock:
            cost, held = GAS * FEE_WEI, self.coin[sender]
            if held < cost:
                raise InsufficientFunds(
                    f"{sender} cannot pay for {call}",
                    why=f"gas needs up to {cost} wei of the chain's coin, available are {held} wei",
                    help_command="dfl-node wallet show",
                )
            tx = Transaction(call, sender, self.now(), self.newest.number + 1)
            yield tx
            self.coin[sender] -= cost
            self._mine(tx)

    def _mine(self, tx: Transaction) -> None:
        digest = keccak(self.newest.hash + self._seed + tx.call.encode())
        tx_hash = TxHash("0x" + keccak(digest + bytes.fromhex(tx.sender[2:])).hex())
        self._mined.append(Block(tx.block, tx.timestamp, digest))
        for index, (contract, name, args) in enumerate(tx.emitted):
            block_hash = "0x" + digest.hex()
            self._events.append(Event(tx.block, block_hash, index, tx_hash, contract, name, args))
        tx.receipt = Receipt(tx_hash, tx.block, GAS)


class Token:
    """VNX: balances only. Allowances are the caller's affair, and the callers here always give them."""

    def __init__(self, treasury: Address) -> None:
        self.balances: defaultdict[Address, int] = defaultdict(int, {treasury: CAP_WEI})

    def move(self, call: str, source: Address, to: Address, amount: int) -> None:
        """Raises InsufficientFunds, and then has moved nothing."""
        held = self.balances[source]
        if held < amount:
            raise InsufficientFunds(
                f"{call} needs more VNX than the wallet has",
                why=f"needed are {amount} wei, available are {held} wei",
                help_command="dfl-node wallet show",
            )
        self.balances[source] -= amount
        self.balances[to] += amount

    def burn(self, source: Address, amount: int) -> None:
        """What a contract holds, it can burn."""
        self.balances[source] -= amount
