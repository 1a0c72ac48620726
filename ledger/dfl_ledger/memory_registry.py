"""The in-memory twin of NodeRegistry.sol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dfl_ledger.memory_chain import Blocks, Token, Transaction
from dfl_ledger.memory_evaluators import Evaluators
from dfl_ledger.records import NOBODY, Address, NodeRecord

MAX_BOOT_ADDRS = 8
MAX_BOOT_ADDR_BYTES = 256
MAX_LEAST_WINDOW_S = 600  # seconds of a scoring phase that are enough for every evaluator
REPORTER_BPS = 1000  # what who reports an offence gets of what is slashed
_NAME = "NodeRegistry"


@dataclass(frozen=True)
class SeatLimits:
    """Which seats an evaluator takes."""

    least_window_s: int
    most_bond_wei: int
    since: int  # the block in which it said so


class MemoryRegistry:
    """Who takes part, with what stake, and who may be drawn as an evaluator."""

    def __init__(
        self,
        blocks: Blocks,
        token: Token,
        address: Address,
        *,
        unbond_delay_s: int,
        min_evaluator_stake_wei: int,
    ) -> None:
        self._token = token
        self._address = address
        self.unbond_delay_s = unbond_delay_s
        self.min_evaluator_stake_wei = min_evaluator_stake_wei
        self.nodes: dict[Address, NodeRecord] = {}
        self.evaluators = Evaluators(blocks)
        self._named: dict[Address, Address] = {}
        self._acts_for: dict[Address, Address] = {}
        self._seat_limits: dict[Address, SeatLimits] = {}

    def is_bonded(self, node: Address) -> bool:
        record = self.nodes.get(node)
        return record is not None and record.unbond_at == 0

    def stake_of(self, node: Address) -> int:
        """0 for a node that is unknown or on its way out."""
        return self.nodes[node].stake_wei if self.is_bonded(node) else 0

    def boot_addrs(self) -> tuple[str, ...]:
        return tuple(a for n, record in self.nodes.items() if self.is_bonded(n) for a in record.boot_addrs)

    def delegate_of(self, node: Address) -> Address | None:
        delegate = self._named.get(node)
        return delegate if delegate is not None and self._acts_for.get(delegate) == node else None

    def principal_of(self, sender: Address) -> Address:
        own = self._acts_for.get(sender)
        return own if own is not None and self._named.get(own) == sender else sender

    # -- joining and leaving --------------------------------------------------------------------------
    def register(self, tx: Transaction, peer_key: bytes, add_stake: int, boot_addrs: Sequence[str]) -> None:
        node = tx.sender
        if peer_key == bytes(32):
            raise tx.refused("InvalidPeerKey", node=node)
        if node in self._acts_for:
            raise tx.refused("IsDelegate", delegate=node, node=self._acts_for[node])
        if len(boot_addrs) > MAX_BOOT_ADDRS:
            raise tx.refused("TooManyBootAddrs", count=len(boot_addrs), most=MAX_BOOT_ADDRS)
        for index, addr in enumerate(boot_addrs):
            length = len(addr.encode())
            if not 0 < length <= MAX_BOOT_ADDR_BYTES:
                raise tx.refused("InvalidBootAddr", index=index, length=length, most=MAX_BOOT_ADDR_BYTES)
        before = self.nodes.get(node)
        if before is not None and before.unbond_at:
            raise tx.refused("NodeIsUnbonding", node=node, unbondAt=before.unbond_at)
        self._token.move(tx.call, node, self._address, add_stake)
        stake = add_stake + (before.stake_wei if before else 0)
        self.nodes[node] = NodeRecord(node, peer_key, stake, 0, tuple(boot_addrs))
        tx.emit(
            _NAME,
            "NodeRegistered",
            node=node,
            peerKey="0x" + peer_key.hex(),
            stake=stake,
            bootAddrs=list(boot_addrs),
        )
        if add_stake:
            self._weigh(tx, node, stake)

    def top_up(self, tx: Transaction, node: Address, amount: int) -> None:
        record = self._bonded(tx, node)
        self._token.move(tx.call, tx.sender, self._address, amount)
        stake = record.stake_wei + amount
        self.nodes[node] = replace(record, stake_wei=stake)
        tx.emit(_NAME, "StakeAdded", node=node, **{"from": tx.sender}, amount=amount, stake=stake)
        self._weigh(tx, node, stake)

    def unbond(self, tx: Transaction) -> None:
        record = self._bonded(tx, tx.sender)
        unbond_at = tx.timestamp + self.unbond_delay_s
        self.nodes[tx.sender] = replace(record, unbond_at=unbond_at)
        if self.evaluators.holds(tx.sender):
            self._set_weight(tx, tx.sender, 0)
        tx.emit(_NAME, "NodeUnbonding", node=tx.sender, unbondAt=unbond_at)

    def withdraw(self, tx: Transaction) -> None:
        record = self.nodes.get(tx.sender)
        if record is None or not record.unbond_at:
            raise tx.refused("NodeNotUnbonding", node=tx.sender)
        if tx.timestamp < record.unbond_at:
            raise tx.refused("StakeLocked", node=tx.sender, unbondAt=record.unbond_at)
        del self.nodes[tx.sender]
        self._token.move(tx.call, self._address, tx.sender, record.stake_wei)
        tx.emit(_NAME, "NodeWithdrawn", node=tx.sender, stake=record.stake_wei)

    # -- hot keys -------------------------------------------------------------------------------------
    def set_delegate(self, tx: Transaction, delegate: Address) -> None:
        self._named[tx.sender] = delegate
        tx.emit(_NAME, "DelegateNamed", node=tx.sender, delegate=delegate)

    def act_for(self, tx: Transaction, node: Address) -> None:
        if node != NOBODY:
            if tx.sender in self.nodes:
                raise tx.refused("DelegateIsNode", delegate=tx.sender)
            if self._named.get(node) != tx.sender:
                raise tx.refused("NotNamed", node=node, delegate=tx.sender)
            self._acts_for[tx.sender] = node
        else:
            self._acts_for.pop(tx.sender, None)
        tx.emit(_NAME, "DelegateAccepted", node=node, delegate=tx.sender)

    # -- evaluators -----------------------------------------------------------------------------------
    def enlist(self, tx: Transaction) -> None:
        own = self.principal_of(tx.sender)
        stake, least = self._bonded(tx, own).stake_wei, self.min_evaluator_stake_wei
        if self.evaluators.holds(own):
            raise tx.refused("AlreadyEnlisted", node=own)
        if stake < least or stake == 0:
            raise tx.refused("EvaluatorStakeTooLow", node=own, stake=stake, least=least)
        self._set_weight(tx, own, stake)

    def delist(self, tx: Transaction) -> None:
        own = self.principal_of(tx.sender)
        if not self.evaluators.holds(own):
            raise tx.refused("NotEnlisted", node=own)
        self._set_weight(tx, own, 0)

    def limit_seats(self, tx: Transaction, least_window_s: int, most_bond_wei: int) -> None:
        least = self.min_evaluator_stake_wei
        if least_window_s > MAX_LEAST_WINDOW_S or most_bond_wei < least:
            raise tx.refused(
                "SeatLimitOutOfRange",
                leastWindow=least_window_s,
                mostWindow=MAX_LEAST_WINDOW_S,
                mostBond=most_bond_wei,
                leastBond=least,
            )
        own = self.principal_of(tx.sender)
        self._seat_limits[own] = SeatLimits(least_window_s, most_bond_wei, tx.block)
        tx.emit(_NAME, "SeatsLimited", node=own, leastWindow=least_window_s, mostBond=most_bond_wei)

    def may_decline(self, node: Address, draw_block: int, window_s: int, bond_wei: int) -> bool:
        """True if an evaluator drawn from this block need not take a seat with this window and bond."""
        limits = self._seat_limits.get(node)
        if limits is None or draw_block < limits.since:  # nobody gets out of a seat that it may know of
            return False
        return window_s < limits.least_window_s or bond_wei > limits.most_bond_wei

    def slash(self, tx: Transaction, node: Address, amount: int, reporter: Address) -> None:
        """On the word of jobs, score board or distributor. Nothing in here is refused."""
        record = self.nodes.get(node)
        slashed = min(record.stake_wei, amount) if record is not None else 0
        if record is None or slashed == 0:
            return
        stake = record.stake_wei - slashed
        self.nodes[node] = replace(record, stake_wei=stake)
        reward = slashed * REPORTER_BPS // 10_000
        tx.emit(_NAME, "Slashed", node=node, reporter=reporter, slashed=slashed, reward=reward)
        self._weigh(tx, node, stake)
        self._token.move(tx.call, self._address, reporter, reward)
        self._token.burn(self._address, slashed - reward)

    def _bonded(self, tx: Transaction, node: Address) -> NodeRecord:
        record = self.nodes.get(node)
        if record is None:
            raise tx.refused("NodeUnknown", node=node)
        if record.unbond_at:
            raise tx.refused("NodeIsUnbonding", node=node, unbondAt=record.unbond_at)
        return record

    def _weigh(self, tx: Transaction, node: Address, stake: int) -> None:
        """An evaluator weighs what it has at stake, and is none below the minimum."""
        if self.evaluators.holds(node):
            self._set_weight(tx, node, 0 if stake < self.min_evaluator_stake_wei else stake)

    def _set_weight(self, tx: Transaction, node: Address, weight: int) -> None:
        self.evaluators.set(node, weight)
        tx.emit(_NAME, "EvaluatorWeighed", node=node, weight=weight)
