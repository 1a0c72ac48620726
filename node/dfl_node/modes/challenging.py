"""The challenger in every node: a settlement of its jobs that says anything else than the chain's own facts is overturned.

A settlement has nothing to decide: scores are the medians of vectors that the chain has, rewards follow from
them. One that says otherwise is shown wrong by a single line, and its settler loses its bond. A line is proven
with its siblings, which the evidence gives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import structlog
import trio

from dfl_ledger import vectors
from dfl_ledger.errors import DflError, VerificationFailed
from dfl_ledger.evidence import MAX_EVIDENCE_BYTES, Evidence
from dfl_ledger.facts import RoundFacts
from dfl_ledger.records import NOBODY, Address, Cid, JobId, Leaf, ScoreLeaf, Settlement, Word
from dfl_node.parts import Parts

log = structlog.get_logger(__name__)

_NOTHING = Leaf(NOBODY, 0, 0, 0, 0)


class Challenger:
    """Compares the settlements of one job, for as long as each can be overturned."""

    def __init__(self, job: JobId, parts: Parts) -> None:
        self._job = job
        self._parts = parts
        self._judged: dict[tuple[int, bytes], bool] = {}  # (round, root) -> as it should be

    def wrong(self, now: int) -> tuple[int, ...]:
        """The first round whose settlement is wrong and can still be overturned: those after it fall with it. Blocks.

        A settlement that cannot be compared yet, for want of rows, is looked at again.
        """
        rows = self._parts.rows
        for settlement, claimable_at in rows.open_settlements(self._job, now):
            key = (settlement.round, settlement.root)
            if key not in self._judged:
                try:
                    right = self._right(settlement.round)
                except DflError as behind:
                    log.debug("settlement not compared yet", job=self._job, round=settlement.round, why=str(behind))
                    return ()
                self._judged[key] = _says(right, settlement)
                if not self._judged[key]:
                    log.warning("settlement is wrong", job=self._job, round=settlement.round, until=claimable_at)
            if not self._judged[key]:
                return (settlement.round,)
        return ()

    async def challenge(self, round_: int) -> None:
        """Show one wrong line of the round's settlement. Raises DflError when it cannot be done (yet)."""
        in_thread = trio.to_thread.run_sync
        settlement = await in_thread(self._parts.rows.settlement, self._job, round_)
        if settlement is None:
            return  # somebody was faster
        data = await self._parts.store.get(settlement.evidence, max_bytes=MAX_EVIDENCE_BYTES)
        stated, right = Evidence.decode(data), await in_thread(self._right, round_)
        if not _says(stated, settlement):
            raise VerificationFailed(
                f"the evidence of job {self._job} round {round_} is not that of its settlement",
                why="without its lines none can be shown wrong",
                help_command=f"dfl-node ledger verify {self._job}.{round_}",
            )
        before = await in_thread(self._before, round_)
        call, name = self._fault(round_, stated, right, before)
        await in_thread(call)
        log.warning("settlement overturned", job=self._job, round=round_, shown=name)

    def _fault(
        self, round_: int, stated: Evidence, right: Evidence, before: tuple[Leaf, ...]
    ) -> tuple[Callable[[], object], str]:
        """The call that shows the first wrong line, and what the line is of."""
        ledger, opening = self._parts.ledger, self._parts.rows.opening(self._job, round_)
        facts = right.facts
        own, due = stated.score_tree, right.score_tree
        for subject, (line, other) in enumerate(zip(own.leaves, due.leaves, strict=True)):
            if line != other:
                node = facts.contributions[subject].node if subject < len(facts.contributions) else None
                show = partial(ledger.challenge_score, self._job, round_, opening, subject, line)
                words = words_of(facts, subject, node)
                return partial(show, own.proof(subject), node, words), f"score of subject {subject}"
        subjects, tree = facts.subject_of, stated.reward_tree
        for place, (leaf, ought) in enumerate(zip(stated.leaves, right.leaves, strict=True)):
            stated_line = (leaf.account, leaf.asset, leaf.score, leaf.reward_wei)
            if stated_line != (ought.account, ought.asset, ought.score, ought.reward_wei):
                subject = subjects.get((ought.account, ought.asset))
                score = ScoreLeaf(0, 0) if subject is None else own.leaves[subject]
                proof = () if subject is None else own.proof(subject)
                show = partial(ledger.challenge_reward, self._job, round_, opening, place, leaf)
                return partial(show, tree.proof(place), score, proof), f"reward of payee {place}"
            if leaf.cumulative_wei != ought.cumulative_wei:
                show = partial(ledger.challenge_cumulative, self._job, round_, opening, place, leaf)
                earlier, proof = self._earlier(round_, place, before)
                return partial(show, tree.proof(place), earlier, proof), f"sum of payee {place}"
        raise VerificationFailed(f"no line of job {self._job} round {round_} is wrong", why="the trees differ")
