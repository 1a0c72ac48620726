"""The in-memory twin of the challenges in RewardDistributor.sol: who shows one wrong line voids a
settlement.
"""

from __future__ import annotations

from collections.abc import Sequence

from dfl_ledger import merkle, rewards
from dfl_ledger.facts import Ballot, Piece, RoundFacts, Shares
from dfl_ledger.memory_board import MemoryBoard
from dfl_ledger.memory_chain import Transaction
from dfl_ledger.memory_distributor import MemoryDistributor, digest_of, top_of
from dfl_ledger.memory_jobs import MemoryJobs
from dfl_ledger.merkle import Node, Top
from dfl_ledger.records import (
    NOBODY,
    Address,
    Fault,
    Leaf,
    Opening,
    Payee,
    ProofStep,
    ScoreLeaf,
    SettlementState,
    Tree,
    Word,
)


class MemoryChallenges:
    """Judges what is shown; what is wrong, the distributor takes back."""

    def __init__(self, distributor: MemoryDistributor, jobs: MemoryJobs, board: MemoryBoard) -> None:
        self._distributor = distributor
        self._jobs = jobs
        self._board = board

    def score(
        self,
        tx: Transaction,
        job: int,
        round_: int,
        opening: Opening,
        subject: int,
        leaf: ScoreLeaf,
        proof: Sequence[ProofStep],
        node: Address,
        words: Sequence[Word],
    ) -> None:
        settled = self._open(tx, job, round_, opening)
        top = self._score_top(job, round_, opening)
        self._check_leaf(tx, job, round_, Tree.SCORE, top, subject, leaf, proof)
        if subject < top.leaves and leaf == self._right_score(tx, job, round_, subject, node, words):
            raise _not_wrong(tx, job, round_, Tree.SCORE, subject)
        self._distributor.overturn(tx, settled, opening.settler, Fault.SCORE)

    def reward(
        self,
        tx: Transaction,
        job: int,
        round_: int,
        opening: Opening,
        place: int,
        leaf: Leaf,
        proof: Sequence[ProofStep],
        score_leaf: ScoreLeaf,
        score_proof: Sequence[ProofStep],
    ) -> None:
        settled = self._open(tx, job, round_, opening)
        self._check_leaf(tx, job, round_, Tree.REWARD, top_of(settled), place, leaf, proof)
        right = place < settled.payees and self._is_right(
            tx, job, round_, opening, place, leaf, score_leaf, score_proof
        )
        if right:
            raise _not_wrong(tx, job, round_, Tree.REWARD, place)
        self._distributor.overturn(tx, settled, opening.settler, Fault.REWARD)

    def cumulative(
        self,
        tx: Transaction,
        job: int,
        round_: int,
        opening: Opening,
        place: int,
        leaf: Leaf,
        proof: Sequence[ProofStep],
        before: Leaf,
        before_proof: Sequence[ProofStep],
    ) -> None:
        settled = self._open(tx, job, round_, opening)
        self._check_leaf(tx, job, round_, Tree.REWARD, top_of(settled), place, leaf, proof)
        cumulative_wei = leaf.reward_wei
        previous = self._distributor.settlements.get((job, settled.previous_round))
        if previous is not None and place < previous.payees:
            self._check_leaf(
                tx, job, previous.round, Tree.REWARD, top_of(previous), place, before, before_proof
            )
            cumulative_wei += before.cumulative_wei
        if leaf.cumulative_wei == cumulative_wei:
            raise _not_wrong(tx, job, round_, Tree.REWARD, place)
        self._distributor.overturn(tx, settled, opening.settler, Fault.CUMULATIVE)

    def node(
        self,
        tx: Transaction,
        job: int,
        round_: int,
        opening: Opening,
        tree: Tree,
        node: Node,
        proof: Sequence[ProofStep],
        preimage: bytes,
    ) -> None:
        settled = self._open(tx, job, round_, opening)
        top = top_of(settled) if tree is Tree.REWARD else self._score_top(job, round_, opening)
        found = merkle.judge(tree, top, node, proof, preimage)
        place = 2**256 - 1 if found.place is None else found.place
        if not found.shown:
            raise tx.refused("InvalidChallenge", job=job, round=round_, tree=int(tree), place=place)
        if found.sound:
            raise _not_wrong(tx, job, round_, tree, place)
        self._distributor.overturn(tx, settled, opening.settler, Fault.TREE)

    def _open(self, tx: Transaction, job: int, round_: int, opening: Opening) -> SettlementState:
        """The settlement, if it may be challenged and was made with this."""
        settled = self._distributor.settlements.get((job, round_))
        if settled is None:
            raise tx.refused("NotSettled", job=job, round=round_)
        if tx.timestamp >= settled.claimable_at:
            raise tx.refused("ChallengeOver", job=job, round=round_, claimableAt=settled.claimable_at)
        if digest_of(opening) != settled.digest:
            raise tx.refused("WrongOpening", job=job, round=round_)
        return settled

    def _check_leaf(
        self,
        tx: Transaction,
        job: int,
        round_: int,
        tree: Tree,
        top: Top,
        place: int,
        leaf: Leaf | ScoreLeaf,
        proof: Sequence[ProofStep],
    ) -> None:
        if merkle.place_of(tree, top, leaf, proof) != place:
            raise tx.refused("InvalidChallenge", job=job, round=round_, tree=int(tree), place=place)

    def _score_top(self, job: int, round_: int, opening: Opening) -> Top:
        panel = self._board.panel(job, round_, 0, 0)
        return Top(opening.score_root, opening.weights, panel.contributions + panel.datasets)

    def _right_score(
        self, tx: Transaction, job: int, round_: int, subject: int, node: Address, words: Sequence[Word]
    ) -> ScoreLeaf:
        """The line that the score tree has to have for a subject."""
        contributed = subject < self._board.panel(job, round_, 0, 0).contributions
        own = self._jobs.jobs[job].revealed.get((round_, node))
        is_its = own is not None and own.index == subject if contributed else node == NOBODY
        if not is_its:
            raise tx.refused("NotContributor", job=job, round=round_, subject=subject, node=node)
        score = self._board.median(tx, job, round_, 0, subject, node, words)
        weigh = rewards.contribution_weight if contributed else rewards.dataset_weight
        return ScoreLeaf(score, weigh(score))

    def _is_right(
        self,
        tx: Transaction,
        job: int,
        round_: int,
        opening: Opening,
        place: int,
        leaf: Leaf,
        score_leaf: ScoreLeaf,
        score_proof: Sequence[ProofStep],
    ) -> bool:
        """True if the line is that of the payee with this number, and says what follows from the score
        tree.
        """
        payees = self._jobs.jobs[job].payees
        payee = payees[place] if place < len(payees) else Payee(NOBODY, 0)
        if (leaf.account, leaf.asset) != (payee.account, payee.asset):
            return False
        facts = self.facts(job, round_)
        subject = facts.subject_of.get((payee.account, payee.asset))
        if subject is not None:
            top = self._score_top(job, round_, opening)
            self._check_leaf(tx, job, round_, Tree.SCORE, top, subject, score_leaf, score_proof)
        line = rewards.line(facts, payee, None if subject is None else score_leaf, opening.weights)
        return (leaf.score, leaf.reward_wei) == line

    def facts(self, number: int, round_: int) -> RoundFacts:
        """What the formula needs of a round: who contributed, what was measured, and who judged."""
        job = self._jobs.jobs[number]
        panel = self._board.panel(number, round_, 0, 0)
        found = {own.index: node for (at, node), own in job.revealed.items() if at == round_}
        return RoundFacts(
            job=job.job,
            round=round_,
            parent=job.model,
            model=job.model,
            shares=Shares.of(job.terms),
            contributions=tuple(Piece(found[index], job.model, 0) for index in range(len(found))),
            datasets=tuple(job.datasets[: panel.datasets]),
            audits=panel.audits,
            ballots=tuple(
                Ballot(seat.evaluator, seat.weight, b"" if shown else None)
                for seat, shown in self._board.shown_by(number, round_)
            ),
            payees=tuple(job.payees),
        )


def _not_wrong(tx: Transaction, job: int, round_: int, tree: Tree, place: int) -> Exception:
    return tx.refused("NotWrong", job=job, round=round_, tree=int(tree), place=place)
