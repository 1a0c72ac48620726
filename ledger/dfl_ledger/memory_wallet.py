"""What the parts of `MemoryLedger` have in common: a wallet on a MemoryChain."""

from __future__ import annotations

from collections.abc import Callable

from eth_utils.address import is_checksum_address

from dfl_ledger.errors import UsageError
from dfl_ledger.memory_chain import Transaction
from dfl_ledger.memory_contracts import MemoryChain
from dfl_ledger.records import Address, Receipt


class MemoryWallet:
    """Sends transactions. Raises UsageError for what is not an EIP-55 address."""

    def __init__(self, chain: MemoryChain, address: Address) -> None:
        if not is_checksum_address(address):
            raise UsageError("not an EIP-55 address", why=repr(address))
        self._chain = chain
        self._blocks = chain.blocks
        self._address = address

    def _send(self, call: str, body: Callable[[Transaction], object]) -> Receipt:
        with self._blocks.transaction(call, self._address) as tx:
            body(tx)
        return tx.receipt

    def _view(self, call: str) -> Transaction:
        """As a call that changes nothing sees the chain: in a block mined now."""
        return Transaction(call, self._address, self._blocks.now(), self._blocks.newest.number + 1)
