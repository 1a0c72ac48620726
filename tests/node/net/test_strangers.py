"""Strangers do their worst on real sockets, and the limits bite."""

from __future__ import annotations

import secrets

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_varint_prefixed

from dfl_ledger.errors import PeerMisbehaved, PeerUnreachable
from dfl_node.net.channel import FoundBy, Peer
from dfl_node.net.config import NetLimits
from dfl_node.net.libp2p_channel import open_channel
from dfl_node.net.wire import HELLO, write_frame
from tests.conformance.channel import ECHO, PATIENCE_S, echo, eventually
from tests.node.net.attack import acquainted, dial, hung_up, port_of, raw_host, resident_bytes, stream_ends
from tests.node.net.support import config_of

MIB = 1 << 20


def test_without_a_hello_nothing_is_served() -> None:
    async def story() -> None:
        async with open_channel(config_of(limits=NetLimits(hello_s=0.3))) as victim, raw_host() as attacker:
            served: list[bytes] = []

            async def serve(peer: Peer, body: bytes) -> bytes:
                served.append(body)
                return body

            victim.handle(ECHO, serve, max_request_bytes=100)
            target = await dial(attacker, victim)
            async with victim.subscribe("dfl/jobs") as announcements:
                for protocol in (ECHO, "/meshsub/1.1.0", "/dfl/kad/1.0.0", "/dfl/peers/1.0.0"):
                    stream = await attacker.new_stream(target, [TProtocol(protocol)])
                    message = rpc_pb2.Message(data=b"x", topicIDs=["dfl/jobs"])
                    rpc = rpc_pb2.RPC(publish=[message]).SerializeToString()
                    body = b"hi" if protocol != "/meshsub/1.1.0" else encode_varint_prefixed(rpc)
                    await write_frame(stream, body)
                    assert await stream_ends(stream), protocol
                with trio.move_on_after(0.1):
                    pytest.fail(f"heard {await anext(aiter(announcements))!r}")
            assert served == []

    trio.run(story)


def test_a_gigabyte_of_protocol_name_is_not_read() -> None:
    async def story() -> None:
        async with open_channel(config_of()) as victim:
            before = resident_bytes()
            for prefix in (b"\x80\x80\x80\x80\x04", b"\xff" * 20, b"\x05\xff\xfe\xfd\xfc\n"):
                stream = await trio.open_tcp_stream("127.0.0.1", port_of(victim))
                async with stream:
                    await stream.send_all(b"\x13/multistream/1.0.0\n" + prefix)
                    try:
                        await stream.send_all(bytes(8 * MIB))
                    except trio.BrokenResourceError:
                        continue
                    assert await hung_up(stream)
            assert resident_bytes() - before < 16 * MIB
            async with open_channel(config_of()) as honest:
                await honest.connect(victim.multiaddrs[0])

    trio.run(story)


def test_silent_sockets_do_not_block_dials() -> None:
    async def story() -> None:
        async with open_channel(config_of()) as victim:
            silent = [await trio.open_tcp_stream("127.0.0.1", port_of(victim)) for _ in range(276)]
            try:
                async with open_channel(config_of()) as honest:
                    with trio.fail_after(3.0):
                        await honest.connect(victim.multiaddrs[0], FoundBy.DHT)
                assert len(victim.host.swarm.gate.seats) <= NetLimits().max_pending_per_ip + 1
            finally:
                for stream in silent:
                    await stream.aclose()

    trio.run(story)


def test_a_silent_socket_is_closed_in_time() -> None:
    async def story() -> None:
        async with open_channel(config_of(limits=NetLimits(handshake_s=0.2))) as victim:
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(victim))
            async with stream:
                assert await hung_up(stream)
            await eventually(lambda: not victim.host.swarm.gate.seats)

    trio.run(story)


def test_places_come_back_when_peers_leave() -> None:
    async def story() -> None:
        limits = NetLimits(max_connections=3, max_connections_per_ip=3)
        async with open_channel(config_of(limits=limits)) as victim:
            for _ in range(5):
                async with open_channel(config_of()) as visitor:
                    await visitor.connect(victim.multiaddrs[0], FoundBy.DHT)
                await eventually(lambda: not victim.host.swarm.gate.seats)

    trio.run(story)


def test_connections_of_one_address_are_limited() -> None:
    async def story() -> None:
        limits = NetLimits(max_connections_per_ip=2)
        async with (
            open_channel(config_of(limits=limits)) as victim,
            open_channel(config_of()) as one,
            open_channel(config_of()) as two,
            open_channel(config_of()) as three,
        ):
            await one.connect(victim.multiaddrs[0], FoundBy.DHT)
            await two.connect(victim.multiaddrs[0], FoundBy.DHT)
            with pytest.raises(PeerUnreachable):
                await three.connect(victim.multiaddrs[0], FoundBy.DHT)
            assert len(victim.peers()) == 2

    trio.run(story)


def test_streams_of_one_connection_are_limited() -> None:
    async def story() -> None:
        limits = NetLimits(max_streams_per_connection=8)
        async with open_channel(config_of(limits=limits)) as victim, raw_host() as attacker:
            target = await dial(attacker, victim)
            opened = [await attacker.swarm.new_stream(target) for _ in range(40)]
            await eventually(lambda: victim.host.inbound_streams() == 8)
            assert len(opened) == 40
            async with open_channel(config_of()) as honest:
                await honest.connect(victim.multiaddrs[0], FoundBy.DHT)

    trio.run(story)


def test_a_peer_that_ignores_the_window_is_dropped() -> None:
    async def story() -> None:
        async with acquainted(NetLimits(max_buffered_bytes=2 * MIB)) as (victim, attacker, target):

            async def busy(peer: Peer, body: bytes) -> bytes:
                await trio.sleep_forever()
                raise AssertionError

            victim.handle(ECHO, busy, max_request_bytes=10)
            before = resident_bytes()
            stream = await attacker.new_stream(target, [TProtocol(ECHO)])
            await write_frame(stream, b"read me")
            flood: object = stream.muxed_stream  # type: ignore[attr-defined]
            with trio.move_on_after(PATIENCE_S):
                try:
                    for _ in range(64):
                        flood.send_window = MIB  # type: ignore[attr-defined]
                        await stream.write(bytes(MIB))
                except Exception:
                    await trio.lowlevel.checkpoint()
            await eventually(lambda: not victim.host.is_connected(attacker.get_id()))
            assert resident_bytes() - before < 40 * MIB

    trio.run(story)


@pytest.mark.parametrize(
    "sent",
    [b"\xff\xff\xff\xff", b"\x00\x00\x01\x01" + bytes(257)],
    ids=["4 GiB announced", "one byte too many"],
)
def test_bad_frames_are_not_served_and_repeated_ones_end_the_friendship(sent: bytes) -> None:
    async def story() -> None:
        async with acquainted(NetLimits(max_strikes=3)) as (victim, attacker, target):
            served: list[bytes] = []

            async def serve(peer: Peer, body: bytes) -> bytes:
                served.append(body)
                return body

            victim.handle(ECHO, serve, max_request_bytes=256)
            for _ in range(3):
                stream = await attacker.new_stream(target, [TProtocol(ECHO)])
                await stream.write(sent)
                await stream.close_write()
                assert await stream_ends(stream)
            await eventually(lambda: not attacker.is_connected(target))
            assert served == []
            assert victim.peers() == ()

    trio.run(story)


def test_slow_loris_is_cut_off() -> None:
    async def story() -> None:
        async with acquainted(NetLimits(request_s=0.3)) as (victim, attacker, target):
            victim.handle(ECHO, echo, max_request_bytes=256)
            stream = await attacker.new_stream(target, [TProtocol(ECHO)])
            await stream.write((100).to_bytes(4, "big"))
            started = trio.current_time()
            with trio.move_on_after(PATIENCE_S):
                try:
                    while True:
                        await stream.write(b"x")
                        await trio.sleep(0.05)
                except Exception:
                    await trio.lowlevel.checkpoint()
            assert trio.current_time() - started < 2.0
            assert len(victim.peers()) == 1  # slow is not malicious

    trio.run(story)


def test_requests_of_one_peer_at_once_are_limited() -> None:
    async def story() -> None:
        limits = NetLimits(max_requests_per_peer=4)
        async with open_channel(config_of(limits=limits)) as victim, open_channel(config_of()) as busy:
            running = 0

            async def serve(peer: Peer, body: bytes) -> bytes:
                nonlocal running
                running += 1
                await trio.sleep_forever()
                raise AssertionError

            victim.handle(ECHO, serve, max_request_bytes=10)
            await busy.connect(victim.multiaddrs[0])
            outcomes: list[type] = []

            async def ask() -> None:
                try:
                    await busy.request(victim.peer_id, ECHO, b"", max_reply_bytes=9, timeout_s=PATIENCE_S)
                except (PeerUnreachable, PeerMisbehaved) as error:
                    outcomes.append(type(error))

            async with trio.open_nursery() as nursery:
                for _ in range(7):
                    nursery.start_soon(ask)
                await eventually(lambda: len(outcomes) + running == 7)
                assert 1 <= running <= 4  # what the two ask of themselves counts too
                nursery.cancel_scope.cancel()

    trio.run(story)


def test_gossip_of_a_peer_that_sends_what_is_invalid_is_not_heard_any_more() -> None:
    async def story() -> None:
        async with acquainted(NetLimits()) as (victim, attacker, target):
            heard: list[bytes] = []
            async with victim.subscribe("dfl/jobs") as announcements, trio.open_nursery() as nursery:

                async def listen() -> None:
                    async for _, body in announcements:
                        heard.append(body)

                nursery.start_soon(listen)
                stream = await attacker.new_stream(target, [TProtocol("/meshsub/1.1.0")])

                async def send(body: bytes, *, number: int, spoil: bool = False) -> None:
                    message = rpc_pb2.Message(
                        data=body,
                        topicIDs=["dfl/jobs"],
                        from_id=attacker.get_id().to_bytes(),
                        seqno=number.to_bytes(8, "big"),
                    )
                    payload = b"libp2p-pubsub:" + message.SerializeToString()
                    message.signature = attacker.get_private_key().sign(payload)
                    if spoil:
                        message.data = body + b"!"
                    rpc = rpc_pb2.RPC(publish=[message])
                    await stream.write(encode_varint_prefixed(rpc.SerializeToString()))

                await send(b"first", number=1)
                await eventually(lambda: heard == [b"first"])
                await send(b"first", number=1)  # the same again is not delivered again
                await send(bytes((64 << 10) + 1), number=2)
                for number in range(3, 10):
                    await send(b"spoilt", number=number, spoil=True)
                await eventually(lambda: victim.gossip_score(attacker.get_id(), "dfl/jobs") < -60.0)
                await send(b"last", number=10)
                with trio.move_on_after(0.3):
                    await trio.sleep_forever()
                assert heard == [b"first"]
                nursery.cancel_scope.cancel()

    trio.run(story)


@pytest.mark.parametrize("protocol", ["/meshsub/1.1.0", "/dfl/kad/1.0.0", ECHO, HELLO, "/ipfs/id/push/1.0.0"])
def test_garbage_on_a_stream_ends_that_stream_only(protocol: str) -> None:
    async def story() -> None:
        async with acquainted(NetLimits(hello_s=1.0)) as (victim, attacker, target):
            victim.handle(ECHO, echo, max_request_bytes=256)
            for garbage in (b"\x05\xff\xff\xff\xff\xff", bytes(2000), secrets.token_bytes(2000)):
                if not attacker.is_connected(target):
                    break
                stream = await attacker.new_stream(target, [TProtocol(protocol)])
                await stream.write(garbage)
                await stream.close_write()
                assert await stream_ends(stream)
            async with open_channel(config_of()) as honest:
                peer = await honest.connect(victim.multiaddrs[0])
                reply = await honest.request(
                    peer.peer_id, ECHO, b"still here", max_reply_bytes=99, timeout_s=PATIENCE_S
                )
                assert reply == b"still here"

    trio.run(story)
