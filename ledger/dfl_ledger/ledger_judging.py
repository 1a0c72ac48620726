"""The part of the `Ledger` Protocol about panels, their scores, and challenges of settlements.

Panel 0 of a round scores it; panel 1 + k is the jury of an appeal against its audit k. `node` and `excluded`
are None where nobody is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dfl_ledger.records import (
    Address,
    Audit,
    Cid,
    JobId,
    Leaf,
    Opening,
    PanelState,
    ProofStep,
    Receipt,
    ScoreLeaf,
    Seat,
    Tree,
    Word,
)


class PanelLedger(Protocol):
    """What evaluators do, and what is judged by what they said."""

    def draw(self, job: JobId, round_: int, panel: int = 0) -> Receipt:
        """Draw a panel's seats; `commit_scores` does it too. If the block it is drawn from is too old for its
        hash to be known (256 blocks), this notes another one, and a later call draws."""
        ...

    def commit_scores(self, job: JobId, round_: int, panel: int, seat: int, commitment: bytes) -> Receipt:
        """Bind our seat to its scores without showing them: see vectors.commitment."""
        ...

    def reveal_scores(
        self, job: JobId, round_: int, panel: int, seat: int, vector: bytes, salt: bytes
    ) -> Receipt:
        """Show the scores that our seat committed to."""
        ...

    def punish_seat(self, job: JobId, round_: int, panel: int, seat: int) -> Receipt:
        """Take the bond of a seat that showed no scores."""
        ...

    def penalize(
        self, job: JobId, round_: int, seat: int, subject: int, node: Address | None, words: Sequence[Word]
    ) -> Receipt:
        """Take the bond of a seat whose score is too far from the median. `node` is the subject's
        contributor, None for a data set."""
        ...

    def accuse(self, job: JobId, round_: int, audit: int, node: Address, words: Sequence[Word]) -> Receipt:
        """Ban a node whose contribution failed an audit by the median."""
        ...

    def appeal(self, job: JobId, round_: int, audit: int) -> Receipt:
        """As the banned node: ask for a jury."""
        ...

    def decide(self, job: JobId, round_: int, audit: int, words: Sequence[Word]) -> Receipt:
        """End a failed audit, by the jury's median or because nobody appealed."""
        ...

    def denounce(self, job: JobId, round_: int, publisher: Address, words: Sequence[Word]) -> Receipt:
        """Take the bond of who published a model that the median found wrong."""
        ...

    def open_shard(self, job: JobId, round_: int, audit: int, boxes: Cid) -> Receipt:
        """As the audited node: say where its rows lie, sealed to each juror."""
        ...

    def panel(self, job: JobId, round_: int, panel: int = 0) -> PanelState:
        """A panel as it stands in a block mined now; phase NONE if there is none."""
        ...

    def seats(self, job: JobId, round_: int, panel: int = 0) -> tuple[Seat, ...]:
        """Who sits where, without what they said: as drawn, or as it would be drawn now; empty if it could
        not. Raises Reverted (NoPanel) if there is nothing to score."""
        ...

    def seat(self, job: JobId, round_: int, panel: int, seat: int) -> Seat | None: ...

    def seat_of(self, job: JobId, round_: int, panel: int, account: Address) -> tuple[int, bool] | None:
        """The account's seat in a panel that is drawn, and whether it showed its scores."""
        ...

    def audited_index(self, job: JobId, round_: int, audit: int) -> int:
        """The index of the contribution that an audit is about. Raises Reverted (NotDrawn) before the
        draw.
        """
        ...

    def audit(self, job: JobId, round_: int, audit: int) -> Audit | None:
        """A failed audit."""
        ...

    def median(
        self,
        job: JobId,
        round_: int,
        panel: int,
        subject: int,
        excluded: Address | None,
        words: Sequence[Word],
    ) -> int:
        """The median of a subject as the contract finds it: one word for each seat that showed its scores, in
        rising order, but for the excluded one."""
        ...

    def scored(self, job: JobId, round_: int) -> bool:
        """True once a round is scored, or nobody has scored it while it could be."""
        ...


class ChallengeLedger(Protocol):
    """Voids a settlement by one wrong line, and takes its settler's bond. Raises Reverted (NotWrong) if it is
    right.
    """

    def challenge_score(
        self,
        job: JobId,
        round_: int,
        opening: Opening,
        subject: int,
        leaf: ScoreLeaf,
        proof: Sequence[ProofStep],
        node: Address | None,
        words: Sequence[Word],
    ) -> Receipt:
        """A line of the score tree that is not the median's. `node` is the subject's contributor."""
        ...

    def challenge_reward(
        self,
        job: JobId,
        round_: int,
        opening: Opening,
        place: int,
        leaf: Leaf,
        proof: Sequence[ProofStep],
        score_leaf: ScoreLeaf | None,
        score_proof: Sequence[ProofStep],
    ) -> Receipt:
        """A line of the reward tree of another payee, or that does not follow from its line of the score
        tree, which is None if it has none."""
        ...

    def challenge_cumulative(
        self,
        job: JobId,
        round_: int,
        opening: Opening,
        place: int,
        leaf: Leaf,
        proof: Sequence[ProofStep],
        before: Leaf | None,
        before_proof: Sequence[ProofStep],
    ) -> Receipt:
        """A line that does not go on from the settlement before, in which it is None if it had no such
        place.
        """
        ...

    def challenge_node(
        self,
        job: JobId,
        round_: int,
        opening: Opening,
        tree: Tree,
        hash_: bytes,
        sum_: int,
        proof: Sequence[ProofStep],
        preimage: bytes,
    ) -> Receipt:
        """A node that no honest tree has: see merkle.judge."""
        ...
