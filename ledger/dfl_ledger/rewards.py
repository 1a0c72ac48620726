"""What a round pays to whom: twin of contracts/libraries/Rewards.sol and Weights.sol.

Of a round's budget the data sets, the model, the algorithm and the evaluators have pots of so many basis
points each, rounded down, and compute has the rest. Who gets what of them, each division rounded down on its
own:

    contribution    compute pot * weight // all weights; if no weight is above 0, compute pot // accepted ones
    data set        data pot * weight // all weights of data sets
    model           the whole pot, if any contribution was accepted; the algorithm likewise
    evaluator       evaluator pot // seats drawn, if it showed its scores

What is left stays in escrow and goes back to the requester. A weight is a score, if positive, packed so that
the sums of a score tree add field by field:

    bits 0..111     weight in the compute pot
    bits 112..223   weight in the data pot
    bits 224..255   accepted contributions: all that were not refused
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dfl_ledger.facts import RoundFacts, Shares
from dfl_ledger.records import NOBODY, REFUSED, Leaf, Payee, ScoreLeaf

_FIELD = 2**112 - 1
_WHOLE_BPS = 10_000


@dataclass(frozen=True, slots=True)
class Pots:
    """How a round's budget is split, in wei."""

    compute_wei: int
    data_wei: int
    model_wei: int
    algorithm_wei: int
    evaluator_wei: int

    @classmethod
    def of(cls, shares: Shares) -> Pots:
        budget_wei = shares.round_budget_wei
        data, model, algorithm, evaluators = (
            budget_wei * bps // _WHOLE_BPS
            for bps in (shares.data_bps, shares.model_bps, shares.algorithm_bps, shares.evaluator_bps)
        )
        return cls(budget_wei - data - model - algorithm - evaluators, data, model, algorithm, evaluators)


# -- weights ----------------------------------------------------------------------------------------------
def contribution_weight(score: int) -> int:
    """The packed weight of a contribution."""
    return 0 if score == REFUSED else 1 << 224 | max(score, 0)


def dataset_weight(worth: int) -> int:
    """The packed weight of a data set."""
    return max(worth, 0) << 112


def compute_weight(weight: int) -> int:
    return weight & _FIELD


def data_weight(weight: int) -> int:
    return weight >> 112 & _FIELD


def accepted(weight: int) -> int:
    """How many accepted contributions a packed weight or a sum of them counts."""
    return weight >> 224


def score_leaves(contributions: int, medians: Sequence[int]) -> tuple[ScoreLeaf, ...]:
    """A round's score tree: its contributions, then its data sets."""
    return tuple(
        ScoreLeaf(score, contribution_weight(score) if subject < contributions else dataset_weight(score))
        for subject, score in enumerate(medians)
    )


# -- rewards ----------------------------------------------------------------------------------------------
def of_contribution(pot_wei: int, weight: int, weights: int) -> int:
    """`weights` is the sum of all packed weights."""
    if total := compute_weight(weights):
        return pot_wei * compute_weight(weight) // total
    return pot_wei // accepted(weights) if accepted(weight) and accepted(weights) else 0


def of_dataset(pot_wei: int, weight: int, weights: int) -> int:
    total = data_weight(weights)
    return pot_wei * data_weight(weight) // total if total else 0


def of_tool(pot_wei: int, weights: int) -> int:
    """Of the model, or of the algorithm."""
    return pot_wei if accepted(weights) else 0


def line(facts: RoundFacts, payee: Payee, score: ScoreLeaf | None, weights: int) -> tuple[int, int]:
    """A payee's (score, reward) in a round. `score` is its line of the score tree, None if it has none."""
    pots, shares = Pots.of(facts.shares), facts.shares
    own, weight = (0, 0) if score is None else (score.score, score.weight)
    if payee.asset:
        if payee.asset == shares.model_asset:
            return own, of_tool(pots.model_wei, weights)
        if payee.asset == shares.algorithm_asset:
            return own, of_tool(pots.algorithm_wei, weights)
        return own, of_dataset(pots.data_wei, weight, weights)
    reward_wei = of_contribution(pots.compute_wei, weight, weights)
    if payee.account in facts.judges:
        reward_wei += pots.evaluator_wei // len(facts.ballots)
    return own, reward_wei


def leaves(facts: RoundFacts, previous: Sequence[Leaf]) -> tuple[Leaf, ...]:
    """A round's reward tree: one line for each payee, by number.

    `previous` are the lines of the settlement before, empty if there is none. Raises ValueError if they are
    not of the same payees.
    """
    if len(previous) > len(facts.payees):
        raise ValueError(f"{len(previous)} payees were settled before, now there are {len(facts.payees)}")
    scores = score_leaves(len(facts.contributions), facts.medians)
    weights = sum(leaf.weight for leaf in scores)
    subjects = facts.subject_of
    found = []
    for number, payee in enumerate(facts.payees):
        subject = subjects.get((payee.account, payee.asset))
        score, reward_wei = line(facts, payee, None if subject is None else scores[subject], weights)
        cumulative_wei = reward_wei
        if number < len(previous):
            before = previous[number]
            if (before.account, before.asset) != (payee.account, payee.asset):
                raise ValueError(f"payee {number} was another one in the settlement before")
            cumulative_wei += before.cumulative_wei
        account = NOBODY if payee.asset else payee.account
        found.append(Leaf(account, payee.asset, score, reward_wei, cumulative_wei))
    return tuple(found)
