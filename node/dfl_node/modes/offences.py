"""What costs a bond, as the ledger's rows show it to everybody. Pure.

An honest node never asks for a bond on less than the word of more than half of those who judged: a median of
two votes is the word of one of them, who may be the liar.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator

from dfl_ledger.facts import RoundFacts
from dfl_ledger.median import is_outlier
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
            if is_outlier(scores[subject], facts.median(subject, node)) and _stands_alone(
                facts, seat, subject, node
            ):
                yield Offence(Wrong.OUTLIER, facts.ballots[seat].evaluator, facts.round, seat, subject)
                break


def _stands_alone(facts: RoundFacts, seat: int, subject: int, node: Address) -> bool:
    """True if more than half of the weight that judged says something else, as is_outlier has it."""
    own = facts.scores[seat][subject]
    voters = [
        (scores[subject], facts.ballots[at].weight)
        for at, scores in facts.scores.items()
        if facts.ballots[at].evaluator != node
    ]
    against = sum(weight for score, weight in voters if is_outlier(own, score))
    return 2 * against > sum(weight for _, weight in voters)


def _is_false(facts: RoundFacts, publisher: Address) -> bool:
    """True if more than half of the weight, its publisher's aside, says that the model is another one."""
    subject = facts.subjects - 1
    voters = [
        (scores[subject], facts.ballots[at].weight)
        for at, scores in facts.scores.items()
        if facts.ballots[at].evaluator != publisher
    ]
    against = sum(weight for verdict, weight in voters if verdict < 0)
    return 2 * against > sum(weight for _, weight in voters)
