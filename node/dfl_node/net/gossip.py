"""Announcements over GossipSub, between verified peers only, with explicit scores and limits.

The library's defaults weigh nothing and forbid nothing (all score weights 0, all thresholds minus infinity).
Here a peer that forwards what is invalid falls below the thresholds after a few messages and is not listened
to until its score has decayed back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakKeyDictionary

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.score import PeerScorer, ScoreParams, TopicScoreParams
from libp2p.pubsub.validators import signature_validator

from .channel import PeerId
from .config import NetLimits
from .host import NodeHost
from .inbox import MAX_TOPIC_CHARS, Inbox, check_announcement, check_topic
from .services import Tasks, running

log = structlog.get_logger(__name__)

_HEARTBEAT_S = 1
_MAX_TOPICS_PER_PEER = 256
_MAX_RPC_BYTES = 1 << 20  # several announcements can travel in one answer

# Score of a peer = first deliveries (up to +10) - 10 for each invalid message - behaviour penalties. Decays
# are per heartbeat of a second: half of an invalid message is forgotten in about 70 s.
SCORES = ScoreParams(
    p1_time_in_mesh=TopicScoreParams(weight=0.01, cap=100.0, decay=0.999),
    p2_first_message_deliveries=TopicScoreParams(weight=0.1, cap=100.0, decay=0.99),
    p3_mesh_message_deliveries=TopicScoreParams(weight=0.0, cap=0.0, decay=0.99),
    p4_invalid_messages=TopicScoreParams(weight=10.0, cap=100.0, decay=0.99),
    p5_behavior_penalty_weight=2.0,
    p5_behavior_penalty_decay=0.97,
    p5_behavior_penalty_threshold=10.0,
    p7_ip_colocation_weight=1.0,
    p7_ip_colocation_threshold=48,
    publish_threshold=-40.0,
    gossip_threshold=-20.0,
    graylist_threshold=-60.0,
    accept_px_threshold=10.0,
)


class _Router(GossipSub):
    def __init__(self, limits: NetLimits) -> None:
        super().__init__(
            protocols=[PROTOCOL_ID_V12, PROTOCOL_ID_V11],
            degree=6,
            degree_low=4,
            degree_high=12,
            time_to_live=60,
            gossip_window=3,
            gossip_history=5,
            heartbeat_initial_delay=0.1,
            heartbeat_interval=_HEARTBEAT_S,
            do_px=False,  # peers are exchanged by a request of our own, and dialled before they are believed
            prune_back_off=10,
            unsubscribe_back_off=2,
            score_params=SCORES,
            max_idontwant_messages=64,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=True,
            max_messages_per_topic_per_second=limits.max_announcements_per_s,
            eclipse_protection_enabled=False,
            max_pending_messages_per_peer=32,
            pending_messages_ttl=10.0,
        )
        self.scores = PeerScorer(SCORES)
        self.scorer = self.scores


class _Pubsub(Pubsub):
    """Pubsub that speaks to verified peers only and survives what they send."""

    def __init__(self, host: NodeHost, router: _Router, inbox: Inbox) -> None:
        super().__init__(
            host,
            router,
            seen_ttl=120,
            sweep_interval=30,
            strict_signing=True,
            max_subscriptions_per_rpc=_MAX_TOPICS_PER_PEER,
            max_subscriptions_per_peer=_MAX_TOPICS_PER_PEER,
            max_inbound_rpc_size=_MAX_RPC_BYTES,
        )
        # Message ids are made of the sequence number: it must not go back when a node restarts.
        self.counter = time.time_ns()
        self._writing: WeakKeyDictionary[INetStream, trio.Lock] = WeakKeyDictionary()
        self._node_host = host
        self._router = router
        self._inbox = inbox
        self._max_bytes = host.limits.max_announcement_bytes

    async def _handle_new_peer_with_retry(
        self,
        peer_id: ID,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
    ) -> None:
        # The library opens a stream on every new connection; ours wait for the hello (`Gossip.add_peer`).
        if self._node_host.is_verified(peer_id):
            await super()._handle_new_peer_with_retry(peer_id, timeout)

    async def continuously_read_stream(self, stream: INetStream) -> None:
        peer_id = stream.muxed_conn.peer_id
        try:
            await super().continuously_read_stream(stream)
        except Exception as error:
            log.debug("gossip stream dropped", peer=str(peer_id), error=repr(error)[:200])
            self._router.scores.penalize_behavior(peer_id, 5.0)
            await stream.reset()
            self._handle_dead_peer(peer_id)
        else:
            await stream.close()  # the library leaves its half open

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        try:
            if self._is_msg_seen(msg):
                return
            if msg_forwarder != self.my_id and not self._well_formed(msg):
                log.debug("invalid announcement", peer=str(msg_forwarder))
                for topic in list(msg.topicIDs)[:1]:
                    self._router.scores.on_invalid_message(msg_forwarder, topic[:MAX_TOPIC_CHARS])
                return
            await super().push_msg(msg_forwarder, msg)
        except Exception as error:
            log.debug("announcement dropped", peer=str(msg_forwarder), error=repr(error)[:200])
            self._router.scores.penalize_behavior(msg_forwarder, 5.0)

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        # The library writes to one stream from several tasks, and a message beyond one yamux frame would be
        # mixed with another.
        async with self._writing.setdefault(stream, trio.Lock()):
            return await super().write_msg(stream, rpc_msg)

    def _well_formed(self, msg: rpc_pb2.Message) -> bool:
        return (
            len(msg.data) <= self._max_bytes
            and len(msg.topicIDs) == 1
            and len(msg.seqno) == 8
            and len(msg.from_id) <= 64
            and signature_validator(msg)
        )

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        # The library's queue of 32 drops the newest; ours drop the oldest.
        origin = ID(publish_message.from_id)
        if origin != self.my_id:
            for topic in publish_message.topicIDs:
                self._inbox.deliver(topic, PeerId(origin.to_base58()), publish_message.data)


class Gossip:
    """Publish and subscribe."""

    def __init__(self, host: NodeHost, tasks: Tasks) -> None:
        self._tasks = tasks
        self._limits = host.limits
        self._inbox = Inbox(host.limits.max_backlog)
        self._router = _Router(host.limits)
        self._pubsub = _Pubsub(host, self._router, self._inbox)
        self._lock = trio.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for service in (self._router, self._pubsub):
                await stack.enter_async_context(running(service))
            await self._pubsub.wait_until_ready()
            yield

    def add_peer(self, peer_id: ID) -> None:
        """The peer's hello is verified: gossip with it."""
        self._tasks.start_soon(self._add_contained, peer_id)

    async def _add_contained(self, peer_id: ID) -> None:
        try:
            await self._pubsub.ensure_peer_stream(peer_id, timeout=self._limits.hello_s)
        except Exception as error:
            log.debug("no gossip with peer", peer=str(peer_id), error=repr(error)[:200])

    async def publish(self, topic: str, body: bytes) -> None:
        """Raises UsageError for a body over the limit or an impossible topic."""
        check_announcement(topic, body, self._limits.max_announcement_bytes)
        await self._pubsub.publish(topic, body)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[AsyncIterator[tuple[PeerId, bytes]]]:
        """Announcements of others on the topic, while the context is open."""
        check_topic(topic)
        reader = self._inbox.open(topic)
        try:
            async with self._lock:
                await self._pubsub.subscribe(topic)
            yield reader
        finally:
            if self._inbox.close(topic, reader):
                with trio.CancelScope(shield=True):
                    await self._leave(topic)

    async def _leave(self, topic: str) -> None:
        async with self._lock:
            if self._inbox.has_readers(topic):
                return  # somebody came while we waited
            with trio.move_on_after(1.0):
                await self._pubsub.unsubscribe(topic)

    def score(self, peer_id: ID, topic: str) -> float:
        """The peer's score in the topic, to be compared with the thresholds in SCORES."""
        return float(self._router.scores.score(peer_id, [topic]))
