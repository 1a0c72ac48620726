"""Bitswap 1.2.0 and 1.1.0 over libp2p: serve blocks to anybody, fetch a file from connected peers.

https://specs.ipfs.tech/bitswap-protocol/

py-libp2p's own bitswap answers on the stream a request came in on. Kubo, as the specification has it, never
reads there: it expects each side to send its messages on streams it opened itself. So an answer here always
goes out on a fresh stream to the asking peer, and what a peer sends us arrives at our stream handler whether
it is a question or an answer. Only the message format is taken from py-libp2p.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import structlog
import trio
from libp2p.abc import IHost, INetStream
from libp2p.bitswap.pb.bitswap_pb2 import Message
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from dfl_ledger.errors import DflError
from dfl_ledger.records import Cid
from dfl_node.store.bitswap_wire import blocks_of, parse, read_message, wantlist
from dfl_node.store.dag_pb import varint
from dfl_node.store.exchange import BlockSource, Fetch

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = structlog.get_logger(__name__)

V120, V110 = TProtocol("/ipfs/bitswap/1.2.0"), TProtocol("/ipfs/bitswap/1.1.0")
PROTOCOLS = [V120, V110]

MAX_WANTS = 1024  # one peer's unanswered questions; what comes beyond is not remembered
MAX_STREAMS = 8  # open towards us, per peer
MAX_ANSWERED_PEERS = 64  # at a time
MAX_ASKED_PEERS = 16  # in one fetch
MAX_UNWANTED_BYTES = 8 << 20  # from one stream; a few blocks cross a cancel on their way
MESSAGE_BYTES = 1 << 20  # an answer is sent when it has grown to this
WINDOW = 8  # blocks asked of one peer at a time

OPEN_S = 5.0
HAVE_S = 2.0  # how long a peer may think about whether it has a block
STALL_S = 6.0  # without STALL_BYTES or an answer, a peer is dropped for the file
LINGER_S = 1.0  # an answering stream stays open for the next question


@dataclass(slots=True)
class _Want:
    block: bool  # the block itself, or only whether we have it
    dont_have: bool  # say so if we do not


@dataclass(slots=True)
class _Queue:
    """What one peer has asked and not yet got."""

    wants: dict[Cid, _Want] = field(default_factory=dict)
    news: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True, eq=False)
class _Ask:
    """One peer being asked in one fetch."""

    peer: ID
    fetch: Fetch
    claimed: dict[Cid, _Ask]  # shared by all peers of the fetch: who is asked for which block
    has: bool = False
    refused: set[Cid] = field(default_factory=set)
    asked: set[Cid] = field(default_factory=set)
    heard: float = 0.0  # trio time of the last progress
    error: DflError | None = None

    def claim(self) -> list[Cid]:
        """Wanted blocks that nobody is asked for and this peer has not refused, to fill its window."""
        missing = self.fetch.assembly.missing()
        free = (cid for cid in missing if cid not in self.claimed and cid not in self.refused)
        taken = list(islice(free, WINDOW - len(self.asked)))
        self.claimed |= dict.fromkeys(taken, self)
        self.asked |= set(taken)
        return taken

    def release(self, cids: Sequence[Cid]) -> None:
        for cid in cids:
            if self.claimed.get(cid) is self:
                del self.claimed[cid]
        self.asked.difference_update(cids)


class Bitswap:
    """Serves `source` while `run` runs, and is a `Fetcher`."""

    def __init__(self, host: IHost, source: BlockSource) -> None:
        self._host = host
        self._source = source
        self._queues: dict[ID, _Queue] = {}
        self._streams: Counter[ID] = Counter()
        self._asks: dict[ID, list[_Ask]] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as self._nursery:
            for protocol in PROTOCOLS:
                self._host.set_stream_handler(protocol, self._on_stream)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                for protocol in PROTOCOLS:
                    self._host.remove_stream_handler(protocol)

    # Fetching

    async def fetch(self, fetch: Fetch, providers: Sequence[str]) -> None:
        """Ask connected peers who has the file, then each of those for a share of its blocks."""
        peers = [peer for peer in self._host.get_connected_peers() if str(peer) not in fetch.dropped]
        peers.sort(key=lambda peer: str(peer) not in providers)
        claimed: dict[Cid, _Ask] = {}
        asks = [_Ask(peer, fetch, claimed) for peer in peers[:MAX_ASKED_PEERS]]
        async with trio.open_nursery() as nursery:
            for ask in asks:
                nursery.start_soon(self._ask, ask)
        for ask in asks:
            if ask.error is not None:
                raise ask.error

    async def _ask(self, ask: _Ask) -> None:
        fetch = ask.fetch
        self._asks.setdefault(ask.peer, []).append(ask)
        stream: INetStream | None = None
        try:
            with trio.fail_after(OPEN_S):
                stream = await self._host.new_stream(ask.peer, PROTOCOLS)
            if await self._has_file(ask, stream):
                await self._take_blocks(ask, stream)
        except Exception as bad:  # py-libp2p raises many kinds; all mean that this peer cannot be talked to
            fetch.drop(str(ask.peer), f"cannot be asked over bitswap: {str(bad) or repr(bad)}")
        finally:
            self._asks[ask.peer].remove(ask)
            if not self._asks[ask.peer]:
                del self._asks[ask.peer]
            left = list(ask.asked)
            ask.release(left)
            fetch.nudge()
            if stream is not None:
                with trio.CancelScope(deadline=trio.current_time() + 1.0, shield=True):
                    await self._hang_up(stream, left)

    async def _has_file(self, ask: _Ask, stream: INetStream) -> bool:
        probe = next(ask.fetch.assembly.missing(), None)
        if probe is None or stream.get_protocol() == V110:  # 1.1.0 knows no HAVE: ask for blocks at once
            return True
        ask.asked.add(probe)  # a small block comes at once, in place of a HAVE
        await self._send(stream, wantlist([probe], have=True))
        with trio.move_on_after(HAVE_S):
            while not ask.has and probe not in ask.refused and ask.fetch.assembly.wants(probe):
                await ask.fetch.change.wait()
        ask.asked.discard(probe)
        return ask.has

    async def _take_blocks(self, ask: _Ask, stream: INetStream) -> None:
        fetch = ask.fetch
        while not fetch.done and ask.error is None:
            change = fetch.change
            idle = not ask.asked
            if fresh := ask.claim():
                if idle:
                    ask.heard = trio.current_time()
                await self._send(stream, wantlist(fresh))
            elif idle and all(cid in ask.refused for cid in fetch.assembly.missing()):
                return
            with trio.move_on_at(ask.heard + STALL_S if ask.asked else trio.current_time() + OPEN_S):
                await change.wait()
            if ask.asked and trio.current_time() >= ask.heard + STALL_S:
                fetch.drop(str(ask.peer), f"sent nothing for {STALL_S:g} s")
                return

    async def _hang_up(self, stream: INetStream, left: Sequence[Cid]) -> None:
        try:
            if left:
                await self._send(stream, wantlist(left, cancel=True))
            await stream.close()
        except Exception as bad:
            log.debug("bitswap stream was closed already", why=str(bad))

    # What comes in

    async def _on_stream(self, stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id
        if self._streams[peer] >= MAX_STREAMS:
            await stream.reset()
            return
        self._streams[peer] += 1
        unwanted = 0
        try:
            while (body := await read_message(stream, partial(self._heard, peer))) is not None:
                self._source.meter.received += len(body)
                message = parse(body)
                self._take_questions(peer, message, stream.get_protocol() == V120)
                unwanted += await self._take_answers(peer, message)
                if unwanted > MAX_UNWANTED_BYTES:
                    raise ValueError("blocks nobody asked for")
            await stream.close()
        except Exception as bad:  # whatever it is, only this stream suffers
            log.info("bitswap stream ended", peer=str(peer), why=str(bad) or repr(bad))
            await stream.reset()
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    def _heard(self, peer: ID) -> None:
        for ask in self._asks.get(peer, ()):
            ask.heard = trio.current_time()

    def _take_questions(self, peer: ID, message: Message, presences: bool) -> None:
        if not message.HasField("wantlist"):
            return
        if peer not in self._queues and len(self._queues) >= MAX_ANSWERED_PEERS:
            return
        queue = self._queues.get(peer, _Queue())
        if message.wantlist.full:
            queue.wants.clear()
        for entry in message.wantlist.entries:
            try:
                cid = Cid.from_bytes(entry.block)
            except ValueError:
                continue  # another hash or codec: surely not here
            if entry.cancel:
                queue.wants.pop(cid, None)
            elif len(queue.wants) < MAX_WANTS:
                block = entry.wantType == Message.Wantlist.Block
                queue.wants[cid] = _Want(block, entry.sendDontHave and presences)
        queue.news.set()
        if queue.wants and peer not in self._queues and self._nursery is not None:
            self._queues[peer] = queue
            self._nursery.start_soon(self._answer, peer, queue)

    async def _take_answers(self, peer: ID, message: Message) -> int:
        """Hand blocks and presences to the fetches that wait; returns how many bytes nobody wanted."""
        asks = list(self._asks.get(peer, ()))
        blocks = await trio.to_thread.run_sync(blocks_of, message) if message.payload else []
        unwanted = sum(len(block) for _, block in blocks)
        present = {bytes(presence.cid): presence.type for presence in message.blockPresences}
        for ask in asks:
            mine = [(cid, block) for cid, block in blocks if cid in ask.asked]
            unwanted -= sum(len(block) for _, block in mine)
            ask.has |= bool(mine)
            try:
                await ask.fetch.deliver(str(peer), mine)
            except DflError as error:  # the file is too large or no file: a matter for the one who wants it
                ask.error = error
            ask.release([cid for cid, _ in mine])
            for cid in tuple(ask.asked) if present else ():
                if (kind := present.get(bytes(cid))) is not None:
                    ask.has |= kind == Message.Have
                    if kind == Message.DontHave:
                        ask.refused.add(cid)
                        ask.release([cid])
            ask.fetch.nudge()
        return max(0, unwanted)

    # What goes out

    async def _answer(self, peer: ID, queue: _Queue) -> None:
        """One peer's questions, answered in order on one stream of ours, until it has no more."""
        stream: INetStream | None = None
        try:
            with trio.fail_after(OPEN_S):
                stream = await self._host.new_stream(peer, PROTOCOLS)
            presences = stream.get_protocol() == V120
            while queue.wants:
                queue.news = trio.Event()
                message = await self._next_answer(queue, presences)
                if message.ByteSize():
                    await self._send(stream, message)
                if not queue.wants:
                    with trio.move_on_after(LINGER_S):
                        await queue.news.wait()
        except Exception as bad:  # py-libp2p raises many kinds; the peer is gone or does not listen
            log.info("peer cannot be answered over bitswap", peer=str(peer), why=str(bad) or repr(bad))
        finally:
            # Without a wait since the last look at the questions: the next one starts a task of its own.
            del self._queues[peer]
        if stream is not None:
            await self._hang_up(stream, ())

    async def _next_answer(self, queue: _Queue, presences: bool) -> Message:
        message, size = Message(), 0
        while queue.wants and size < MESSAGE_BYTES:
            cid = next(iter(queue.wants))
            want = queue.wants.pop(cid)
            if want.block and (block := await self._source.block(cid)) is not None:
                message.payload.add(prefix=bytes(cid)[:4], data=block)
                size += len(block)
            elif not want.block and await self._source.has_block(cid):
                if presences:
                    message.blockPresences.add(cid=bytes(cid), type=Message.Have)
            elif want.dont_have and presences:
                message.blockPresences.add(cid=bytes(cid), type=Message.DontHave)
            size += 64
        return message

    async def _send(self, stream: INetStream, message: Message) -> None:
        body = message.SerializeToString()
        body = varint(len(body)) + body
        self._source.meter.sent += len(body)
        await stream.write(body)
