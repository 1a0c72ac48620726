"""Parts of a small storage network on 127.0.0.1: gateways, libp2p hosts, and peers that misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import ASGIFramework
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr
from starlette.applications import Starlette

from dfl_ledger.records import Address
from dfl_node.net.channel import FoundBy, Peer, PeerId
from dfl_node.store.exchange import BlockSource
from dfl_node.store.gateway import routes
from dfl_node.store.gateway_client import GatewayFetcher

WITHIN_S = 30  # no wait in these tests is longer


def peer(name: str, gateway_url: str | None) -> Peer:
    return Peer(PeerId(name), Address("0x" + "00" * 20), (), gateway_url, FoundBy.BOOT)


@asynccontextmanager
async def gateway(source: BlockSource) -> AsyncIterator[str]:
    """A node's HTTP server with nothing but the gateway; gives its URL."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    stop = trio.Event()
    app: ASGIFramework = Starlette(routes=routes(source))  # type: ignore[assignment]
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(partial(serve, app, config, shutdown_trigger=stop.wait))
        try:
            yield urls[0]
        finally:
            stop.set()


@asynccontextmanager
async def over_gateway(source: BlockSource) -> AsyncIterator[GatewayFetcher]:
    """A way to one honest peer, named `there`."""
    async with gateway(source) as url, GatewayFetcher(lambda: [peer("there", url)]).opened() as fetcher:
        yield fetcher


@asynccontextmanager
async def hostile_gateway(answer: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Reads a request's head, then lets `answer` write what it likes."""

    async def handle(stream: trio.SocketStream) -> None:
        head = b""
        try:
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            await answer(stream)
            await stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has hung up, as it should

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        try:
            yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def libp2p_host() -> AsyncIterator[IHost]:
    host = new_host(key_pair=create_new_key_pair())
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        yield host
        for other in host.get_connected_peers():
            await host.disconnect(other)  # the library leaves a dialled socket open when it is just cancelled


async def dial(here: IHost, there: IHost) -> None:
    await here.connect(info_from_p2p_addr(there.get_addrs()[0]))
    with trio.fail_after(WITHIN_S):
        while here.get_id() not in there.get_connected_peers():  # noqa: ASYNC110  (the library has no event)
            await trio.sleep(0.01)
