"""Who is refused, by whom, and with which words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from dfl_ledger.errors import BindingInvalid, PeerMisbehaved, PeerUnreachable
from dfl_ledger.records import Address
from dfl_node.net.binding import Binding
from dfl_node.net.channel import FoundBy
from dfl_node.net.config import NetLimits
from dfl_node.net.host import open_host
from dfl_node.net.libp2p_channel import open_channel
from dfl_node.net.services import Tasks
from dfl_node.net.wire import HELLO, Hello, encode_hello, read_frame, write_frame
from tests.conformance.channel import eventually
from tests.node.net.attack import raw_host, say_hello, stream_ends
from tests.node.net.support import CHAIN_ID, REGISTRY, bound, config_of


def forged(binding: Binding) -> Binding:
    signature = bytearray(binding.signature)
    signature[10] ^= 1
    return replace(binding, signature=bytes(signature))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda number: bound(number, chain_id=CHAIN_ID + 1), "chain"),
        (lambda number: bound(number, registry=Address("0x" + "11" * 20)), "registry"),
        (lambda number: forged(bound(number)), "signature"),
        (lambda number: replace(bound(number), address=Address("0x" + "22" * 20)), "signature"),
        (lambda number: bound(number + 1), "another node key"),
    ],
    ids=["another chain", "another registry", "forged", "another wallet", "another key"],
)
def test_a_wrong_hello_is_refused_with_its_reason(made, reason: str) -> None:  # type: ignore[no-untyped-def]
    async def story() -> None:
        number = 7_000
        async with open_channel(config_of()) as victim, trio.open_nursery() as nursery:
            async with open_host(config_of(number), Tasks(nursery)) as attacker:
                answer = await say_hello(attacker, victim, made(number))
                assert answer[:1] == b"\1"
                assert reason in answer[1:].decode()
                target = ID.from_base58(victim.peer_id)
                await eventually(lambda: not attacker.is_connected(target))
                assert victim.peers() == ()
                # Remembered: even a right hello is refused for a while.
                again = await say_hello(attacker, victim, bound(number))
                assert again[:1] == b"\1"
                assert victim.peers() == ()
            nursery.cancel_scope.cancel()

    trio.run(story)


def test_the_dialler_refuses_too() -> None:
    async def story() -> None:
        async with open_channel(config_of()) as victim, raw_host() as attacker:

            async def lie(stream: INetStream) -> None:
                await read_frame(stream, 4096)
                hello = Hello(bound(1), bytes(16), 0, None, False, "liar", ())
                await write_frame(stream, b"\0" + encode_hello(hello))
                await stream_ends(stream)

            attacker.set_stream_handler(TProtocol(HELLO), lie)
            with pytest.raises(PeerMisbehaved):
                await victim.connect(str(attacker.get_addrs()[0]), FoundBy.DHT)
            await eventually(lambda: not attacker.is_connected(ID.from_base58(victim.peer_id)))
            with pytest.raises(PeerMisbehaved, match="refused"):
                await victim.connect(str(attacker.get_addrs()[0]), FoundBy.DHT)

    trio.run(story)


def test_a_host_that_is_no_dfl_node_stays_connected_but_unheard() -> None:
    async def story() -> None:
        async with open_channel(config_of(limits=NetLimits(hello_s=0.3))) as victim, raw_host() as foreign:
            with pytest.raises(PeerUnreachable, match="not a dfl node"):
                await victim.connect(str(foreign.get_addrs()[0]), FoundBy.DHT)
            assert victim.peers() == ()
            assert foreign.is_connected(ID.from_base58(victim.peer_id))

    trio.run(story)


def test_a_node_does_not_open_with_a_binding_that_is_not_its_own() -> None:
    async def story() -> None:
        with pytest.raises(BindingInvalid, match="another node key"):
            async with open_channel(config_of(binding=bound(1))):
                pytest.fail("it opened")
        with pytest.raises(BindingInvalid, match="registry"):
            async with open_channel(config_of(registry=Address("0x" + "33" * 20))):
                pytest.fail("it opened")
        assert REGISTRY

    trio.run(story)
