"""A look at a chained job is several calls, and hops do not wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dfl_ledger.records import Address, Cid, JobState, Lease
from dfl_node.jobspec import JobSpec, parse
from dfl_node.modes.job import JobPart
from tests.node.modes.chains import CHAINED, LEASE_S
from tests.node.test_rounds_chained import ME, OURS

OTHER = Address("0x" + "33" * 20)
THEIR_HOP, OUR_HOP = Cid.of(b"their hop", 0x70), Cid.of(b"our hop", 0x70)
UNTIL = 2_000_000_000
JOB = OURS.job
# Theirs is the lease, then ours, then theirs again; each hop becomes the candidate.
MOMENTS = (
    (replace(JOB, candidate=None), Lease(OTHER, 0, UNTIL)),
    (replace(JOB, candidate=THEIR_HOP), Lease(ME, 1, UNTIL)),
    (replace(JOB, candidate=OUR_HOP), Lease(OTHER, 2, UNTIL)),
)


class MovingLedger:
    """Every call is answered a little later: as the chain is at that time."""

    address = ME

    def __init__(self, story: Sequence[tuple[JobState, Lease]]) -> None:
        self._story = list(story)

    def job(self, _: int) -> JobState:
        return self._next()[0]

    def lease(self, _: int) -> Lease:
        return self._next()[1]

    def active_round(self, *_: object) -> int:
        self._next()
        return JOB.round

    def committed(self, *_: object) -> bool:
        self._next()
        return False

    def now(self) -> int:
        return 0

    def _next(self) -> tuple[JobState, Lease]:
        return self._story.pop(0) if len(self._story) > 1 else self._story[0]


def spec() -> JobSpec:
    text = CHAINED.format(rounds=5, min_nodes=3, quorum=2, settle_s=60, lease_s=LEASE_S, personal="[]")
    return parse(text)


@pytest.mark.parametrize("their_calls", range(6))
@pytest.mark.parametrize("our_calls", range(8))
def test_a_lease_that_is_ours_comes_with_the_hop_that_gave_it_to_us(their_calls: int, our_calls: int) -> None:
    """Else we would go on from an older model, and be refused for it."""
    first, ours, last = MOMENTS
    ledger = MovingLedger([first] * their_calls + [ours] * our_calls + [last])
    nothing = ("unsettled_rounds", "open_settlements", "withheld", "judged_rounds", "members", "nodes")
    rows: Any = SimpleNamespace(open_jobs=lambda: (JOB.job,), **{name: lambda *_: () for name in nothing})
    journal = SimpleNamespace(round_opened=lambda *_: None)
    parts: Any = SimpleNamespace(
        ledger=ledger, rows=rows, journal=journal, trains=True, data={"digits": None}, share_rows=False
    )
    part = JobPart(JOB.job, spec(), parts, bytes_sent=lambda: 0, clock=lambda: 0.0)
    seen = part._look_sync()
    assert seen.mine.lease_until is None or seen.job.candidate == THEIR_HOP
    if their_calls == 0 and our_calls == 7:  # nothing moves
        assert seen.mine.lease_until == UNTIL
