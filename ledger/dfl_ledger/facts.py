"""What the chain fixes of a round, and what its panel's medians follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from dfl_ledger import vectors
from dfl_ledger.median import Medians, Vote, weighted_medians
from dfl_ledger.records import NOBODY, Address, Cid, JobId, JobTerms, Payee, Word


@dataclass(frozen=True, slots=True)
class Shares:
    """What a round has to pay, and to whom what part of it. Basis points; compute gets the rest."""

    round_budget_wei: int
    data_bps: int = 0
    model_bps: int = 0
    algorithm_bps: int = 0
    evaluator_bps: int = 0
    model_asset: int = 0
    algorithm_asset: int = 0

    @classmethod
    def of(cls, terms: JobTerms) -> Shares:
        return cls(
            terms.round_budget_wei,
            terms.data_bps,
            terms.model_bps,
            terms.algorithm_bps,
            terms.evaluator_bps,
            terms.model_asset,
            terms.algorithm_asset,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """A revealed contribution; its place among them is the order of reveal."""

    node: Address
    cid: Cid
    samples: int


@dataclass(frozen=True, slots=True)
class Ballot:
    """A seat of the panel that scored the round; its place among them is its number."""

    evaluator: Address
    weight: int  # wei at stake
    vector: bytes | None  # None: not shown


@dataclass(frozen=True)
class RoundFacts:
    """A round as the chain has it once its panel is done. `ballots` are empty if no seat was ever taken.

    Vectors have a score for each contribution, then each data set, then a verdict for each audit, then one
    for the model.
    """

    job: JobId
    round: int
    parent: Cid  # the model that the pieces started from
    model: Cid  # the one they were made into
    shares: Shares
    contributions: tuple[Piece, ...]
    datasets: tuple[int, ...]  # assets, as many as there were at the draw
    audits: int
    ballots: tuple[Ballot, ...]
    payees: tuple[Payee, ...]  # by number, as many as the settlement has lines

    @cached_property
    def subjects(self) -> int:
        """Scores of a vector."""
        return len(self.contributions) + len(self.datasets) + self.audits + 1

    @cached_property
    def scores(self) -> Mapping[int, tuple[int, ...]]:
        """The scores of each seat that showed them. Raises VerificationFailed for a vector of another
        length.
        """
        return {
            seat: vectors.decode(ballot.vector, self.subjects)
            for seat, ballot in enumerate(self.ballots)
            if ballot.vector is not None
        }

    @cached_property
    def judges(self) -> frozenset[Address]:
        """Who showed its scores."""
        return frozenset(ballot.evaluator for ballot in self.ballots if ballot.vector is not None)

    @cached_property
    def medians(self) -> tuple[int, ...]:
        """What each contribution, then each data set, is worth."""
        judged = [piece.node for piece in self.contributions] + [NOBODY] * len(self.datasets)
        return tuple(self.median(subject, node) for subject, node in enumerate(judged))

    @cached_property
    def subject_of(self) -> Mapping[tuple[Address, int], int]:
        """Where the score of a payee, named by (account, asset), stands."""
        own = {(piece.node, 0): index for index, piece in enumerate(self.contributions)}
        first = len(self.contributions)
        return own | {(NOBODY, asset): first + place for place, asset in enumerate(self.datasets)}

    def median(self, subject: int, excluded: Address = NOBODY) -> int:
        """What the panel says of a subject, without the seat of `excluded`: nobody judges itself."""
        return self.both_medians(subject, excluded).lower

    def both_medians(self, subject: int, excluded: Address = NOBODY) -> Medians:
        """The lower one is paid for; it takes both for anybody to lose a bond."""
        return weighted_medians(
            Vote(scores[subject], seat, self.ballots[seat].weight)
            for seat, scores in self.scores.items()
            if self.ballots[seat].evaluator != excluded
        )

    def words(self, subject: int, excluded: Address = NOBODY) -> tuple[Word, ...]:
        """What shows the contract the same median: a word of each vector in it, in rising order of seat."""
        return tuple(
            vectors.word_of(seat, ballot.vector, subject)
            for seat, ballot in enumerate(self.ballots)
            if ballot.vector is not None and ballot.evaluator != excluded
        )
