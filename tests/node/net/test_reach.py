"""How nodes are found and reached: boot nodes that return, mDNS, relays, dial-back, the doctor."""

from __future__ import annotations

import secrets
import socket

import pytest
import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from dfl_ledger.errors import PeerUnreachable, UsageError
from dfl_node.net.addrs import credible, interfaces_of, parse_peer_addr
from dfl_node.net.binding import peer_id_of
from dfl_node.net.channel import FoundBy, Peer
from dfl_node.net.config import NetLimits
from dfl_node.net.doctor import LIBRARY, check_multicast, diagnose
from dfl_node.net.libp2p_channel import open_channel
from dfl_node.net.nat_state import Reachability
from tests.conformance.channel import ECHO, PATIENCE_S, echo, eventually
from tests.node.net.support import config_of, key_of, seed_of

ALOOF = NetLimits(target_peers=0)  # asks nobody for peers, and so dials only what the test dials
PEER = peer_id_of(key_of(seed_of(0)))  # nobody's: `config_of` counts from 1


def test_a_node_without_an_address_is_reached_through_a_relay() -> None:
    async def story() -> None:
        async with (
            open_channel(config_of(offer_relay=True)) as relay,
            open_channel(config_of(listen=(), gateway_port=8080, limits=ALOOF)) as hidden,
            open_channel(config_of(limits=ALOOF)) as seeker,
        ):
            hidden.handle(ECHO, echo, max_request_bytes=1 << 20)
            assert hidden.multiaddrs == ()
            await hidden.connect(relay.multiaddrs[0])
            await eventually(lambda: hidden.relays() == (relay.peer_id,))
            assert hidden.reach.state is Reachability.PRIVATE
            address = hidden.multiaddrs[0]
            assert f"/p2p/{relay.peer_id}/p2p-circuit/p2p/{hidden.peer_id}" in address
            peer = await seeker.connect(address, FoundBy.DHT)
            assert peer.peer_id == hidden.peer_id
            assert peer.gateway_url is None  # its HTTP port is not the relay's
            body = secrets.token_bytes(300_000)
            reply = await seeker.request(
                peer.peer_id, ECHO, body, max_reply_bytes=len(body), timeout_s=PATIENCE_S
            )
            assert reply == body
            with pytest.raises(PeerUnreachable):  # who has no place on the relay is not reached
                await seeker.connect(address.replace(hidden.peer_id, PEER), FoundBy.DHT)

    trio.run(story)


def test_a_relayed_node_is_found_by_what_it_provides() -> None:
    async def story() -> None:
        async with (
            open_channel(config_of(offer_relay=True)) as relay,
            open_channel(config_of(listen=())) as hidden,
        ):
            await hidden.provide(b"job")
            await hidden.connect(relay.multiaddrs[0])
            await eventually(lambda: bool(hidden.relays()))
            async with open_channel(config_of(limits=ALOOF)) as seeker:
                await seeker.connect(relay.multiaddrs[0])
                found: tuple[str, ...] = ()
                with trio.fail_after(PATIENCE_S):
                    while found != (hidden.peer_id,):
                        found = tuple(peer.peer_id for peer in await seeker.find_providers(b"job"))

    trio.run(story)


def test_only_relays_that_offer_it_carry_others() -> None:
    async def story() -> None:
        async with (
            open_channel(config_of(offer_relay=False)) as other,
            open_channel(config_of(listen=())) as hidden,
        ):
            await hidden.connect(other.multiaddrs[0])
            await hidden.check_reach()
            assert hidden.relays() == ()
            assert hidden.multiaddrs == ()

    trio.run(story)


def test_peers_tell_whether_they_can_dial_us() -> None:
    async def story() -> None:
        async with open_channel(config_of()) as one, open_channel(config_of()) as other:
            await one.connect(other.multiaddrs[0])
            for channel in (one, other):
                await eventually(lambda channel=channel: channel.reach.state is Reachability.PUBLIC)
            assert "127.0.0.1" in one.reach.why
            # The connection stands, but the port told is closed, as behind a router: that must not count.
            with socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))
                behind = [Multiaddr(f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}")]
            other.host.get_transport_addrs = lambda: behind  # type: ignore[method-assign]
            one._dial_back._answered_at.clear()  # one answer in five seconds is the rule
            assert (await other.check_reach()).state is Reachability.PRIVATE
            assert (await other.check_reach()).state is Reachability.PRIVATE  # asked too soon: no news

    trio.run(story)


def test_a_boot_node_that_returns_takes_part_in_everything_again() -> None:
    async def story() -> None:
        limits = NetLimits(reconnect_min_s=0.05, reconnect_max_s=0.2)
        boot_config = config_of()
        async with open_channel(boot_config) as boot:
            address = boot.multiaddrs[0]
            port = address.split("/")[4]
        async with open_channel(config_of(bootnodes=(address,), limits=limits)) as node:
            again = config_of(
                key_seed=boot_config.key_seed,
                binding=boot_config.binding,
                listen=(f"/ip4/127.0.0.1/tcp/{port}",),
            )
            for _ in range(2):
                async with open_channel(again) as boot, boot.subscribe("dfl/jobs") as announcements:
                    await eventually(lambda: len(node.peers()) == 1)
                    assert node.peers()[0].found_by is FoundBy.BOOT
                    with trio.fail_after(PATIENCE_S):
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(_announce_until_heard, node)
                            assert await anext(aiter(announcements)) == (node.peer_id, b"again")
                            nursery.cancel_scope.cancel()
                    await node.provide(b"job")
                    found: tuple[Peer, ...] = ()
                    with trio.fail_after(PATIENCE_S):
                        while not found:
                            found = await boot.find_providers(b"job")
                await eventually(lambda: node.peers() == (), within_s=1.0)

    trio.run(story)


async def _announce_until_heard(node: object) -> None:
    while True:
        await node.publish("dfl/jobs", b"again")  # type: ignore[attr-defined]
        await trio.sleep(0.05)


def test_nodes_on_one_network_find_each_other_by_mdns() -> None:
    if not check_multicast().ok:
        pytest.skip("no multicast on this machine")

    async def story() -> None:
        chain_id = secrets.randbits(40)  # apart from other nodes that may run on this network
        async with open_channel(config_of(chain_id=chain_id, enable_mdns=True)) as one:
            async with open_channel(config_of(chain_id=chain_id, enable_mdns=True)) as other:
                assert one.mdns_problem == other.mdns_problem == ""
                await eventually(lambda: len(one.peers()) == 1)
                assert FoundBy.MDNS in {one.peers()[0].found_by, other.peers()[0].found_by}
                started = trio.current_time()
            assert trio.current_time() - started < 1.5

    trio.run(story)


def test_mdns_that_does_not_work_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no multicast here")

    monkeypatch.setattr("zeroconf.Zeroconf", refuse)

    async def story() -> None:
        async with open_channel(config_of(enable_mdns=True)) as one, open_channel(config_of()) as other:
            assert "no multicast here" in one.mdns_problem
            await one.connect(other.multiaddrs[0])

    trio.run(story)


def test_the_doctor_names_what_is_wrong() -> None:
    async def story() -> None:
        async with open_channel(config_of(offer_relay=True)) as one, open_channel(config_of()) as other:
            alone = {check.name: check for check in await diagnose(one)}
            assert alone["peers"].ok is False
            assert alone["peers"].help
            await one.connect(other.multiaddrs[0])
            await eventually(lambda: one.reach.state is Reachability.PUBLIC)
            checks = {check.name: check for check in await diagnose(one)}
            for name in ("listens", "peers", "reachable", "clock", "TLS"):
                assert checks[name].ok, checks[name]
            assert checks["mDNS"].ok is None
            assert {check.name for check in LIBRARY} <= set(checks)
            one.book.clock_skew_s[other.peer_id] = 90.0
            assert {check.name: check for check in await diagnose(one)}["clock"].ok is False

    trio.run(story)


@pytest.mark.parametrize(
    "text",
    [
        f"/ip4/1.2.3.4/tcp/4001/p2p/{PEER}",
        f"/dns4/node.example/tcp/4001/p2p/{PEER}",
        f"/ip6/2001:db8::7/tcp/4001/p2p/{PEER}",
        f"/ip4/1.2.3.4/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_addresses_of_peers(text: str) -> None:
    owner, addr = parse_peer_addr(text)
    assert (str(owner), str(addr)) == (PEER, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/ip4/1.2.3.4/tcp/4001",
        f"/p2p/{PEER}",
        f"/ip4/1.2.3.4/udp/4001/quic-v1/p2p/{PEER}",
        f"/unix/tmp/x/p2p/{PEER}",
        f"/ip4/1.2.3.4/tcp/99999/p2p/{PEER}",
        f"/ip4/1.2.3.4/tcp/4001/ws/p2p/{PEER}",
        "/ip4/1.2.3.4/tcp/4001/p2p/nobody",
        "/dns4/" + "x" * 300 + f"/tcp/1/p2p/{PEER}",
    ],
)
def test_what_is_no_address_of_a_peer(text: str) -> None:
    with pytest.raises(UsageError):
        parse_peer_addr(text)


def test_what_strangers_tell_us_to_dial() -> None:
    other = peer_id_of(key_of(seed_of(2)))
    told = (
        f"/ip4/127.0.0.1/tcp/22/p2p/{PEER}",
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}",
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}",
        f"/ip4/1.2.3.4/tcp/1/p2p/{other}",
        "garbage",
        f"/dns4/localhost/tcp/1/p2p/{PEER}",
        f"/ip6/::1/tcp/1/p2p/{PEER}",
    )
    assert credible(told, PEER, loopback_ok=False, limit=8) == (told[1],)
    assert credible(told, PEER, loopback_ok=True, limit=8) == (told[0], told[1], told[5], told[6])
    assert len(credible(told, PEER, loopback_ok=True, limit=2)) == 2


def test_a_wildcard_is_told_as_addresses_others_can_use() -> None:
    told = [str(addr) for addr in interfaces_of(Multiaddr("/ip4/0.0.0.0/tcp/4001"))]
    assert told[-1] == "/ip4/127.0.0.1/tcp/4001"
    assert not any("/0." in addr for addr in told)
    assert interfaces_of(Multiaddr("/ip4/10.0.0.1/tcp/1")) == [Multiaddr("/ip4/10.0.0.1/tcp/1")]


def test_listening_on_what_is_not_ours_is_a_usage_error() -> None:
    async def story(listen: str) -> None:
        async with open_channel(config_of(listen=(listen,))):
            pytest.fail("it opened")

    for listen in ("/ip4/192.0.2.1/tcp/0", "nonsense", "/ip4/127.0.0.1/udp/0"):
        with pytest.raises(UsageError):
            trio.run(story, listen)


def test_ipv6_peers_have_an_address_too() -> None:
    async def story() -> None:
        try:
            async with (
                open_channel(config_of(listen=("/ip6/::1/tcp/0",), gateway_port=81)) as one,
                open_channel(config_of(listen=("/ip6/::1/tcp/0",), gateway_port=82)) as other,
            ):
                assert (await one.connect(other.multiaddrs[0])).gateway_url == "http://[::1]:82"
                await eventually(lambda: len(other.peers()) == 1)
                assert other.peers()[0].gateway_url == "http://[::1]:81"
                endpoint = other.host.endpoint(ID.from_base58(one.peer_id))
                assert endpoint is not None
                assert endpoint.ip == "::1"
        except UsageError:
            pytest.skip("no IPv6 on this machine")

    trio.run(story)
