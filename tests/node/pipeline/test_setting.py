"""Where a stage's files go: to this node's store, and to a member that answers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import trio

from dfl_ledger.records import Address, Cid, JobId
from dfl_node.modes.pipeline.plan import Patience, RunId
from dfl_node.modes.pipeline.setting import Setting

ME, *OTHERS = (Address("0x" + digit * 40) for digit in "1234")
PARENT = Cid.of(b"parent", 0x70)


def test_a_member_that_does_not_keep_a_file_is_asked_last_the_next_time() -> None:
    asked: list[Address] = []
    silent = {OTHERS[0]}

    async def ask(_: trio.Nursery, job: JobId, cids: Sequence[Cid], members: Sequence[Address]) -> int:
        asked.extend(members)
        return sum(node not in silent for node in members)

    async def put(file: bytes) -> Cid:
        return Cid.of(file, 0x70)

    async def story() -> None:
        parts: Any = SimpleNamespace(
            store=SimpleNamespace(put=put),
            holders=SimpleNamespace(ask=ask),
            lines=SimpleNamespace(connected=lambda: frozenset(OTHERS)),
        )
        context: Any = SimpleNamespace(me=ME, parts=parts)
        async with trio.open_nursery() as nursery:
            setting = Setting(
                context, RunId(JobId(1), 1, PARENT), (ME, *OTHERS), 100.0, Patience(), 0.0, nursery
            )
            for file in (b"step 10", b"step 20"):
                assert await setting.keep(file) == Cid.of(file, 0x70)
            silent.clear()
            silent.update(OTHERS[1:])  # and now the first is back, and alone
            await setting.keep(b"step 30")
            await setting.keep(b"step 40")

    trio.run(story)
    first, second, third = OTHERS
    assert asked[:3] == [first, second, second]
    assert asked[3:] == [second, third, first, first]
