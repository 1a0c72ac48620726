"""Both channels live through the conformance stories."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from tests.conformance import channel, channel_streams
from tests.conformance.channel import World
from tests.node.net.support import Libp2pWorld, MemoryWorld

Check = Callable[[World], Awaitable[None]]
CHECKS = (*channel.CHECKS, *channel_streams.CHECKS)


def story(check: Check) -> str:
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", CHECKS, ids=story)
def test_memory(check: Check) -> None:
    trio.run(check, MemoryWorld(), clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("check", CHECKS, ids=story)
def test_libp2p(check: Check) -> None:
    trio.run(check, Libp2pWorld())
