"""A node in a process of its own: `python -m tests.node.net.node_process NUMBER PORT [BOOT]`.

Prints one JSON line when it listens and one whenever a peer comes or goes. Ends when its input is closed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import structlog
import trio

from dfl_node.net.config import NetConfig
from dfl_node.net.libp2p_channel import Libp2pChannel, open_channel
from tests.conformance.channel import ECHO, echo
from tests.conformance.channel_streams import TALK, repeat
from tests.node.net.support import config_of


def say(channel: Libp2pChannel) -> None:
    line = {
        "addr": channel.multiaddrs[0],
        "peers": sorted(peer.peer_id for peer in channel.peers()),
        "resident_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * 4096,
        "torch": "torch" in sys.modules or "numpy" in sys.modules,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def main(config: NetConfig) -> None:
    async with open_channel(config) as channel, trio.open_nursery() as nursery:
        channel.handle(ECHO, echo, max_request_bytes=1 << 20)
        channel.handle_streams(TALK, repeat, max_message_bytes=1 << 20)

        async def report() -> None:
            while True:
                say(channel)
                await channel.changed()

        nursery.start_soon(report)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    number, port, *boot = sys.argv[1:]
    trio.run(main, config_of(int(number), listen=(f"/ip4/127.0.0.1/tcp/{port}",), bootnodes=tuple(boot)))
