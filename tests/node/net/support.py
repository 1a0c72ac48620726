"""Node keys, bindings and worlds for the tests of the network."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_account import Account
from eth_account.signers.local import LocalAccount

from dfl_ledger.records import Address
from dfl_node.net.binding import Binding, sign_binding
from dfl_node.net.channel import Channel
from dfl_node.net.config import NetConfig, NetLimits
from dfl_node.net.libp2p_channel import Libp2pChannel, open_channel
from dfl_node.net.memory import MemoryNetwork
from tests.conformance.channel import BACKLOG, MAX_STREAMS

CHAIN_ID = 31337
REGISTRY = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
LIMITS = NetLimits(max_backlog=BACKLOG, max_message_streams_per_peer=MAX_STREAMS)
_numbers = count(1)


def seed_of(number: int) -> bytes:
    return hashlib.sha256(b"node key %d" % number).digest()


def key_of(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def wallet_of(number: int) -> LocalAccount:
    return Account.from_key(hashlib.sha256(b"wallet %d" % number).digest())


def bound(number: int, *, chain_id: int = CHAIN_ID, registry: Address = REGISTRY) -> Binding:
    return sign_binding(
        wallet_of(number), peer_key=key_of(seed_of(number)), chain_id=chain_id, registry=registry
    )


def config_of(number: int | None = None, *, chain_id: int = CHAIN_ID, **changes: Any) -> NetConfig:
    """A node's configuration; every number is another node."""
    number = next(_numbers) if number is None else number
    settings: dict[str, Any] = {
        "key_seed": seed_of(number),
        "binding": bound(number, chain_id=chain_id),
        "chain_id": chain_id,
        "registry": REGISTRY,
    }
    return NetConfig(**(settings | changes))


class Libp2pWorld:
    """Real hosts on loopback."""

    @asynccontextmanager
    async def open(self, count: int) -> AsyncIterator[tuple[Libp2pChannel, ...]]:
        async with AsyncExitStack() as stack:
            yield tuple(
                [
                    await stack.enter_async_context(open_channel(config_of(limits=LIMITS)))
                    for _ in range(count)
                ]
            )

    @asynccontextmanager
    async def open_stranger(self) -> AsyncIterator[Channel]:
        async with open_channel(config_of(chain_id=CHAIN_ID + 1)) as channel:
            yield channel


class MemoryWorld:
    """The twin."""

    def __init__(self) -> None:
        self.network = MemoryNetwork(LIMITS)

    @asynccontextmanager
    async def open(self, count: int) -> AsyncIterator[tuple[Channel, ...]]:
        async with AsyncExitStack() as stack:
            yield tuple(
                [
                    await stack.enter_async_context(self.network.open_channel(bound(next(_numbers))))
                    for _ in range(count)
                ]
            )

    @asynccontextmanager
    async def open_stranger(self) -> AsyncIterator[Channel]:
        binding = bound(next(_numbers), chain_id=CHAIN_ID + 1)
        async with self.network.open_channel(binding) as channel:
            yield channel
