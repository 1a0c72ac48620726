"""What every `Channel` does, told as stories that the twin and libp2p both have to live through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import pytest
import trio

from dfl_ledger.errors import BindingInvalid, PeerMisbehaved, PeerUnreachable, TimedOut, UsageError
from dfl_node.net.channel import Channel, FoundBy, Peer, PeerId

ECHO = "/dfl/echo/1.0.0"
PATIENCE_S = 10.0
BACKLOG = 16
MAX_STREAMS = 4


class World(Protocol):
    """Where channels are opened.

    They keep BACKLOG announcements for a slow reader, and serve MAX_STREAMS streams to one peer at a time.
    """

    def open(self, count: int) -> AbstractAsyncContextManager[tuple[Channel, ...]]:
        """Nodes of one chain that do not know each other yet."""
        ...

    def open_stranger(self) -> AbstractAsyncContextManager[Channel]:
        """A node of another chain."""
        ...


async def eventually(true: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    """Wait for something that the network brings about. Fails the test when it does not."""
    with trio.fail_after(within_s):
        while not true():  # noqa: ASYNC110 - the network sets no event
            await trio.sleep(0.005)


async def echo(peer: Peer, body: bytes) -> bytes:
    return body


async def introduce(channels: tuple[Channel, ...]) -> None:
    """Everyone connects to the first, and then everyone knows everyone."""
    for channel in channels[1:]:
        await channel.connect(channels[0].multiaddrs[0])
    await eventually(lambda: all(len(channel.peers()) == len(channels) - 1 for channel in channels))


async def check_both_sides_know_each_other(world: World) -> None:
    async with world.open(2) as (one, other):
        peer = await one.connect(other.multiaddrs[0])
        assert (peer.peer_id, peer.found_by) == (other.peer_id, FoundBy.BOOT)
        assert [known.peer_id for known in one.peers()] == [other.peer_id]
        await eventually(lambda: len(other.peers()) == 1)
        met = other.peers()[0]
        assert (met.peer_id, met.found_by) == (one.peer_id, FoundBy.INBOUND)
        assert met.address.startswith("0x")
        assert met.address != peer.address


async def check_addresses_name_the_peer(world: World) -> None:
    async with world.open(1) as (one,):
        assert one.multiaddrs
        assert all(addr.endswith(f"/p2p/{one.peer_id}") for addr in one.multiaddrs)


async def check_connecting_again_changes_nothing(world: World) -> None:
    async with world.open(2) as (one, other):
        first = await one.connect(other.multiaddrs[0], FoundBy.MDNS)
        again = await one.connect(other.multiaddrs[0], FoundBy.BOOT)
        assert again.found_by is first.found_by is FoundBy.MDNS
        assert len(one.peers()) == 1


async def check_nonsense_is_not_dialled(world: World) -> None:
    async with world.open(1) as (one,):
        for nonsense in ("", "nonsense", one.multiaddrs[0]):
            with pytest.raises(UsageError):
                await one.connect(nonsense)


async def check_nobody_there(world: World) -> None:
    async with world.open(1) as (one,):
        async with world.open(1) as (other,):
            address = other.multiaddrs[0]
        with pytest.raises(PeerUnreachable):
            await one.connect(address, FoundBy.DHT)


async def check_another_chain_is_refused(world: World) -> None:
    async with world.open(1) as (one,), world.open_stranger() as stranger:
        with pytest.raises(BindingInvalid) as refused:
            await stranger.connect(one.multiaddrs[0], FoundBy.DHT)
        assert "chain" in str(refused.value)
        assert one.peers() == stranger.peers() == ()


async def check_a_request_is_answered(world: World) -> None:
    async with world.open(2) as channels:
        one, other = channels
        asked_by: list[PeerId] = []

        async def reverse(peer: Peer, body: bytes) -> bytes:
            asked_by.append(peer.peer_id)
            return body[::-1]

        other.handle("/dfl/reverse/1.0.0", reverse, max_request_bytes=1 << 20)
        await introduce(channels)
        for body in (b"", b"abc", bytes(range(256)) * 2048):
            reply = await one.request(
                other.peer_id, "/dfl/reverse/1.0.0", body, max_reply_bytes=len(body), timeout_s=PATIENCE_S
            )
            assert reply == body[::-1]
        assert asked_by == [one.peer_id] * 3


async def check_a_reply_over_the_limit_is_misbehaviour(world: World) -> None:
    async with world.open(2) as channels:
        one, other = channels
        other.handle(ECHO, echo, max_request_bytes=100)
        await introduce(channels)
        with pytest.raises(PeerMisbehaved):
            await one.request(other.peer_id, ECHO, bytes(100), max_reply_bytes=99, timeout_s=PATIENCE_S)


async def check_a_request_over_the_limit_is_not_served(world: World) -> None:
    async with world.open(2) as channels:
        one, other = channels
        served: list[int] = []

        async def count(peer: Peer, body: bytes) -> bytes:
            served.append(len(body))
            return b""

        other.handle(ECHO, count, max_request_bytes=10)
        await introduce(channels)
        with pytest.raises((PeerUnreachable, PeerMisbehaved)):
            await one.request(other.peer_id, ECHO, bytes(11), max_reply_bytes=9, timeout_s=PATIENCE_S)
        await one.request(other.peer_id, ECHO, bytes(10), max_reply_bytes=9, timeout_s=PATIENCE_S)
        assert served == [10]


async def check_a_failing_handler_hangs_up(world: World) -> None:
    async with world.open(2) as channels:
        one, other = channels

        async def fail(peer: Peer, body: bytes) -> bytes:
            raise RuntimeError("a bug")

        other.handle("/dfl/fails/1.0.0", fail, max_request_bytes=10)
        other.handle(ECHO, echo, max_request_bytes=10)
        await introduce(channels)
        with pytest.raises((PeerUnreachable, PeerMisbehaved)):
            await one.request(other.peer_id, "/dfl/fails/1.0.0", b"", max_reply_bytes=9, timeout_s=PATIENCE_S)
        assert await one.request(other.peer_id, ECHO, b"x", max_reply_bytes=9, timeout_s=PATIENCE_S) == b"x"


async def check_a_slow_handler_times_out(world: World) -> None:
    async with world.open(2) as channels:
        one, other = channels

        async def never(peer: Peer, body: bytes) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        other.handle(ECHO, never, max_request_bytes=10)
        await introduce(channels)
        with pytest.raises(TimedOut):
            await one.request(other.peer_id, ECHO, b"", max_reply_bytes=9, timeout_s=0.2)


async def check_unknown_peers_and_protocols(world: World) -> None:
    async with world.open(3) as (one, other, unknown):
        await one.connect(other.multiaddrs[0])
        with pytest.raises(PeerUnreachable):
            await one.request(unknown.peer_id, ECHO, b"", max_reply_bytes=9, timeout_s=PATIENCE_S)
        with pytest.raises(PeerUnreachable):
            await one.request(
                other.peer_id, "/dfl/nothing/1.0.0", b"", max_reply_bytes=9, timeout_s=PATIENCE_S
            )


async def check_an_announcement_reaches_all(world: World) -> None:
    async with world.open(4) as channels:
        await introduce(channels)
        heard: dict[PeerId, list[tuple[PeerId, bytes]]] = {channel.peer_id: [] for channel in channels}
        ready = trio.Semaphore(0)

        async def listen(channel: Channel) -> None:
            async with channel.subscribe("dfl/jobs") as announcements:
                ready.release()
                async for announcement in announcements:
                    heard[channel.peer_id].append(announcement)

        async with trio.open_nursery() as nursery:
            for channel in channels:
                nursery.start_soon(listen, channel)
            for _ in channels:
                await ready.acquire()
            speaker = channels[2]
            body = bytes(64 << 10)
            await speaker.publish("dfl/jobs", body)
            await speaker.publish("dfl/other", b"of no interest")
            others = [heard[channel.peer_id] for channel in channels if channel is not speaker]
            await eventually(lambda: all(len(announcements) == 1 for announcements in others))
            assert all(announcements == [(speaker.peer_id, body)] for announcements in others)
            assert heard[speaker.peer_id] == []
            nursery.cancel_scope.cancel()


async def check_what_cannot_be_announced(world: World) -> None:
    async with world.open(1) as (one,):
        with pytest.raises(UsageError):
            await one.publish("dfl/jobs", bytes((64 << 10) + 1))
        with pytest.raises(UsageError):
            await one.publish("", b"x")


async def check_a_slow_reader_loses_the_oldest(world: World) -> None:
    async with world.open(2) as channels:
        await introduce(channels)
        quick, slow = channels
        async with slow.subscribe("dfl/jobs") as waiting, slow.subscribe("dfl/last") as last:
            # Until the subscription is known everywhere nothing arrives: knock until it does.
            with trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_repeat, quick.publish, "dfl/last", b"knock")
                    await anext(aiter(last))
                    nursery.cancel_scope.cancel()
            total = 3 * BACKLOG
            for number in range(total):
                await quick.publish("dfl/jobs", b"%d" % number)
                await trio.sleep(0.011)  # below the limit of announcements a second
            got: list[int] = []
            with trio.move_on_after(0.5):
                async for _, body in waiting:
                    got.append(int(body))
            assert got == sorted(got)
            assert 0 < len(got) <= BACKLOG
            assert got[-1] == total - 1


async def _repeat(publish: Callable[[str, bytes], Awaitable[None]], topic: str, body: bytes) -> None:
    while True:
        await publish(topic, body)
        await trio.sleep(0.05)


async def check_providers_are_found_through_one_boot_node(world: World) -> None:
    async with world.open(4) as channels:
        boot, first, second, seeker = channels
        await first.connect(boot.multiaddrs[0])
        await second.connect(boot.multiaddrs[0])
        await first.provide(b"job 7")
        await second.provide(b"job 7")
        await seeker.provide(b"job 7")
        await seeker.connect(boot.multiaddrs[0])
        wanted = {first.peer_id, second.peer_id}
        found: set[PeerId] = set()
        with trio.fail_after(PATIENCE_S):
            while found != wanted:  # a record travels after `provide` has returned
                found = {peer.peer_id for peer in await seeker.find_providers(b"job 7")}
        assert wanted <= {peer.peer_id for peer in seeker.peers()}
        assert await seeker.find_providers(b"job 8") == ()


async def check_one_boot_node_leads_to_all(world: World) -> None:
    async with world.open(4) as channels:
        await introduce(channels)
        last = channels[-1]
        found = {peer.peer_id: peer.found_by for peer in last.peers()}
        assert found[channels[0].peer_id] is FoundBy.BOOT
        assert set(found) == {channel.peer_id for channel in channels[:-1]}


async def check_who_leaves_is_gone(world: World) -> None:
    async with world.open(1) as (one,):
        async with world.open(1) as (other,):
            await one.connect(other.multiaddrs[0], FoundBy.DHT)
            assert len(one.peers()) == 1
        await eventually(lambda: one.peers() == (), within_s=2.0)


CHECKS: tuple[Callable[[World], Awaitable[None]], ...] = (
    check_both_sides_know_each_other,
    check_addresses_name_the_peer,
    check_connecting_again_changes_nothing,
    check_nonsense_is_not_dialled,
    check_nobody_there,
    check_another_chain_is_refused,
    check_a_request_is_answered,
    check_a_reply_over_the_limit_is_misbehaviour,
    check_a_request_over_the_limit_is_not_served,
    check_a_failing_handler_hangs_up,
    check_a_slow_handler_times_out,
    check_unknown_peers_and_protocols,
    check_an_announcement_reaches_all,
    check_what_cannot_be_announced,
    check_a_slow_reader_loses_the_oldest,
    check_providers_are_found_through_one_boot_node,
    check_one_boot_node_leads_to_all,
    check_who_leaves_is_gone,
)
