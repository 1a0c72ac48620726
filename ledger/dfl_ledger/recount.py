"""A settlement counted again from what the chain has of its round, by whoever was not there. Pure.

Contributions, score vectors and payees are the chain's; medians follow from the vectors, weights from the
medians, rewards from the weights, sums from the rewards, and both roots from the lines. Whatever a settler
wrote instead shows in the first of these that it changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dfl_ledger import rewards
from dfl_ledger.evidence import Evidence, differences
from dfl_ledger.facts import RoundFacts
from dfl_ledger.median import is_outlier
from dfl_ledger.merkle import RewardTree, ScoreTree
from dfl_ledger.records import NOBODY, REFUSED, Address, Leaf, Settlement


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. Where it does not hold, `detail` names the first line that is wrong."""

    what: str
    holds: bool
    detail: str


def recount(
    settled: Settlement, facts: RoundFacts, previous: Sequence[Leaf], stated: Evidence | None
) -> Iterator[Finding]:
    """In the order in which one follows from the other; ends with the first that does not hold.

    `previous` are the lines of the settlement before, empty before the first. `stated` is the settlement's
    evidence, None if it is not to be had: then no line can be named, and the roots alone tell.
    Raises VerificationFailed if the vectors are not of this round.
    """
    for finding in _findings(settled, facts, previous, stated):
        yield finding
        if not finding.holds:
            return


def _findings(
    settled: Settlement, facts: RoundFacts, previous: Sequence[Leaf], stated: Evidence | None
) -> Iterator[Finding]:
    n, m = len(facts.contributions), len(facts.datasets)
    if stated is not None:
        yield _finding(
            "chain",
            next(differences(stated.facts, facts), ""),
            f"{n} contributions, {m} data sets, {len(facts.ballots)} seats and {len(facts.payees)} payees "
            "are its own",
        )
        yield _finding(
            "medians", _wrong_median(stated, facts), f"{n + m} of {len(facts.scores)} revealed vectors"
        )
    scores = ScoreTree(rewards.score_leaves(n, facts.medians))
    yield _finding(
        "score tree",
        _apart(
            (settled.score_root, f"weights {settled.weights:#x}"), (scores.root, f"weights {scores.total:#x}")
        ),
        f"{n + m} lines give root 0x{scores.root.hex()}",
    )
    try:
        due = rewards.leaves(facts, previous)
    except ValueError as bad:
        yield Finding("cumulative", False, str(bad))
        return
    if stated is not None:
        paid_wei = sum(leaf.reward_wei for leaf in due)
        yield _finding(
            "rewards",
            _wrong_reward(stated.leaves, due),
            f"{paid_wei} of {facts.shares.round_budget_wei} wei follow from the scores",
        )
        yield _finding(
            "cumulative",
            _wrong_sum(stated.leaves, due),
            f"{len(due)} payees go on from {'the settlement before' if previous else '0'}",
        )
    tree = RewardTree(due)
    yield _finding(
        "reward tree",
        _apart((settled.root, f"{settled.total_wei} wei"), (tree.root, f"{tree.total_wei} wei")),
        f"{len(due)} lines give root 0x{tree.root.hex()} and sum to {tree.total_wei} wei",
    )


def _finding(what: str, wrong: str, right: str) -> Finding:
    return Finding(what, not wrong, wrong or right)


def _wrong_median(stated: Evidence, facts: RoundFacts) -> str:
    said = [entry.score for entry in stated.entries] + [dataset.worth for dataset in stated.datasets]
    for subject, (score, median) in enumerate(zip(said, facts.medians, strict=True)):
        if score != median:
            return f"{name_of(facts, subject)} got {shown(score)}, the panel's median is {shown(median)}"
    return ""


def _wrong_reward(stated: Sequence[Leaf], due: Sequence[Leaf]) -> str:
    for own, leaf in zip(stated, due, strict=True):
        if (own.score, own.reward_wei) != (leaf.score, leaf.reward_wei):
            return (
                f"{payee_name(leaf)} is due {leaf.reward_wei} wei for a score of {shown(leaf.score)}, not "
                f"{own.reward_wei} wei for {shown(own.score)}"
            )
    return ""


def _wrong_sum(stated: Sequence[Leaf], due: Sequence[Leaf]) -> str:
    for own, leaf in zip(stated, due, strict=True):
        if own.cumulative_wei != leaf.cumulative_wei:
            who = payee_name(leaf)
            return f"{who} has earned {leaf.cumulative_wei} wei in all, not {own.cumulative_wei} wei"
    return ""


def _apart(settled: tuple[bytes, str], due: tuple[bytes, str]) -> str:
    """What is wrong with a root and the sum that goes with it."""
    if settled == due:
        return ""
    (root, total), (right, sum_) = settled, due
    return f"settled is root 0x{root.hex()}, {total}; from the chain follows root 0x{right.hex()}, {sum_}"


# -- names ------------------------------------------------------------------------------------------------
def name_of(facts: RoundFacts, subject: int) -> str:
    """Whose score it is."""
    n = len(facts.contributions)
    if subject < n:
        return str(facts.contributions[subject].node)
    return f"data set {facts.datasets[subject - n]}"


def payee_name(leaf: Leaf) -> str:
    return f"asset {leaf.asset}" if leaf.asset else str(leaf.account)


def shown(score: int) -> str:
    """A score in a sentence."""
    return "refused" if score == REFUSED else f"{score}e-9"


# -- who judged otherwise -----------------------------------------------------------------------------------
def outliers(facts: RoundFacts, subject: int, measured: int) -> tuple[tuple[int, Address], ...]:
    """The seats (number, evaluator) whose score of a subject is outside the tolerance around a measurement.
    The judged itself is left out, as it is of the median."""
    judged = facts.contributions[subject].node if subject < len(facts.contributions) else NOBODY
    return tuple(
        (seat, facts.ballots[seat].evaluator)
        for seat, scores in facts.scores.items()
        if facts.ballots[seat].evaluator != judged and is_outlier(scores[subject], measured)
    )
