"""The challenger in every node: what a settlement of its jobs says against the chain's own facts falls.

Whether one is wrong follows from the chain alone. To show it takes a line of the trees that were settled, and
those are in the evidence: of a settler who withholds it, or publishes another one, nothing can be shown.
"""

from __future__ import annotations

from functools import partial

import structlog
import trio

from dfl_ledger import rewards
from dfl_ledger.errors import DflError, VerificationFailed
from dfl_ledger.evidence import MAX_EVIDENCE_BYTES, Evidence
from dfl_ledger.merkle import RewardTree, ScoreTree
from dfl_ledger.records import Cid, JobId
from dfl_ledger.rows import SettlementRow
from dfl_node.modes import flaws
from dfl_node.modes.flaws import WrongNode, WrongReward, WrongScore, WrongSum
from dfl_node.parts import Parts

log = structlog.get_logger(__name__)


class Challenger:
    """Compares the settlements of one job, for as long as each can be overturned."""

    def __init__(self, job: JobId, parts: Parts) -> None:
        self._job = job
        self._parts = parts
        self._right: dict[tuple[int, str], bool] = {}  # (round, transaction) -> says what the chain gives

    # -- what is due ----------------------------------------------------------------------------------
    def look(self, now: int) -> tuple[int | None, int]:
        """The first round whose settlement is wrong, and when the last of them is final. Blocks.

        Those after a wrong one fall with it. One that cannot be compared yet, for want of rows, is looked at
        again.
        """
        found = self._parts.rows.open_settlements(self._job, now)
        final_at = max((row.claimable_at for row in found), default=0)
        me = self._parts.ledger.address
        for row in found:
            if row.settler != me and not self._is_right(row):
                return row.round, final_at
        return None, final_at

    def _is_right(self, row: SettlementRow) -> bool:
        key = (row.round, row.tx)
        if key not in self._right:
            try:
                self._right[key] = self._compare(row)
            except VerificationFailed as bad:  # a vector, or the settlement before, cannot be what it is
                log.warning("settlement not compared", job=self._job, round=row.round, why=str(bad))
                return True
            except (DflError, ValueError) as behind:
                log.debug("settlement not compared yet", job=self._job, round=row.round, why=str(behind))
                return True
            if not self._right[key]:
                log.warning("settlement is wrong", job=self._job, round=row.round, settler=row.settler)
        return self._right[key]

    def _compare(self, row: SettlementRow) -> bool:
        rows = self._parts.rows
        facts = rows.round_facts(self._job, row.round)
        tree = RewardTree(rewards.leaves(facts, rows.lines_before(self._job, row.round)))
        scores = ScoreTree(rewards.score_leaves(len(facts.contributions), facts.medians))
        stated = (row.root, row.total_wei, row.score_root, row.weights)
        return stated == (tree.root, tree.total_wei, scores.root, scores.total)

    # -- showing it -----------------------------------------------------------------------------------
    async def challenge(self, round_: int) -> None:
        """Show one wrong line of the round's settlement. Raises DflError when it cannot be done (yet)."""
        row = await trio.to_thread.run_sync(self._parts.rows.settlement, self._job, round_)
        if row is None:
            return  # somebody was faster
        data = await self._parts.store.get(Cid.parse(row.evidence), max_bytes=MAX_EVIDENCE_BYTES)
        stated = Evidence.decode(data)
        if not flaws.says(stated, row.settlement()):
            raise VerificationFailed(
                f"the evidence of job {self._job} round {round_} is not that of its settlement",
                why="without its lines none can be shown to be wrong",
                help_command=f"dfl-node ledger verify {self._job}.{round_}",
            )
        shown = await trio.to_thread.run_sync(self._show, round_, stated)
        log.warning("settlement overturned", job=self._job, round=round_, settler=row.settler, shown=shown)

    def _show(self, round_: int, stated: Evidence) -> str:
        """Send the proof; what it is of."""
        rows, ledger, job = self._parts.rows, self._parts.ledger, self._job
        before = rows.lines_before(job, round_)
        facts, opening = rows.round_facts(job, round_), rows.opening(job, round_)
        if opening is None:
            return "nothing: somebody was faster"
        right = Evidence.of(facts, before, validation=stated.validation, method=stated.method)
        match flaws.find(stated, right, before):
            case WrongScore(subject, score, proof, node, words):
                show = partial(ledger.challenge_score, job, round_, opening, subject, score, proof)
                show(node, words)
                return f"the score of subject {subject}"
            case WrongReward(place, line, proof, score_line, score_proof):
                ledger.challenge_reward(job, round_, opening, place, line, proof, score_line, score_proof)
                return f"the reward of payee {place}"
            case WrongSum(place, line, proof, earlier, earlier_proof):
                ledger.challenge_cumulative(job, round_, opening, place, line, proof, earlier, earlier_proof)
                return f"the sum of payee {place}"
            case WrongNode(tree, digest, total, proof, preimage):
                ledger.challenge_node(job, round_, opening, tree, digest, total, proof, preimage)
                return f"a node of the {tree.name.lower()} tree"
            case None:
                raise VerificationFailed(f"no line of job {job} round {round_} is wrong", why="it is right")
