"""The in-memory twin of NodeRegistry.sol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dfl_ledger.memory_chain import Token, Transaction
from dfl_ledger.records import Address, NodeRecord

MAX_BOOT_ADDRS = 8
MAX_BOOT_ADDR_BYTES = 256
_NAME = "NodeRegistry"


class MemoryRegistry:
    """Who takes part, with what stake."""

    def __init__(self, token: Token, address: Address, unbond_delay_s: int) -> None:
        self._token = token
        self._address = address
        self._unbond_delay_s = unbond_delay_s
        self.nodes: dict[Address, NodeRecord] = {}

    def is_bonded(self, node: Address) -> bool:
        record = self.nodes.get(node)
        return record is not None and record.unbond_at == 0

    def stake_of(self, node: Address) -> int:
        """0 for a node that is unknown or on its way out."""
        return self.nodes[node].stake_wei if self.is_bonded(node) else 0

    def boot_addrs(self) -> tuple[str, ...]:
        return tuple(a for n, record in self.nodes.items() if self.is_bonded(n) for a in record.boot_addrs)

    def register(self, tx: Transaction, peer_key: bytes, add_stake: int, boot_addrs: Sequence[str]) -> None:
        node = tx.sender
        if peer_key == bytes(32):
            raise tx.refused("InvalidPeerKey", node=node)
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

    def unbond(self, tx: Transaction) -> None:
        record = self.nodes.get(tx.sender)
        if record is None:
            raise tx.refused("NodeUnknown", node=tx.sender)
        if record.unbond_at:
            raise tx.refused("NodeIsUnbonding", node=tx.sender, unbondAt=record.unbond_at)
        unbond_at = tx.timestamp + self._unbond_delay_s
        self.nodes[tx.sender] = replace(record, unbond_at=unbond_at)
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
