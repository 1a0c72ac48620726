"""`KuboStore` without a daemon, or with something else in its place."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio

from dfl_ledger.errors import StoreUnavailable, UsageError
from dfl_node.store.kubo import KuboBlocks, KuboStore
from tests.conformance.blob_store import UNKNOWN
from tests.node.store.support import WITHIN_S, hostile_gateway

pytestmark = pytest.mark.filterwarnings("ignore:The 'strict' parameter:FutureWarning")

CALLS: dict[str, Callable[[KuboStore], Awaitable[object]]] = {
    "check": lambda store: store.blocks.check(),
    "put": lambda store: store.put(b"weights"),
    "get": lambda store: store.get(UNKNOWN, max_bytes=10, timeout_s=2),
    "has": lambda store: store.has(UNKNOWN),
    "unpin": lambda store: store.unpin(UNKNOWN),
    "collect": lambda store: store.collect(),
}


def unavailable(multiaddr: str, call: str) -> StoreUnavailable:
    async def story() -> None:
        blocks = KuboBlocks(multiaddr)
        try:
            with trio.fail_after(WITHIN_S):
                await CALLS[call](KuboStore(blocks))
        finally:
            blocks.close()

    with pytest.raises(StoreUnavailable) as failed:
        trio.run(story)
    return failed.value


@pytest.mark.parametrize("call", CALLS)
def test_a_dead_daemon(call: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets the port
        multiaddr = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}"
        error = unavailable(multiaddr, call)
    assert multiaddr in error.what
    assert error.help_command == "ipfs daemon"
    assert error.exit_code == 3


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot JSON!",
    ],
)
def test_something_else_listens_there(reply: bytes) -> None:
    async def story() -> None:
        async def answer(stream: trio.SocketStream) -> None:
            await stream.send_all(reply)

        async with hostile_gateway(answer) as url:
            blocks = KuboBlocks("/ip4/127.0.0.1/tcp/" + url.rpartition(":")[2])
            with pytest.raises(StoreUnavailable), trio.fail_after(WITHIN_S):
                await blocks.check()
            blocks.close()

    trio.run(story)


@pytest.mark.parametrize(
    "multiaddr", ["localhost:5001", "http://127.0.0.1:5001", "/ip4/127.0.0.1/udp/5001", ""]
)
def test_a_bad_address_is_a_usage_error(multiaddr: str) -> None:
    with pytest.raises(UsageError, match="--ipfs"):
        KuboBlocks(multiaddr)
