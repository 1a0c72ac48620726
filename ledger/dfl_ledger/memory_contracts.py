"""The in-memory chain: the six contracts' twins, wired together, with a clock of their own."""

from __future__ import annotations

import time
from collections.abc import Callable

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from dfl_ledger.memory_assets import MemoryAssets
from dfl_ledger.memory_board import MemoryBoard
from dfl_ledger.memory_chain import ETHER, Blocks, Token
from dfl_ledger.memory_challenges import MemoryChallenges
from dfl_ledger.memory_distributor import MemoryDistributor
from dfl_ledger.memory_jobs import MemoryJobs
from dfl_ledger.memory_registry import MemoryRegistry
from dfl_ledger.records import Address


def _contract_address(name: str) -> Address:
    return Address(to_checksum_address(keccak(text=name)[12:]))


class MemoryChain:
    """A chain with the six contracts on it. `seed` fixes its hashes, and so who is drawn to aggregate."""

    def __init__(
        self,
        now: Callable[[], int] = lambda: int(time.time()),
        *,
        chain_id: int = 31337,
        unbond_delay_s: int = 30 * 24 * 3600,
        min_evaluator_stake_wei: int = ETHER,
        seed: bytes = b"dfl",
    ) -> None:
        self.chain_id = chain_id
        self.treasury = _contract_address("treasury")
        self.blocks = Blocks(now, seed)
        self.token = Token(self.treasury)
        self.registry = MemoryRegistry(
            self.blocks,
            self.token,
            _contract_address("NodeRegistry"),
            unbond_delay_s=unbond_delay_s,
            min_evaluator_stake_wei=min_evaluator_stake_wei,
        )
        self.assets = MemoryAssets()
        vault = _contract_address("RewardDistributor")
        self.jobs = MemoryJobs(self.blocks, self.token, self.registry, self.assets, vault)
        self.board = MemoryBoard(self.blocks, self.registry, self.jobs)
        self.distributor = MemoryDistributor(self.token, self.registry, self.assets, self.jobs, vault)
        self.challenges = MemoryChallenges(self.distributor, self.jobs, self.board)
        self.jobs.outcome, self.jobs.final_at = self.board.outcome, self.distributor.final_at

    def fund(self, address: Address, native_wei: int = ETHER, vnx_wei: int = 0) -> None:
        """Give an address coin for gas, and VNX from the treasury."""
        with self.blocks.reading():
            self.blocks.coin[address] += native_wei
            self.token.move("transfer", self.treasury, address, vnx_wei)
