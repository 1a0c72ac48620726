"""Has the chain take the bonds that offences cost, one node after another in line."""

from __future__ import annotations

import structlog

from dfl_ledger import vectors
from dfl_ledger.errors import DflError, Reverted
from dfl_ledger.facts import RoundFacts
from dfl_ledger.records import Address, JobId, JobState, JobTerms, PanelPhase
from dfl_ledger.rows_rewards import PanelRow, SeatRow
from dfl_node.modes import offences
from dfl_node.parts import Parts
from dfl_node.rounds.vocabulary import Charge, Offence, Wrong

log = structlog.get_logger(__name__)

SPREAD_S = 4.0  # between one reporter's turn and the next one's
NOT_YET = frozenset({"NotDone", "AppealOpen"})  # what is refused for any other reason will always be
FALSE_MODEL = "wrong model published"  # as the ledger's rows call it


class Reporter:
    """Finds what nobody has reported yet in one job."""

    def __init__(self, job: JobId, parts: Parts) -> None:
        self._job = job
        self._parts = parts
        self._clean: set[int] = set()  # rounds whose panel is done and owes nothing
        self._seen: dict[Offence, float] = {}  # when we first saw it, Unix seconds
        self._refused: set[Offence] = set()
        self._checked: tuple[int, int] | None = None  # (round, phase) in which stakes were looked at
        self._low: tuple[Offence, ...] = ()

    # -- what is due ----------------------------------------------------------------------------------
    def charges(self, job: JobState, now: float) -> tuple[Charge, ...]:
        """Every offence that is still to be reported, and when it is our turn. Blocks."""
        found = [*self._withheld(job), *self._of_panels(job), *self._of_trials(job, now)]
        found += self._low_stakes(job)
        me, others = self._parts.ledger.address, self._others(job)
        charges = []
        for offence in found:
            if offence in self._refused or (offence.node == me and not self._helps_us(offence)):
                continue
            since = self._seen.setdefault(offence, now)
            turn = offences.rank(offence, me, others)
            charges.append(Charge(offence, since + turn * SPREAD_S))
        return tuple(charges)

    def trials_until(self, job: JobState) -> int:
        """When the last failed audit may be decided at the latest, Unix seconds; 0 if none waits."""
        found = [0]
        for row in self._parts.rows.audits(self._job) if job.terms.audits else ():
            if row.appeal_until is not None and row.upheld is None:
                jury = row.audit + 1
                appealed = row.appealed and self._parts.ledger.panel(self._job, row.round, jury).reveal_until
                found.append(max(row.appeal_until, appealed))
        return max(found)

    def _helps_us(self, offence: Offence) -> bool:
        """An appeal of ours that was heard: whoever decides it, we are let in again if the jury says so."""
        audits = self._parts.rows.audits(self._job, offence.round)
        own = (row.appealed for row in audits if row.audit == offence.subject)
        return offence.wrong is Wrong.AUDIT_ENDED and any(own)

    def _others(self, job: JobState) -> set[Address]:
        members = self._parts.rows.members(self._job, job.round)
        return {*members, job.requester}

    def _withheld(self, job: JobState) -> list[Offence]:
        if not job.terms.bond_wei:
            return []
        withheld = self._parts.rows.withheld(self._job)
        return [Offence(Wrong.REVEAL_WITHHELD, node, round_) for round_, node in withheld]

    def _of_panels(self, job: JobState) -> list[Offence]:
        if not job.terms.bond_wei:
            return []
        found = list[Offence]()
        for round_ in self._parts.rows.judged_rounds(self._job):
            if round_ in self._clean:
                continue
            try:
                due = self._of_panel(round_, job.terms)
            except DflError as behind:
                log.debug("panel not looked at", job=self._job, round=round_, why=str(behind))
                continue
            if due is None:
                continue
            if not due:
                self._clean.add(round_)
            found += due
        return found

    def _of_panel(self, round_: int, terms: JobTerms) -> list[Offence] | None:
        """None while it cannot be told."""
        rows = self._parts.rows
        state, panel = self._parts.ledger.panel(self._job, round_), rows.panel(self._job, round_)
        if state.phase is not PanelPhase.DONE or panel is None:
            return None
        shown = sum(seat.revealed_tx is not None for seat in panel.seats)
        if shown != state.revealed:
            return None  # the ledger's rows are behind the chain: nobody is charged for that
        told = rows.offences(self._job)
        denounced = any((row.round, row.kind) == (round_, FALSE_MODEL) for row in told)
        facts = rows.round_facts(self._job, round_)
        publisher, declined = rows.publisher(self._job, round_), self._declined(panel, terms)
        found = offences.of_panel(facts, panel, publisher, denounced=denounced, declined=declined)
        return found + offences.of_audits(facts, self._audited(facts))

    def _audited(self, facts: RoundFacts) -> dict[int, Address]:
        """Whose piece each audit is about, of those that nobody has been accused of yet."""
        told = self._parts.rows.audits(self._job, facts.round)
        known = {row.audit for row in told if row.appeal_until is not None}
        index_of = self._parts.ledger.audited_index
        return {
            number: facts.contributions[index_of(self._job, facts.round, number)].node
            for number in range(facts.audits)
            if number not in known
        }

    def _of_trials(self, job: JobState, now: float) -> list[Offence]:
        """Failed audits whose end is due, and jurors of appeals who showed nothing."""
        found = list[Offence]()
        for row in self._parts.rows.audits(self._job) if job.terms.audits else ():
            if row.appeal_until is None:
                continue
            end = Offence(Wrong.AUDIT_ENDED, row.node, row.round, subject=row.audit)
            if not row.appealed:
                found += [end] if row.upheld is None and now >= row.appeal_until else []
                continue
            jury = row.audit + 1
            panel, state = self._jury(row.round, jury), self._parts.ledger.panel(self._job, row.round, jury)
            shown = sum(seat.revealed_tx is not None for seat in panel)
            if state.phase is not PanelPhase.DONE or shown != state.revealed:
                continue
            if row.upheld is None:
                found.append(end)
            found += [
                Offence(Wrong.SCORES_WITHHELD, seat.evaluator, row.round, seat.seat, panel=jury)
                for seat in panel
                if seat.revealed_tx is None and seat.withheld_tx is None
            ]
        return found

    def _jury(self, round_: int, panel: int) -> tuple[SeatRow, ...]:
        found = self._parts.rows.panel(self._job, round_, panel)
        return () if found is None else found.seats

    def _declined(self, panel: PanelRow, terms: JobTerms) -> frozenset[int]:
        """Seats that nobody took, and whose evaluators need not have."""
        ledger = self._parts.ledger
        found = ledger.publication(self._job, panel.round)
        if found is None:
            return frozenset()
        asked = (found.seal_block, terms.score_window_s, terms.bond_wei)
        empty = [seat for seat in panel.seats if seat.committed_tx is None]
        return frozenset(seat.seat for seat in empty if ledger.may_decline(seat.evaluator, *asked))

    def _low_stakes(self, job: JobState) -> tuple[Offence, ...]:
        """Members with too little at stake; looked at once a phase."""
        if job.phase.terminal or not job.terms.required_stake_wei:
            return ()
        if self._checked != (job.round, int(job.phase)):
            self._checked = (job.round, int(job.phase))
            least = job.terms.required_stake_wei
            members = set(self._parts.rows.members(self._job, job.round))
            self._low = tuple(
                Offence(Wrong.LOW_STAKE, row.node, job.round)
                for row in self._parts.rows.nodes()
                if row.node in members and (row.unbond_at or row.stake_wei < least)
            )
        return self._low

    # -- reporting ------------------------------------------------------------------------------------
    def report(self, offence: Offence) -> None:
        """Raises Reverted if the chain says no; then it is not asked again. Blocks."""
        try:
            self._report(offence)
        except Reverted as no:
            if no.error not in NOT_YET:
                self._refused.add(offence)
            raise
        self._refused.add(offence)  # until its event is here it must not be sent twice
        log.warning(
            "reported", job=self._job, round=offence.round, node=offence.node, why=offence.wrong.value
        )

    def _report(self, offence: Offence) -> None:
        ledger, rows, job, round_ = self._parts.ledger, self._parts.rows, self._job, offence.round
        match offence.wrong:
            case Wrong.REVEAL_WITHHELD:
                ledger.punish(job, round_, offence.node)
            case Wrong.SCORES_WITHHELD:
                ledger.punish_seat(job, round_, offence.panel, offence.seat)
            case Wrong.OUTLIER:
                facts = rows.round_facts(job, round_)
                contributed = offence.subject < len(facts.contributions)
                node = facts.contributions[offence.subject].node if contributed else None
                words = facts.words(offence.subject, *(() if node is None else (node,)))
                ledger.penalize(job, round_, offence.seat, offence.subject, node, words)
            case Wrong.FALSE_MODEL:
                facts = rows.round_facts(job, round_)
                words = facts.words(facts.subjects - 1, offence.node)
                ledger.denounce(job, round_, offence.node, words)
            case Wrong.LOW_STAKE:
                ledger.expel(job, offence.node)
            case Wrong.AUDIT_FAILED:
                facts = rows.round_facts(job, round_)
                first = len(facts.contributions) + len(facts.datasets)
                words = facts.words(first + offence.subject, offence.node)
                ledger.accuse(job, round_, offence.subject, offence.node, words)
            case Wrong.AUDIT_ENDED:
                jury = self._jury(round_, offence.subject + 1)
                said = [(s.seat, s.vector) for s in jury if s.evaluator != offence.node]
                words = tuple(vectors.word_of(seat, own, 0) for seat, own in said if own is not None)
                ledger.decide(job, round_, offence.subject, words)
