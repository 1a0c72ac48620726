"""The part of `ChainLedger` about panels, their scores, and challenges of settlements."""

from __future__ import annotations

from collections.abc import Sequence

from dfl_ledger.chain_calls import ChainCalls, bytes_of
from dfl_ledger.records import (
    NOBODY,
    Address,
    Audit,
    Cid,
    JobId,
    Leaf,
    Opening,
    PanelPhase,
    PanelState,
    ProofStep,
    Receipt,
    ScoreLeaf,
    Seat,
    Tree,
    Word,
)

_NO_LEAF = Leaf(NOBODY, 0, 0, 0, 0)
_NO_SCORE = ScoreLeaf(0, 0)


class ChainJudging(ChainCalls):
    # -- panels ---------------------------------------------------------------------------------------
    def draw(self, job: JobId, round_: int, panel: int = 0) -> Receipt:
        return self._judge("draw", job, round_, panel)

    def commit_scores(self, job: JobId, round_: int, panel: int, seat: int, commitment: bytes) -> Receipt:
        return self._judge("commitScores", job, round_, panel, seat, commitment)

    def reveal_scores(
        self, job: JobId, round_: int, panel: int, seat: int, vector: bytes, salt: bytes
    ) -> Receipt:
        return self._judge("revealScores", job, round_, panel, seat, vector, salt)

    def punish_seat(self, job: JobId, round_: int, panel: int, seat: int) -> Receipt:
        return self._judge("punishSeat", job, round_, panel, seat)

    def penalize(
        self, job: JobId, round_: int, seat: int, subject: int, node: Address | None, words: Sequence[Word]
    ) -> Receipt:
        return self._judge("penalize", job, round_, seat, subject, node or NOBODY, _words(words))

    def accuse(self, job: JobId, round_: int, audit: int, node: Address, words: Sequence[Word]) -> Receipt:
        return self._judge("accuse", job, round_, audit, node, _words(words))

    def appeal(self, job: JobId, round_: int, audit: int) -> Receipt:
        return self._judge("appeal", job, round_, audit)

    def decide(self, job: JobId, round_: int, audit: int, words: Sequence[Word]) -> Receipt:
        return self._judge("decide", job, round_, audit, _words(words))

    def denounce(self, job: JobId, round_: int, publisher: Address, words: Sequence[Word]) -> Receipt:
        return self._judge("denounce", job, round_, publisher, _words(words))

    def open_shard(self, job: JobId, round_: int, audit: int, boxes: Cid) -> Receipt:
        return self._judge("openShard", job, round_, audit, boxes.digest)

    def panel(self, job: JobId, round_: int, panel: int = 0) -> PanelState:
        found = self._read(self._deployment.board, "panel", job, round_, panel, now=True)[0]
        with self._understood("panel"):
            phase, seats, committed, revealed, subjects, *counted, seed = found
            contributions, datasets, audits, commit_until, reveal_until = counted
            return PanelState(
                PanelPhase(phase),
                seats,
                committed,
                revealed,
                subjects,
                contributions,
                datasets,
                audits,
                commit_until,
                reveal_until,
                bytes_of(seed),
            )

    def seats(self, job: JobId, round_: int, panel: int = 0) -> tuple[Seat, ...]:
        # in a block mined now: the newest block's own hash is not known in it
        found = self._read(self._deployment.board, "seats", job, round_, panel, now=True)
        with self._understood("seats"):
            return tuple(Seat(Address(node), int(weight)) for node, weight in zip(*found, strict=True))

    def seat(self, job: JobId, round_: int, panel: int, seat: int) -> Seat | None:
        evaluator, weight, root = self._read(self._deployment.board, "seat", job, round_, panel, seat)[0]
        return None if evaluator == NOBODY else Seat(Address(evaluator), int(weight), bytes_of(root))

    def seat_of(self, job: JobId, round_: int, panel: int, account: Address) -> tuple[int, bool] | None:
        board = self._deployment.board
        found, seat, revealed = self._read(board, "seatOf", job, round_, panel, account)
        return (int(seat), bool(revealed)) if found else None

    def audited_index(self, job: JobId, round_: int, audit: int) -> int:
        return int(self._read(self._deployment.board, "auditedIndex", job, round_, audit)[0])

    def audit(self, job: JobId, round_: int, audit: int) -> Audit | None:
        node, until, appealed, decided = self._read(self._deployment.board, "audit", job, round_, audit)[0]
        return None if node == NOBODY else Audit(Address(node), int(until), bool(appealed), bool(decided))

    def median(
        self,
        job: JobId,
        round_: int,
        panel: int,
        subject: int,
        excluded: Address | None,
        words: Sequence[Word],
    ) -> int:
        shown = (subject, excluded or NOBODY, _words(words))
        return int(self._read(self._deployment.board, "median", job, round_, panel, *shown)[0])

    def scored(self, job: JobId, round_: int) -> bool:
        return bool(self._read(self._deployment.board, "done", job, round_, now=True)[0])

    def _judge(self, function: str, *args: object) -> Receipt:
        return self._write(self._deployment.board, function, *args).receipt

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
        shown = (subject, _score(leaf), steps_to_abi(proof), node or NOBODY, _words(words))
        return self._challenge("challengeScore", job, round_, opening, *shown)

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
        own = (place, leaf_to_abi(leaf), steps_to_abi(proof))
        scored = (_score(score_leaf or _NO_SCORE), steps_to_abi(score_proof))
        return self._challenge("challengeReward", job, round_, opening, *own, *scored)

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
        own = (place, leaf_to_abi(leaf), steps_to_abi(proof))
        earlier = (leaf_to_abi(before or _NO_LEAF), steps_to_abi(before_proof))
        return self._challenge("challengeCumulative", job, round_, opening, *own, *earlier)

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
        shown = (int(tree), hash_, sum_, steps_to_abi(proof), preimage)
        return self._challenge("challengeNode", job, round_, opening, *shown)

    def _challenge(self, function: str, job: JobId, round_: int, opening: Opening, *shown: object) -> Receipt:
        known = (opening.score_root, opening.weights, opening.settler)
        return self._write(self._deployment.distributor, function, job, round_, known, *shown).receipt


def leaf_to_abi(leaf: Leaf) -> tuple[object, ...]:
    """In the order of `struct Leaf`."""
    return (leaf.account, leaf.asset, leaf.score, leaf.reward_wei, leaf.cumulative_wei)


def steps_to_abi(proof: Sequence[ProofStep]) -> list[tuple[object, ...]]:
    """In the order of `struct ProofStep`."""
    return [(step.hash, step.sum, step.is_left) for step in proof]


def _score(leaf: ScoreLeaf) -> tuple[int, int]:
    return (leaf.score, leaf.weight)


def _words(words: Sequence[Word]) -> list[tuple[object, ...]]:
    return [(word.seat, word.word, list(word.proof)) for word in words]
