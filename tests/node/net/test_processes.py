"""Nodes in processes of their own: killed, restarted, ended."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from dfl_ledger.errors import PeerUnreachable
from dfl_node.net.channel import FoundBy
from dfl_node.net.config import NetLimits
from dfl_node.net.libp2p_channel import open_channel
from tests.conformance.channel import ECHO, PATIENCE_S, eventually
from tests.node.net.support import config_of

REPOSITORY = Path(__file__).parents[3]


class Node:
    """One such process and what it says."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._unread = b""

    async def says(self) -> dict[str, Any]:
        """Its next line."""
        output = self.process.stdout
        assert output is not None
        with trio.fail_after(3 * PATIENCE_S):
            while b"\n" not in self._unread:
                more = await output.receive_some(4096)
                assert more, "the process ended"
                self._unread += more
        line, self._unread = self._unread.split(b"\n", 1)
        said: dict[str, Any] = json.loads(line)
        return said


@asynccontextmanager
async def node(number: int, *, port: int = 0, boot: str = "") -> AsyncIterator[Node]:
    command = [sys.executable, "-m", "tests.node.net.node_process", str(number), str(port)]
    process = await trio.lowlevel.open_process(
        command + ([boot] if boot else []),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
    )
    try:
        yield Node(process)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def test_a_killed_peer_disappears_and_a_restarted_boot_node_is_found_again() -> None:
    async def story() -> None:
        limits = NetLimits(reconnect_min_s=0.1, reconnect_max_s=0.4)
        async with node(9_001) as first:
            address = (await first.says())["addr"]
            async with open_channel(config_of(bootnodes=(address,), limits=limits)) as channel:
                await eventually(lambda: len(channel.peers()) == 1)
                peer = channel.peers()[0]
                assert peer.found_by is FoundBy.BOOT
                assert await channel.request(
                    peer.peer_id, ECHO, b"x", max_reply_bytes=9, timeout_s=PATIENCE_S
                )
                first.process.kill()
                await first.process.wait()
                await eventually(lambda: channel.peers() == (), within_s=1.5)
                with pytest.raises(PeerUnreachable):
                    await channel.request(peer.peer_id, ECHO, b"x", max_reply_bytes=9, timeout_s=1.0)

                port = int(address.split("/")[4])
                async with node(9_001, port=port) as again:
                    assert (await again.says())["addr"] == address
                    await eventually(lambda: len(channel.peers()) == 1, within_s=PATIENCE_S)
                    # Gossip and the DHT find it again too, not only requests.
                    reply = await channel.request(
                        peer.peer_id, ECHO, b"back", max_reply_bytes=9, timeout_s=PATIENCE_S
                    )
                    assert reply == b"back"

    trio.run(story)


def test_a_node_ends_at_once_and_is_small() -> None:
    async def story() -> None:
        async with node(9_002) as one, open_channel(config_of()) as channel:
            said = await one.says()
            await channel.connect(said["addr"])
            said = await one.says()
            assert said["peers"] == [channel.peer_id]
            assert not said["torch"]
            assert said["resident_bytes"] < 180 << 20
            started = trio.current_time()
            assert one.process.stdin is not None
            await one.process.stdin.aclose()
            with trio.fail_after(2.0):
                await one.process.wait()
            assert one.process.returncode == 0
            assert trio.current_time() - started < 2.0
            await eventually(lambda: channel.peers() == (), within_s=1.0)

    trio.run(story)


def test_a_channel_with_peers_closes_within_a_second_and_leaves_no_task_behind() -> None:
    async def story() -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        async with open_channel(config_of()) as one:
            async with open_channel(config_of()) as two, open_channel(config_of()) as three:
                for other in (two, three):
                    await other.connect(one.multiaddrs[0], FoundBy.DHT)
                await eventually(lambda: len(three.peers()) == 2)
                started = trio.current_time()
                opened = trio.lowlevel.current_statistics().tasks_living
            assert trio.current_time() - started < 2.0  # two channels, one after the other
            assert trio.lowlevel.current_statistics().tasks_living < opened
        await eventually(lambda: trio.lowlevel.current_statistics().tasks_living <= before)

    trio.run(story)


def test_errors_come_out_of_an_open_channel_as_they_are() -> None:
    class Failure(Exception):
        pass

    async def story() -> None:
        async with open_channel(config_of()):
            raise Failure

    with pytest.raises(Failure):
        trio.run(story)
