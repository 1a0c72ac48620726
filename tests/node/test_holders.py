"""Members hold one another's files: only members, only so many, and nobody waits longer than it helps."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import cache
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dfl_ledger import codec
from dfl_ledger.accounts import Account
from dfl_ledger.errors import PeerMisbehaved, PeerUnreachable
from dfl_ledger.records import Address, Cid, JobId
from dfl_node.holders import FETCH_S, KEPT, MAX_CIDS, PROTOCOL, Holders
from dfl_node.net.binding import sign_binding
from dfl_node.net.channel import Peer, PeerId
from dfl_node.net.memory import Fault, MemoryChannel, MemoryNetwork
from dfl_node.store.memory import MemoryStore, MemorySwarm

JOB = JobId(1)
REGISTRY = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
LIMIT = 1000


@cache
def account(name: str) -> Any:
    return Account.from_key(hashlib.sha256(name.encode()).digest())


class Node:
    def __init__(self, name: str, channel: MemoryChannel, store: MemoryStore, members: set[str]) -> None:
        self.address = Address(str(account(name).address))
        self.channel = channel
        self.store = store
        self._members = members
        self.holders = Holders(channel, store, self._limit)

    async def _limit(self, job: JobId, node: Address) -> int | None:
        await trio.lowlevel.checkpoint()
        return LIMIT if job == JOB and node in self._members else None

    def peer(self) -> Peer:
        return Peer(PeerId(self.channel.peer_id), self.address, (), None, self.channel.peers()[0].found_by)

    async def request(self, other: Node, body: bytes) -> bytes:
        return await self.channel.request(
            other.channel.peer_id, PROTOCOL, body, max_reply_bytes=len(KEPT), timeout_s=60
        )


Story = Callable[[dict[str, Node], MemoryNetwork, trio.Nursery], Awaitable[None]]


def play(story: Story, names: str = "abcs") -> None:
    """Nodes that all know one another; "s" is a stranger to the job, the others are its members."""

    async def main() -> None:
        network, swarm, nodes = MemoryNetwork(), MemorySwarm(), dict[str, Node]()
        members = {str(account(name).address) for name in names if name != "s"}
        async with AsyncExitStack() as stack:
            for name in names:
                key = hashlib.sha256(f"key of {name}".encode()).digest()
                binding = sign_binding(account(name), peer_key=key, chain_id=1, registry=REGISTRY)
                channel = await stack.enter_async_context(network.open_channel(binding))
                for other in nodes.values():
                    await channel.connect(other.channel.multiaddrs[0])
                nodes[name] = Node(name, channel, swarm.store(channel.peer_id), members)
            async with trio.open_nursery() as nursery:
                with trio.fail_after(3600):
                    await story(nodes, network, nursery)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def others(nodes: dict[str, Node]) -> list[Address]:
    return [node.address for name, node in nodes.items() if name != "a"]


def body(job: int, *cids: Cid) -> bytes:
    return codec.encode({"job": job, "cids": list(cids)})


def test_a_member_that_is_asked_has_the_file_afterwards() -> None:
    async def story(nodes: dict[str, Node], network: MemoryNetwork, nursery: trio.Nursery) -> None:
        a, b = nodes["a"], nodes["b"]
        one, two = await a.store.put(b"model"), await a.store.put(b"update")
        assert await a.holders.ask(nursery, JOB, [one, two], [b.address]) == 1
        assert await b.store.has(one)
        assert await b.store.has(two)
        assert not await nodes["c"].store.has(one)

    play(story)


def test_a_member_whose_disk_is_full_does_not_say_that_it_keeps_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(nodes: dict[str, Node], network: MemoryNetwork, nursery: trio.Nursery) -> None:
        a, b = nodes["a"], nodes["b"]
        cid = await a.store.put(b"model")

        async def fetch(*_: object, **__: object) -> bytes:
            return b"model"  # as `LocalStore.get` when what it fetched cannot be written

        monkeypatch.setattr(b.store, "get", fetch)
        assert await a.holders.ask(nursery, JOB, [cid], [b.address]) == 0

    play(story)


def test_asking_returns_with_the_first_and_the_rest_go_on_fetching() -> None:
    async def story(nodes: dict[str, Node], network: MemoryNetwork, nursery: trio.Nursery) -> None:
        a, b, c = nodes["a"], nodes["b"], nodes["c"]
        network.inject(Fault.DELAY, a.channel.peer_id, c.channel.peer_id, delay_s=3)
        cid = await a.store.put(b"model")
        began = trio.current_time()
        assert await a.holders.ask(nursery, JOB, [cid], [b.address, c.address], wanted=1) == 1
        assert trio.current_time() - began < 1
        assert not await c.store.has(cid)
        await trio.sleep(4)
        assert await c.store.has(cid)

    play(story)


def test_asking_gives_up_after_its_patience_with_those_who_answered_by_then() -> None:
    async def story(nodes: dict[str, Node], network: MemoryNetwork, nursery: trio.Nursery) -> None:
        a, b, c = nodes["a"], nodes["b"], nodes["c"]
        network.inject(Fault.DROP, a.channel.peer_id, c.channel.peer_id)
        cid = await a.store.put(b"model")
        began = trio.current_time()
        kept = await a.holders.ask(nursery, JOB, [cid], [b.address, c.address], wanted=2, patience_s=5)
        assert (kept, trio.current_time() - began) == (1, 5)

    play(story)


def test_asking_does_not_wait_when_all_have_refused_or_nobody_is_there() -> None:
    async def story(nodes: dict[str, Node], network: MemoryNetwork, nursery: trio.Nursery) -> None:
        a, s = nodes["a"], nodes["s"]
        began = trio.current_time()
        too_large = await s.store.put(bytes(LIMIT + 1))
        assert await a.holders.ask(nursery, JOB, [too_large], others(nodes)) == 0
        assert await a.holders.ask(nursery, JOB, [too_large], []) == 0
        assert await a.holders.ask(nursery, JOB, [too_large], [a.address]) == 0
        assert trio.current_time() - began < 1

    play(story)


def test_more_holders_than_there_are_members_are_not_waited_for() -> None:
    async def story(nodes: dict[str, Node], network: MemoryNetwork, nursery: trio.Nursery) -> None:
        a = nodes["a"]
        cid = await a.store.put(b"model")
        began = trio.current_time()
        members = [nodes["b"].address, nodes["c"].address]
        assert await a.holders.ask(nursery, JOB, [cid], members, wanted=9) == 2
        assert trio.current_time() - began < 1

    play(story)


@pytest.mark.parametrize("job", [1, 2, 2**63], ids=["stranger", "other job", "no job"])
def test_a_file_is_held_for_members_of_our_jobs_only(job: int) -> None:
    async def story(nodes: dict[str, Node], network: MemoryNetwork, nursery: trio.Nursery) -> None:
        asker = nodes["s"] if job == JOB else nodes["a"]
        cid = await asker.store.put(b"a stranger's film")
        with pytest.raises(PeerUnreachable, match="PeerMisbehaved"):
            await asker.request(nodes["b"], body(job, cid))
        assert not await nodes["b"].store.has(cid)

    play(story)


CID = Cid.of(b"x", 0x70)
GARBAGE = {
    "nothing": b"",
    "not CBOR": b"\xff" * 10,
    "a number": codec.encode(1),
    "a list": codec.encode([1, []]),
    "a field too few": codec.encode({"job": 1}),
    "a field too many": codec.encode({"job": 1, "cids": [CID], "pin": True}),
    "no file": codec.encode({"job": 1, "cids": []}),
    "too many files": codec.encode({"job": 1, "cids": [CID] * (MAX_CIDS + 1)}),
    "a file by its name": codec.encode({"job": 1, "cids": [str(CID)]}),
    "a job that is a bool": codec.encode({"job": True, "cids": [CID]}),
    "a job that is a text": codec.encode({"job": "1", "cids": [CID]}),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_refused_as_the_peers_fault(garbage: bytes) -> None:
    async def story(nodes: dict[str, Node], network: MemoryNetwork, nursery: trio.Nursery) -> None:
        with pytest.raises(PeerMisbehaved, match="asks to hold nonsense"):
            await nodes["b"].holders._on_request(nodes["a"].peer(), garbage)
        with pytest.raises(PeerUnreachable, match="hung up"):
            await nodes["a"].request(nodes["b"], garbage)

    play(story)


def test_a_request_longer_than_any_sound_one_is_not_read() -> None:
    async def story(nodes: dict[str, Node], network: MemoryNetwork, nursery: trio.Nursery) -> None:
        with pytest.raises(PeerUnreachable, match="hung up"):
            await nodes["a"].request(nodes["b"], bytes(1 << 20))

    play(story)


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_a_file_larger_than_the_job_allows_is_not_held(size: int) -> None:
    async def story(nodes: dict[str, Node], network: MemoryNetwork, nursery: trio.Nursery) -> None:
        a, b = nodes["a"], nodes["b"]
        cid = await a.store.put(bytes(size))
        kept = await a.holders.ask(nursery, JOB, [cid], [b.address])
        assert bool(kept) is await b.store.has(cid) is (size <= LIMIT)

    play(story)


def test_a_file_that_nobody_delivers_is_not_said_to_be_held() -> None:
    async def story(nodes: dict[str, Node], network: MemoryNetwork, nursery: trio.Nursery) -> None:
        a, b = nodes["a"], nodes["b"]
        began = trio.current_time()
        with pytest.raises(PeerUnreachable, match="hung up"):
            await a.request(b, body(JOB, Cid.of(b"never stored", 0x70)))
        assert trio.current_time() - began == pytest.approx(FETCH_S, abs=1)

    play(story)
