"""What is wrong with a settlement, as one line that shows it. Pure.

A settlement has nothing to decide: scores are the medians of vectors that the chain has, rewards follow from
them, sums from the settlement before. So whatever differs from what the chain gives is wrong, and one line of
the trees that were settled, with its siblings, is enough for the contract to see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dfl_ledger import merkle
from dfl_ledger.evidence import Evidence
from dfl_ledger.merkle import RewardTree, ScoreTree, Top
from dfl_ledger.records import NOBODY, Address, Leaf, ProofStep, ScoreLeaf, Settlement, Tree, Word

Proof = tuple[ProofStep, ...]


@dataclass(frozen=True, slots=True)
class WrongScore:
    """A line of the score tree that is not the median's."""

    subject: int
    line: ScoreLeaf
    proof: Proof
    node: Address | None  # whose contribution it is of
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class WrongReward:
    """A line of the reward tree that is another payee's, or does not follow from its score."""

    place: int
    line: Leaf
    proof: Proof
    score: ScoreLeaf | None
    score_proof: Proof


@dataclass(frozen=True, slots=True)
class WrongSum:
    """A line that does not go on from the settlement before."""

    place: int
    line: Leaf
    proof: Proof
    before: Leaf | None
    before_proof: Proof


@dataclass(frozen=True, slots=True)
class WrongNode:
    """A node that no tree with so many lines has."""

    tree: Tree
    hash: bytes
    sum: int
    proof: Proof
    preimage: bytes


Flaw = WrongScore | WrongReward | WrongSum | WrongNode


def says(evidence: Evidence, settlement: Settlement) -> bool:
    """True if the roots on chain are those of this evidence."""
    return evidence.settlement(settlement.evidence) == settlement


def find(stated: Evidence, right: Evidence, before: Sequence[Leaf]) -> Flaw | None:
    """The first flaw of the trees that were settled; None if there is none.

    `right` is what the chain gives, `before` are the lines of the settlement before.
    """
    return _of_scores(stated, right) or _of_rewards(stated, right, before)


def _of_scores(stated: Evidence, right: Evidence) -> Flaw | None:
    own, due, facts = stated.score_tree, right.score_tree, right.facts
    if len(own.leaves) != len(due.leaves):
        return _misfit(Tree.SCORE, own, len(due.leaves))
    for subject, (line, other) in enumerate(zip(own.leaves, due.leaves, strict=True)):
        if line != other:
            contributed = subject < len(facts.contributions)
            node = facts.contributions[subject].node if contributed else None
            words = facts.words(subject, node or NOBODY)
            return WrongScore(subject, line, own.proof(subject), node, words)
    return None


def _of_rewards(stated: Evidence, right: Evidence, before: Sequence[Leaf]) -> Flaw | None:
    """The scores are right by now."""
    tree, scores, subjects = stated.reward_tree, stated.score_tree, right.facts.subject_of
    if len(stated.leaves) != len(right.leaves):
        return _misfit(Tree.REWARD, tree, len(right.leaves))
    for place, (line, due) in enumerate(zip(stated.leaves, right.leaves, strict=True)):
        if _earned(line) != _earned(due):
            subject = subjects.get((due.account, due.asset))
            score = None if subject is None else scores.leaves[subject]
            score_proof = () if subject is None else scores.proof(subject)
            return WrongReward(place, line, tree.proof(place), score, score_proof)
        if line != due:
            known = place < len(before)
            earlier = before[place] if known else None
            earlier_proof = RewardTree(before).proof(place) if known else ()
            return WrongSum(place, line, tree.proof(place), earlier, earlier_proof)
    return None


def _earned(line: Leaf) -> tuple[Address, int, int, int]:
    return line.account, line.asset, line.score, line.reward_wei


def _misfit(tree: Tree, stated: RewardTree | ScoreTree, lines: int) -> WrongNode | None:
    """Of a tree that has more or fewer lines than there must be: a node where no such node belongs."""
    top, height = Top(stated.root, stated.total, lines), merkle.depth_of(len(stated.leaves))
    for below in range(min(height, merkle.depth_of(lines)) + 1):
        level = height - below
        for place in range(1 << below):
            node, proof = stated.node(place, level), stated.proof(place, level)
            preimage = b""
            if level:
                children = (stated.node(2 * place, level - 1), stated.node(2 * place + 1, level - 1))
                preimage = merkle.preimage_of(tree, children)
            elif place < len(stated.leaves):
                preimage = merkle.preimage_of(tree, stated.leaves[place])
            judged = merkle.judge(tree, top, node, proof, preimage)
            if judged.shown and not judged.sound:
                return WrongNode(tree, node.hash, node.sum, proof, preimage)
    return None
