"""Every settlement's evidence, fetched and checked: what turns a root on chain into rows, and into claims.

What nobody delivers is derived: the lines of a right settlement follow from the chain alone. Only why a
piece was refused, and by which method it was measured, are then not known.
"""

from __future__ import annotations

import math

import structlog
import trio

from dfl_ledger.errors import BlobNotFound, CidMismatch, DflError, VerificationFailed
from dfl_ledger.evidence import MAX_EVIDENCE_BYTES, Evidence
from dfl_ledger.records import Cid, Settlement
from dfl_node.parts import Parts

log = structlog.get_logger(__name__)

DERIVED = "derived"  # the method, where it is not known
MIN_PAUSE_S, MAX_PAUSE_S = 10.0, 600.0


class EvidenceKeeper:
    """Reads the evidence of settlements that the ledger's rows still lack, until all have theirs."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._settled = trio.Event()
        self._refused: set[Cid] = set()  # does not support its settlement: not looked at again

    def notify(self) -> None:
        """A round was settled."""
        self._settled.set()

    async def run(self) -> None:
        """Until cancelled. What cannot be fetched is tried again, ever less often."""
        pause_s = MIN_PAUSE_S
        while True:
            self._settled = trio.Event()
            left = await self._read_all()
            with trio.move_on_after(pause_s if left else math.inf) as waiting:
                await self._settled.wait()
            pause_s = min(MAX_PAUSE_S, pause_s * 2) if waiting.cancelled_caught else MIN_PAUSE_S

    async def _read_all(self) -> bool:
        """True if some evidence is still to be had."""
        try:
            missing = await trio.to_thread.run_sync(self._parts.index.missing_evidence)
        except DflError as failure:
            log.warning("evidence not looked for", why=str(failure))
            return True
        left = False

        async def read(settlement: Settlement) -> None:
            nonlocal left
            left |= not await self._read(settlement)

        async with trio.open_nursery() as nursery:
            for settlement in missing:
                if settlement.evidence not in self._refused:
                    nursery.start_soon(read, settlement)
        return left

    async def _read(self, settlement: Settlement) -> bool:
        """False if it may come later."""
        try:
            data = await self._parts.store.get(settlement.evidence, max_bytes=MAX_EVIDENCE_BYTES)
            evidence = Evidence.decode(data)
            await trio.to_thread.run_sync(self._parts.index.add_evidence, evidence, settlement.evidence)
        except DflError as bad:
            if isinstance(bad, BlobNotFound) and await self._derived(settlement):
                return True
            wrong = isinstance(bad, VerificationFailed) and not isinstance(bad, CidMismatch)
            if wrong:
                self._refused.add(settlement.evidence)
            log.warning(
                "settlement with wrong evidence" if wrong else "settlement without evidence yet",
                job=settlement.job,
                round=settlement.round,
                evidence=str(settlement.evidence),
                why=str(bad),
            )
            return wrong
        return True

    async def _derived(self, settlement: Settlement) -> bool:
        """True if the settlement says what follows from the chain, and its lines are in the rows now."""
        try:
            return await trio.to_thread.run_sync(self._derive, settlement)
        except (DflError, ValueError) as bad:
            log.debug("evidence not derived", job=settlement.job, round=settlement.round, why=str(bad))
            return False

    def _derive(self, settlement: Settlement) -> bool:
        rows, job, round_ = self._parts.rows, settlement.job, settlement.round
        facts, before = rows.round_facts(job, round_), rows.lines_before(job, round_)
        evidence = Evidence.of(facts, before, validation=None, method=DERIVED)
        if evidence.settlement(settlement.evidence) != settlement:
            return False
        return self._parts.index.add_evidence(evidence, settlement.evidence)
