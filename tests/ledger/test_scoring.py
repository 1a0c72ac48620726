"""Vectors, medians and draws: what hostile or lopsided input may not do. Agreement with Solidity:
test_twins.py.
"""

from __future__ import annotations

from collections import Counter

import pytest

from dfl_ledger import sortition, vectors
from dfl_ledger.errors import VerificationFailed
from dfl_ledger.median import TOLERANCE_ABS, Medians, Vote, is_outlier, weighted_median, weighted_medians
from dfl_ledger.records import REFUSED, Address, Interval


def test_a_vector_is_read_back() -> None:
    scores = (0, -1, 2**63 - 1, REFUSED, 7)
    assert vectors.decode(vectors.encode(scores), 5) == scores
    for wrong in (b"", vectors.encode(scores)[:-1], vectors.encode((*scores, 1))):
        with pytest.raises(VerificationFailed, match="5 scores"):
            vectors.decode(wrong, 5)
    with pytest.raises(ValueError, match="not a vector"):
        vectors.encode([2**63])


def test_words_prove_the_scores_of_their_subjects_alone() -> None:
    scores = tuple(range(9))
    tree = vectors.VectorTree(vectors.encode(scores))
    for subject in scores:
        word, proof = tree.word(subject)
        assert vectors.holds(tree.root, 9, subject, word, proof)
        assert vectors.score_in(word, subject) == subject
        assert not vectors.holds(tree.root, 9, (subject + 4) % 12, word, proof)
        assert not vectors.holds(tree.root, 9, subject, word[:-1] + b"x", proof)
        assert not vectors.holds(tree.root, 9, subject, word, proof[:-1])
        assert not vectors.holds(tree.root, 9, subject, word[:8], proof)
    with pytest.raises(IndexError):
        tree.word(12)
    assert vectors.VectorTree(b"").root == bytes(32)


def test_less_than_half_of_the_stake_does_not_move_the_median() -> None:
    honest = [Vote(50, 0, 26), Vote(51, 1, 25)]
    for lie in (REFUSED, -(10**9), 2**63 - 1):
        assert 50 <= weighted_median([*honest, Vote(lie, 2, 49)]) <= 51
    assert weighted_median([Vote(1, 0, 1), Vote(2, 1, 1)]) == 1  # the lower of two halves
    assert weighted_median([]) == 0
    assert weighted_medians([]) == Medians(0, 0)


def test_half_of_the_stake_takes_no_bond() -> None:
    halves = weighted_medians([Vote(-(10**9), 0, 5), Vote(10**9, 1, 5)])
    assert halves == Medians(-(10**9), 10**9)
    assert not halves.are_beyond(-(10**9))
    assert not halves.are_beyond(10**9)
    # a grain more on one side, and the other stands alone
    most = weighted_medians([Vote(-(10**9), 0, 5), Vote(10**9, 1, 5), Vote(10**9, 2, 1)])
    assert most == Medians(10**9, 10**9)
    assert most.are_beyond(-(10**9))
    # whose score is between those of the others, and is one of the medians, is not alone against them
    spread = weighted_medians([Vote(0, 0, 5), Vote(10**8, 1, 1), Vote(10**9, 2, 4)])
    assert spread == Medians(0, 10**8)
    assert not spread.are_beyond(10**8)
    assert spread.are_beyond(10**9)


def test_outliers() -> None:
    assert not is_outlier(TOLERANCE_ABS, 0)
    assert is_outlier(TOLERANCE_ABS + 1, 0)
    assert not is_outlier(75 * 10**8, 100 * 10**8)
    assert is_outlier(75 * 10**8 - 1, 100 * 10**8)
    assert is_outlier(REFUSED, 5)
    assert is_outlier(5, REFUSED)
    assert not is_outlier(REFUSED, REFUSED)
    assert is_outlier(2**63 - 1, -(2**63) + 1)


def test_seats_are_drawn_by_stake_and_each_evaluator_once() -> None:
    weights = [1, 2, 3, 4]
    nodes = [Address("0x" + f"{number:040x}") for number in range(4)]

    def at(point: int) -> Interval:
        start = 0
        for node, weight in zip(nodes, weights, strict=True):
            if point < start + weight:
                return Interval(node, start, weight)
            start += weight
        raise AssertionError(point)

    first: Counter[Address] = Counter()
    for number in range(2000):
        drawn = sortition.draw(number.to_bytes(32, "big"), 10, at, 3)
        assert len({interval.node for interval in drawn}) == 3
        first[drawn[0].node] += 1
    shares = [first[node] / 2000 for node in nodes]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.04)
    assert len(sortition.draw(bytes(32), 10, at, 16)) == 4
    assert sortition.draw(bytes(32), 0, at, 3) == ()


def test_audits_of_a_round_are_of_different_contributions() -> None:
    seed = b"s" * 32
    assert {sortition.audited_index(seed, audit, 5) for audit in range(5)} == set(range(5))
    with pytest.raises(ValueError, match="of 5"):
        sortition.audited_index(seed, 5, 5)
