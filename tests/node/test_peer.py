"""What a node does beside its jobs."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from dfl_node import datadir, peer


def test_a_full_disk_costs_the_list_of_peers_seen_and_not_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FakeOperator:
        def peer_list(self) -> list[dict[str, Any]]:
            return [{"peer_id": "a"}]

    disk_is_full = True

    def write(folder: Path, peers: list[dict[str, Any]]) -> None:
        if disk_is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept(folder, peers)

    kept = datadir.write_peers
    monkeypatch.setattr(datadir, "write_peers", write)
    operator: Any = FakeOperator()

    async def story() -> None:
        nonlocal disk_is_full
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer._remember_peers, tmp_path, operator)
            await trio.sleep(3 * peer.PEERS_FILE_S)
            disk_is_full = False
            await trio.sleep(2 * peer.PEERS_FILE_S)
            nursery.cancel_scope.cancel()

    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0.05))
    assert datadir.last_peers(tmp_path) == [{"peer_id": "a"}]
