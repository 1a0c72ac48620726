"""Hello: the first exchange on a connection, after which a peer is verified, refused, or not one of us.

Whoever dialled asks, the other answers; each checks the other's binding. A refusal carries its reason, so
that the operator of a node on the wrong chain reads it in the node's own log.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from dfl_ledger.errors import BindingInvalid, DflError, PeerMisbehaved, PeerUnreachable, TimedOut

from .addrs import credible, http_url, is_loopback_ip, tcp_addr
from .binding import peer_key_of, verify_binding
from .channel import FoundBy, Peer, PeerId
from .config import NetConfig
from .host import NodeHost
from .peerbook import PeerBook
from .services import Tasks, shielded
from .wire import (
    HELLO,
    MAX_HELLO_BYTES,
    NONCE_BYTES,
    Hello,
    WireError,
    decode_hello,
    encode_hello,
    read_frame,
    write_frame,
)

log = structlog.get_logger(__name__)

_OK, _REFUSED = b"\0", b"\1"
_MAX_REASON_CHARS = 300


@dataclass(slots=True)
class _Pending:
    """A greeting under way. Whoever wants its outcome waits for the same one."""

    done: trio.Event = field(default_factory=trio.Event)
    peer: Peer | None = None
    error: DflError | None = None


class Greeter:
    """Says hello, answers hello."""

    def __init__(
        self,
        host: NodeHost,
        config: NetConfig,
        book: PeerBook,
        tasks: Tasks,
        on_verified: Callable[[Peer], None],
    ) -> None:
        self._host = host
        self._config = config
        self._book = book
        self._tasks = tasks
        self._on_verified = on_verified
        self._pending: dict[ID, _Pending] = {}
        host.set_stream_handler(TProtocol(HELLO), self._answer)

    async def greet(self, peer_id: ID) -> Peer:
        """Say hello to a connected peer.

        Raises BindingInvalid (either side refuses the other), PeerMisbehaved, PeerUnreachable (it hung up, or
        is no dfl node) and TimedOut.
        """
        pending = self._pending.get(peer_id)
        if pending is None:
            pending = self._pending[peer_id] = _Pending()
            self._tasks.start_soon(self._run, peer_id, pending)
        await pending.done.wait()
        if pending.error is not None:
            raise pending.error
        if pending.peer is None:
            raise PeerUnreachable(f"peer {peer_id} hung up", why="the greeting was cut off")
        return pending.peer

    async def _run(self, peer_id: ID, pending: _Pending) -> None:
        try:
            with trio.fail_after(self._config.limits.hello_s):
                pending.peer = await self._ask(peer_id)
        except trio.TooSlowError:
            pending.error = TimedOut(f"peer {peer_id} did not answer our hello in time")
        except DflError as error:
            pending.error = error
        except Exception as error:
            pending.error = PeerUnreachable(f"peer {peer_id} hung up", why=f"during hello: {error!r:.200}")
        finally:
            self._pending.pop(peer_id, None)
            pending.done.set()
        if isinstance(pending.error, (BindingInvalid, PeerMisbehaved)):
            await self._turn_away(peer_id, str(pending.error))

    async def _ask(self, peer_id: ID) -> Peer:
        stream = await self._open(peer_id)
        try:
            nonce = secrets.token_bytes(NONCE_BYTES)
            asked_at = trio.current_time()
            await write_frame(stream, self._hello(nonce))
            answer = await read_frame(stream, MAX_HELLO_BYTES)
            rtt_s = trio.current_time() - asked_at
        except WireError as bad:
            raise PeerMisbehaved(str(peer_id), f"bad hello: {bad}") from bad
        finally:
            with shielded(1.0):
                await stream.close()
        if answer[:1] == _REFUSED:
            reason = ascii(answer[1:].decode(errors="replace")[:_MAX_REASON_CHARS])
            raise BindingInvalid(f"peer {peer_id} refused this node", why=reason)
        hello = _decoded(peer_id, answer[1:] if answer[:1] == _OK else b"")
        if hello.nonce != nonce:
            raise PeerMisbehaved(str(peer_id), "it answered another hello than ours")
        return self._welcome(peer_id, hello, FoundBy.DHT, rtt_s)

    async def _open(self, peer_id: ID) -> INetStream:
        try:
            return await self._host.new_stream(peer_id, [TProtocol(HELLO)])
        except Exception as error:
            causes = f"{error} {error.__cause__}"
            if "not supported" in causes:
                raise PeerUnreachable(
                    f"peer {peer_id} is not a dfl node", why=f"it does not speak {HELLO}"
                ) from error
            raise PeerUnreachable(f"peer {peer_id} hung up before hello", why=repr(error)[:200]) from error

    async def _answer(self, stream: INetStream) -> None:
        peer_id = stream.muxed_conn.peer_id
        try:
            with trio.fail_after(self._config.limits.hello_s):
                hello = _decoded(peer_id, await read_frame(stream, MAX_HELLO_BYTES))
                self._verify(peer_id, hello)
                await write_frame(stream, _OK + self._hello(hello.nonce))
                self._welcome(peer_id, hello, FoundBy.INBOUND, None)
                await stream.close()
        except (BindingInvalid, PeerMisbehaved, WireError) as error:
            why = getattr(error, "why", "") or str(error)
            with suppress(Exception), trio.move_on_after(1.0):
                await write_frame(stream, _REFUSED + why.encode()[:_MAX_REASON_CHARS])
                # Hanging up at once would throw away what the other has not read yet: wait for its end.
                while await stream.read(1024):
                    pass
            await self._turn_away(peer_id, why)

    def _verify(self, peer_id: ID, hello: Hello) -> None:
        refusal = self._book.refusal(PeerId(str(peer_id)), trio.current_time())
        if refusal is not None:
            raise BindingInvalid("the peer is refused", why=refusal)
        try:
            key = peer_key_of(str(peer_id))
        except ValueError as bad:
            raise BindingInvalid("the node key is not Ed25519", why=str(bad)) from bad
        verify_binding(
            hello.binding, peer_key=key, chain_id=self._config.chain_id, registry=self._config.registry
        )

    def _welcome(self, peer_id: ID, hello: Hello, found_by: FoundBy, rtt_s: float | None) -> Peer:
        """Raises BindingInvalid, or PeerUnreachable when the peer has hung up meanwhile."""
        self._verify(peer_id, hello)
        if not self._host.is_connected(peer_id):
            raise PeerUnreachable(f"peer {peer_id} hung up", why="right after its hello")
        name = PeerId(str(peer_id))
        endpoint = self._host.endpoint(peer_id)
        told = credible(
            hello.addrs,
            name,
            loopback_ok=endpoint is None or is_loopback_ip(endpoint.ip),
            limit=self._config.limits.max_addrs_per_peer,
        )
        dialled = (tcp_addr(endpoint.ip, endpoint.port, name),) if endpoint and endpoint.dialled else ()
        peer = Peer(
            peer_id=name,
            address=hello.binding.address,
            multiaddrs=tuple(dict.fromkeys((*dialled, *told))),
            gateway_url=http_url(endpoint.ip, hello.gateway_port)
            if endpoint and hello.gateway_port
            else None,
            found_by=found_by,
            latency_s=rtt_s,
        )
        skew_s = hello.time_ms / 1000 - time.time()
        peer = self._book.welcome(peer, relay=hello.offers_relay, skew_s=skew_s)
        self._host.mark_verified(peer_id)
        self._on_verified(peer)
        return peer

    def _hello(self, nonce: bytes) -> bytes:
        return encode_hello(
            Hello(
                binding=self._config.binding,
                nonce=nonce,
                time_ms=int(time.time() * 1000),
                gateway_port=self._config.gateway_port,
                offers_relay=self._config.offer_relay,
                agent=self._config.agent,
                addrs=tuple(str(addr) for addr in self._host.get_addrs()),
            )
        )

    async def _turn_away(self, peer_id: ID, why: str) -> None:
        log.warning("peer refused", peer=str(peer_id), why=why)
        self._book.refuse(PeerId(str(peer_id)), why, trio.current_time())
        with shielded(2.0):
            await self._host.disconnect(peer_id)


def _decoded(peer_id: ID, raw: bytes) -> Hello:
    try:
        return decode_hello(raw)
    except WireError as bad:
        raise PeerMisbehaved(str(peer_id), f"bad hello: {bad}") from bad
