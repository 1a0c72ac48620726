"""Bitswap between nodes, and against peers that misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from libp2p.abc import IHost, INetStream
from libp2p.bitswap.pb.bitswap_pb2 import Message
from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamError

from dfl_ledger.errors import BlobNotFound
from dfl_ledger.records import Cid
from dfl_node.store import bitswap
from dfl_node.store.bitswap import MAX_STREAMS, V110, V120, Bitswap
from dfl_node.store.bitswap_wire import MAX_MESSAGE_BYTES, parse, read_message, wantlist
from dfl_node.store.blocks import BlockFiles
from dfl_node.store.dag_pb import varint
from dfl_node.store.local import LocalStore
from dfl_node.store.unixfs import MAX_BLOCK_BYTES, build
from tests.conformance.blob_store import UNKNOWN, content
from tests.node.store.support import WITHIN_S, dial, libp2p_host

MIB = 1 << 20
DATA = content(2 * MIB)
BUILT = build(DATA)
ROOT_BLOCK = bytes(dict(BUILT.blocks)[BUILT.root])


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(WITHIN_S):
            await story()

    trio.run(bounded)


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[tuple[IHost, LocalStore]]:
    """A host that serves its store over bitswap and fetches over nothing else."""
    files = BlockFiles(folder)
    async with libp2p_host() as host, trio.open_nursery() as nursery:
        service = Bitswap(host, files)
        await nursery.start(service.run)
        yield host, LocalStore(files, [service])
        nursery.cancel_scope.cancel()


def framed(message: Message) -> bytes:
    body = message.SerializeToString()
    return varint(len(body)) + body


class Asker:
    """A bare bitswap peer: asks, and keeps what comes back on streams the other side opens."""

    def __init__(self, host: IHost) -> None:
        self.host = host
        self._send, self.answers = trio.open_memory_channel[Message](100)
        for protocol in (V120, V110):
            host.set_stream_handler(protocol, self._take)

    async def _take(self, stream: INetStream) -> None:
        while (body := await read_message(stream, lambda: None)) is not None:
            await self._send.send(parse(body))

    async def ask(self, other: IHost, message: Message, protocol: str = V120) -> Message:
        stream = await self.host.new_stream(other.get_id(), [protocol])  # type: ignore[list-item]
        await stream.write(framed(message))
        answer = await self.answers.receive()
        await stream.close()
        return answer


def test_answers_have_dont_have_and_blocks(tmp_path: Path) -> None:
    async def story() -> None:
        async with node(tmp_path) as (host, store), libp2p_host() as other:
            asker = Asker(other)
            await dial(other, host)
            cid = await store.put(b"weights")

            have = await asker.ask(host, wantlist([cid, UNKNOWN], have=True))
            assert [(Cid.from_bytes(p.cid), p.type) for p in have.blockPresences] == [
                (cid, Message.Have),
                (UNKNOWN, Message.DontHave),
            ]
            blocks = await asker.ask(host, wantlist([UNKNOWN, cid]))
            assert [Cid.of(part.data, part.prefix[1]) for part in blocks.payload] == [cid]
            assert [Cid.from_bytes(presence.cid) for presence in blocks.blockPresences] == [UNKNOWN]

    run(story)


def test_version_1_1_gets_blocks_and_no_presences(tmp_path: Path) -> None:
    async def story() -> None:
        async with node(tmp_path) as (host, store), libp2p_host() as other:
            asker = Asker(other)
            other.remove_stream_handler(V120)
            await dial(other, host)
            cid = await store.put(b"weights")
            answer = await asker.ask(host, wantlist([UNKNOWN, cid]), V110)
            assert len(answer.payload) == 1
            assert not answer.blockPresences

    run(story)


def test_a_cancelled_question_is_not_answered(tmp_path: Path) -> None:
    async def story() -> None:
        async with node(tmp_path) as (host, store), libp2p_host() as other:
            asker = Asker(other)
            await dial(other, host)
            first, second = await store.put(b"first"), await store.put(b"second")
            message = wantlist([first, second])
            message.MergeFrom(wantlist([first], cancel=True))
            answer = await asker.ask(host, message)
            assert [Cid.of(part.data, part.prefix[1]) for part in answer.payload] == [second]

    run(story)


def test_a_file_from_two_peers_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        data = content(12 * MIB)
        async with (
            node(tmp_path / "here") as (here, mine),
            node(tmp_path / "one") as (one, first),
            node(tmp_path / "two") as (two, second),
        ):
            await dial(here, one)
            await dial(here, two)
            cid = await first.put(data)
            await second.put(data)
            assert await mine.get(cid, max_bytes=len(data)) == data
            assert min(first.traffic().sent, second.traffic().sent) > 2 * MIB
            assert mine.traffic().received < 13 * MIB  # no block twice

    run(story)


def test_nobody_has_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with node(tmp_path / "here") as (here, mine), node(tmp_path / "there") as (there, _):
            await dial(here, there)
            with pytest.raises(BlobNotFound, match="no peer delivered"):
                await mine.get(UNKNOWN, max_bytes=100, timeout_s=0.5)

    run(story)


# Peers that misbehave. Each says it has the file, then ...


def block(data: bytes, prefix: bytes = b"\x01\x55\x12\x20") -> Message:
    message = Message()
    message.payload.add(prefix=prefix, data=data)
    return message


MISDEEDS: dict[str, list[bytes]] = {
    "never sends": [],
    "sends other blocks": [framed(block(content(100_000, seed))) for seed in range(10)],
    "floods": [framed(block(bytes(MIB)))] * 12,
    "sends an oversized block": [framed(block(bytes(MAX_BLOCK_BYTES + 1)))],
    "sends an oversized message": [varint(MAX_MESSAGE_BYTES + 1), bytes(MIB)],
    "claims a terabyte": [varint(1 << 40), bytes(MIB)],
    "sends garbage": [varint(1000) + content(1000)],
    "sends a foreign hash": [framed(block(content(100), b"\x01\x55\x1b\x20"))],
    "breaks off": [varint(1000) + b"half"],
}


class Liar:
    def __init__(self, host: IHost, parts: list[bytes]) -> None:
        self._host = host
        self._parts = parts
        host.set_stream_handler(V120, self._take)

    async def _take(self, stream: INetStream) -> None:
        body = await read_message(stream, lambda: None)
        entries = parse(body).wantlist.entries if body else []
        answer = await self._host.new_stream(stream.muxed_conn.peer_id, [V120])
        message = Message()
        for entry in entries:
            message.blockPresences.add(cid=entry.block, type=Message.Have)
        await answer.write(framed(message))
        try:
            for part in self._parts:
                await answer.write(part)
            await answer.close()
        except Exception:
            await answer.reset()  # thrown out, as it should


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_bad_peer_is_dropped_and_a_good_one_delivers(
    tmp_path: Path, misdeed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitswap, "STALL_S", 0.2)
    monkeypatch.setattr(bitswap, "HAVE_S", 0.2)

    async def story() -> None:
        async with (
            node(tmp_path / "here") as (here, mine),
            node(tmp_path / "there") as (there, good),
            libp2p_host() as bad,
        ):
            Liar(bad, MISDEEDS[misdeed])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial, here, bad)
                nursery.start_soon(dial, here, there)
            with pytest.raises(BlobNotFound):
                await mine.get(BUILT.root, max_bytes=len(DATA), timeout_s=0.5)
            assert mine.traffic().received < 12 * MIB
            await good.put(DATA)
            assert await mine.get(BUILT.root, max_bytes=len(DATA), timeout_s=15) == DATA

    run(story)


def flood_of_wants() -> bytes:
    return framed(wantlist([Cid.of(str(number).encode()) for number in range(8000)]))


@pytest.mark.parametrize(
    "attack",
    [
        varint(MAX_MESSAGE_BYTES + 1),
        b"\xff" * 20,
        flood_of_wants(),
        varint(200_000) + b"\x0a\x00" * 100_000,  # empty wantlists: small on the wire, large unfolded
        varint(1000) + content(1000),
    ],
    ids=["too long", "endless length", "8000 wants", "100,000 parts", "garbage"],
)
def test_a_server_throws_attackers_out_and_goes_on(tmp_path: Path, attack: bytes) -> None:
    async def story() -> None:
        async with node(tmp_path) as (host, store), libp2p_host() as other:
            asker = Asker(other)
            await dial(other, host)
            cid = await store.put(b"weights")
            stream = await other.new_stream(host.get_id(), [V120])
            await stream.write(attack)
            with pytest.raises(StreamError):
                await stream.read(1)
            assert len((await asker.ask(host, wantlist([cid]))).payload) == 1

    run(story)


def test_streams_per_peer_are_limited(tmp_path: Path) -> None:
    async def story() -> None:
        async with node(tmp_path) as (host, store), libp2p_host() as other:
            Asker(other)
            await dial(other, host)
            await store.put(b"weights")
            streams = [await other.new_stream(host.get_id(), [V120]) for _ in range(MAX_STREAMS)]
            with pytest.raises((StreamFailure, StreamError)):  # in the midst of opening, or just after
                await (await other.new_stream(host.get_id(), [V120])).read(1)
            for stream in streams:
                await stream.close()

    run(story)
