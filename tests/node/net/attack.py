"""Tools of those who attack a node in the tests."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from dfl_node.net.binding import Binding
from dfl_node.net.config import NetLimits
from dfl_node.net.host import NodeHost, open_host
from dfl_node.net.libp2p_channel import Libp2pChannel, open_channel
from dfl_node.net.services import Tasks
from dfl_node.net.wire import HELLO, Hello, encode_hello, read_frame, write_frame
from tests.conformance.channel import PATIENCE_S
from tests.node.net.support import bound, config_of


@asynccontextmanager
async def raw_host() -> AsyncIterator[NodeHost]:
    """A libp2p host that says nothing by itself."""
    async with trio.open_nursery() as nursery:
        async with open_host(config_of(), Tasks(nursery)) as host:
            yield host
        nursery.cancel_scope.cancel()


async def dial(attacker: NodeHost, victim: Libp2pChannel) -> ID:
    target = ID.from_base58(victim.peer_id)
    await attacker.swarm.dial_direct(target, Multiaddr(victim.multiaddrs[0]))
    return target


async def say_hello(attacker: NodeHost, victim: Libp2pChannel, binding: Binding) -> bytes:
    target = await dial(attacker, victim)
    stream = await attacker.new_stream(target, [TProtocol(HELLO)])
    nonce = secrets.token_bytes(16)
    await write_frame(
        stream, encode_hello(Hello(binding, nonce, int(time.time() * 1000), None, False, "test", ()))
    )
    answer = await read_frame(stream, 4096)
    await stream.close()
    return answer


def port_of(channel: Libp2pChannel) -> int:
    return int(channel.multiaddrs[0].split("/")[4])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def hung_up(stream: trio.SocketStream) -> bool:
    """True when the other side closes within the time a test has."""
    with trio.move_on_after(PATIENCE_S):
        try:
            while await stream.receive_some(4096):
                pass
        except trio.BrokenResourceError:
            return True
        return True
    return False


async def stream_ends(stream: INetStream) -> bool:
    with trio.move_on_after(PATIENCE_S):
        try:
            while await stream.read(4096):
                pass
        except Exception:
            return True
        return True
    return False


@asynccontextmanager
async def acquainted(limits: NetLimits) -> AsyncIterator[tuple[Libp2pChannel, NodeHost, ID]]:
    """A node, and an attacker with a valid hello."""
    number = 8_000
    async with open_channel(config_of(limits=limits)) as victim, trio.open_nursery() as nursery:
        async with open_host(config_of(number), Tasks(nursery)) as attacker:
            answer = await say_hello(attacker, victim, bound(number))
            assert answer[:1] == b"\0"
            yield victim, attacker, ID.from_base58(victim.peer_id)
        nursery.cancel_scope.cancel()
