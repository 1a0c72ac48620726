"""How long each round took for this node, and what it sent."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from dfl_ledger.errors import StoreUnavailable
from dfl_ledger.records import JobId, JobState, Phase
from dfl_node.parts import Parts

log = structlog.get_logger(__name__)


class RoundMeter:
    """Keeps when each round opened and closed for this node, and what it sent meanwhile."""

    def __init__(
        self, job: JobId, parts: Parts, bytes_sent: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        self._job, self._journal = job, parts.journal
        self._bytes_sent, self._clock = bytes_sent, clock
        self._round = 0
        self._bytes_at_open = 0

    def see(self, job: JobState) -> None:
        under_way = job.round if job.phase in (Phase.COMMIT, Phase.REVEAL, Phase.AGGREGATE) else 0
        if under_way == self._round:
            return
        try:
            self._note(under_way)
        except StoreUnavailable as full:  # a statistic: for want of it nobody need lose sight of the chain
            log.warning("round not measured", job=self._job, why=str(full))

    def _note(self, under_way: int) -> None:
        now, sent = self._clock(), self._bytes_sent()
        if self._round:
            self._journal.round_closed(self._job, self._round, now, sent - self._bytes_at_open)
        if under_way:
            self._journal.round_opened(self._job, under_way, now)
        self._round, self._bytes_at_open = under_way, sent
