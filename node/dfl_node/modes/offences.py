"""What costs a bond, as the ledger's rows show it to everybody. Pure.

Nobody loses a bond on less than the word of more than half of those who judged, by stake: the lower median of
two votes is the word of one of them, who may be the liar. So the ledger asks for both medians.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping

from dfl_ledger.facts import RoundFacts
from dfl_ledger.records import NOBODY, Address
from dfl_ledger.rows_rewards import PanelRow
from dfl_node.rounds.vocabulary import Offence, Wrong


def of_panel(
    facts: RoundFacts,
    panel: PanelRow,
    publisher: Address | None,
    *,
    denounced: bool,
    declined: Collection[int],
) -> list[Offence]:
    """What is still to be reported of a round whose panel is done. `declined`: seats that may stay empty."""
    found = [
        Offence(Wrong.SCORES_WITHHELD, seat.evaluator, facts.round, seat.seat)
        for seat in panel.seats
        if seat.revealed_tx is None and seat.withheld_tx is None and seat.seat not in declined
    ]
    penalized = {seat.seat for seat in panel.seats if seat.penalized_tx is not None}
    found += [offence for offence in _outliers(facts) if offence.seat not in penalized]
    if publisher is not None and not denounced and _is_false(facts, publisher):
        found.append(Offence(Wrong.FALSE_MODEL, publisher, facts.round))
    return found


def of_audits(facts: RoundFacts, audited: Mapping[int, Address]) -> list[Offence]:
    """Audits that failed and that nobody has brought before the chain. `audited`: whose piece each of those
    is about that were not."""
    first = len(facts.contributions) + len(facts.datasets)
    return [
        Offence(Wrong.AUDIT_FAILED, node, facts.round, subject=number)
        for number, node in audited.items()
        if facts.both_medians(first + number, node).upper < 0
    ]


def rank(offence: Offence, me: Address, others: Collection[Address]) -> int:
    """Our place in the queue of those who report it, so that not everybody pays for the same call."""

    def lot(node: Address) -> bytes:
        name = f"{offence.wrong.name}/{offence.round}/{offence.node}/{offence.seat}/{node}"
        return hashlib.sha256(name.encode()).digest()

    queue = sorted(set(others) - {offence.node}, key=lot)
    return queue.index(me) if me in queue else len(queue)


def _outliers(facts: RoundFacts) -> Iterator[Offence]:
    """One a seat: more of them cost no more."""
    nodes = [piece.node for piece in facts.contributions] + [NOBODY] * len(facts.datasets)
    for seat, scores in facts.scores.items():
        for subject, node in enumerate(nodes):
            if facts.ballots[seat].evaluator == node:
                continue
            if facts.both_medians(subject, node).are_beyond(scores[subject]):
                yield Offence(Wrong.OUTLIER, facts.ballots[seat].evaluator, facts.round, seat, subject)
                break


def _is_false(facts: RoundFacts, publisher: Address) -> bool:
    """True if more than half of the weight, its publisher's aside, says that the model is another one."""
    return facts.both_medians(facts.subjects - 1, publisher).upper < 0
