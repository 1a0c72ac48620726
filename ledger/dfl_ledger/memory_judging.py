"""The part of `MemoryLedger` about panels, their scores, and challenges of settlements."""

from __future__ import annotations

from collections.abc import Sequence

from dfl_ledger.memory_wallet import MemoryWallet
from dfl_ledger.merkle import Node
from dfl_ledger.records import (
    NOBODY,
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

NO_LEAF = Leaf(NOBODY, 0, 0, 0, 0)
NO_SCORE = ScoreLeaf(0, 0)


class MemoryJudging(MemoryWallet):
    # -- panels ---------------------------------------------------------------------------------------
    def draw(self, job: JobId, round_: int, panel: int = 0) -> Receipt:
        return self._send("draw", lambda tx: self._chain.board.draw(tx, job, round_, panel))

    def commit_scores(self, job: JobId, round_: int, panel: int, seat: int, commitment: bytes) -> Receipt:
        return self._send(
            "commitScores", lambda tx: self._chain.board.commit(tx, job, round_, panel, seat, commitment)
        )

    def reveal_scores(
        self, job: JobId, round_: int, panel: int, seat: int, vector: bytes, salt: bytes
    ) -> Receipt:
        return self._send(
            "revealScores", lambda tx: self._chain.board.reveal(tx, job, round_, panel, seat, vector, salt)
        )

    def punish_seat(self, job: JobId, round_: int, panel: int, seat: int) -> Receipt:
        return self._send(
            "punishSeat", lambda tx: self._chain.board.punish_seat(tx, job, round_, panel, seat)
        )

    def penalize(
        self, job: JobId, round_: int, seat: int, subject: int, node: Address | None, words: Sequence[Word]
    ) -> Receipt:
        return self._send(
            "penalize",
            lambda tx: self._chain.board.penalize(tx, job, round_, seat, subject, node or NOBODY, words),
        )

    def accuse(self, job: JobId, round_: int, audit: int, node: Address, words: Sequence[Word]) -> Receipt:
        return self._send("accuse", lambda tx: self._chain.board.accuse(tx, job, round_, audit, node, words))

    def appeal(self, job: JobId, round_: int, audit: int) -> Receipt:
        return self._send("appeal", lambda tx: self._chain.board.appeal(tx, job, round_, audit))

    def decide(self, job: JobId, round_: int, audit: int, words: Sequence[Word]) -> Receipt:
        return self._send("decide", lambda tx: self._chain.board.decide(tx, job, round_, audit, words))

    def denounce(self, job: JobId, round_: int, publisher: Address, words: Sequence[Word]) -> Receipt:
        return self._send(
            "denounce", lambda tx: self._chain.board.denounce(tx, job, round_, publisher, words)
        )

    def open_shard(self, job: JobId, round_: int, audit: int, boxes: Cid) -> Receipt:
        return self._send("openShard", lambda tx: self._chain.board.open_shard(tx, job, round_, audit, boxes))

    def panel(self, job: JobId, round_: int, panel: int = 0) -> PanelState:
        with self._blocks.reading():
            return self._chain.board.panel(job, round_, panel, self._blocks.now())

    def seats(self, job: JobId, round_: int, panel: int = 0) -> tuple[Seat, ...]:
        with self._blocks.reading():
            return self._chain.board.seats(job, round_, panel)

    def seat(self, job: JobId, round_: int, panel: int, seat: int) -> Seat | None:
        return self._chain.board.seat(job, round_, panel, seat)

    def seat_of(self, job: JobId, round_: int, panel: int, account: Address) -> tuple[int, bool] | None:
        return self._chain.board.seat_of(job, round_, panel, account)

    def audited_index(self, job: JobId, round_: int, audit: int) -> int:
        return self._chain.board.audited_index(self._view("auditedIndex"), job, round_, audit)

    def audit(self, job: JobId, round_: int, audit: int) -> Audit | None:
        found = self._chain.board.audits.get((job, round_, audit))
        if found is None or found.node == NOBODY:
            return None
        return Audit(found.node, found.appeal_until, found.appealed, found.decided)

    def median(
        self,
        job: JobId,
        round_: int,
        panel: int,
        subject: int,
        excluded: Address | None,
        words: Sequence[Word],
    ) -> int:
        view = self._view("median")
        return self._chain.board.median(view, job, round_, panel, subject, excluded or NOBODY, words)

    def scored(self, job: JobId, round_: int) -> bool:
        with self._blocks.reading():
            return self._chain.board.done(job, round_, self._blocks.now())

    # -- challenges -----------------------------------------------------------------------------------
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
        return self._send(
            "challengeScore",
            lambda tx: self._chain.challenges.score(
                tx, job, round_, opening, subject, leaf, proof, node or NOBODY, words
            ),
        )

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
        own = score_leaf or NO_SCORE
        return self._send(
            "challengeReward",
            lambda tx: self._chain.challenges.reward(
                tx, job, round_, opening, place, leaf, proof, own, score_proof
            ),
        )

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
        own = before or NO_LEAF
        return self._send(
            "challengeCumulative",
            lambda tx: self._chain.challenges.cumulative(
                tx, job, round_, opening, place, leaf, proof, own, before_proof
            ),
        )

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
        node = Node(hash_, sum_)
        return self._send(
            "challengeNode",
            lambda tx: self._chain.challenges.node(tx, job, round_, opening, tree, node, proof, preimage),
        )
