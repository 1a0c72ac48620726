"""Evidence: fills in scores when it is true, changes nothing when it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.errors import (
    VerificationFailed,
)
from dfl_ledger.evidence import Evidence
from dfl_ledger.facts import Shares
from dfl_ledger.indexer import Indexer
from dfl_ledger.query import open_ledger
from dfl_ledger.records import Leaf
from tests.ledger.fake_chain import (
    BUDGET_WEI,
    FakeChain,
    JobStory,
    address,
    cid,
    with_leaf,
)
from tests.ledger.indexer.conftest import DERIVED, OpenIndexer, catch_up, dump


@pytest.fixture
def settled(chain: FakeChain, indexer_of: OpenIndexer) -> tuple[Indexer, JobStory]:
    """A published round, indexed."""
    story = JobStory(chain)
    story.create()
    story.whole_round()
    indexer = indexer_of(chain)
    catch_up(indexer)
    return indexer, story


def test_evidence_fills_in_scores_and_rewards(settled: tuple[Indexer, JobStory], path: Path) -> None:
    indexer, story = settled
    evidence = story.evidence(scores=(3_000_000, 1_000_000, 0))
    evidence_cid = story.settle(evidence)
    catch_up(indexer)
    assert indexer.missing_evidence() == [evidence.settlement(evidence_cid)]
    assert indexer.add_evidence(evidence, evidence_cid)
    assert indexer.missing_evidence() == []
    with open_ledger(path) as rows:
        found = [(r.score, r.reward_wei, r.accepted, r.why) for r in rows.revealed(1, 1)]
    assert found == [
        (pytest.approx(0.003), BUDGET_WEI * 3 // 4, True, ""),
        (pytest.approx(0.001), BUDGET_WEI // 4, True, ""),
        (0.0, 0, False, "norm 12.5 is more than 3 times the median"),
    ]
    assert indexer.add_evidence(evidence, evidence_cid)  # again changes nothing


def test_evidence_may_come_before_its_settlement(settled: tuple[Indexer, JobStory], path: Path) -> None:
    indexer, story = settled
    evidence = story.evidence()
    evidence_cid = story.settle(evidence)
    assert not indexer.add_evidence(evidence, evidence_cid)
    catch_up(indexer)
    assert indexer.missing_evidence() == []
    with open_ledger(path) as rows:
        assert rows.revealed(1, 1)[0].reward_wei == BUDGET_WEI * 3 // 4


def false_evidence(story: JobStory, **changes: Any) -> Evidence:
    return replace(story.evidence(), **changes)


FALSE: dict[str, Callable[[JobStory], Evidence]] = {
    "another parent": lambda s: false_evidence(s, parent=cid("else")),
    "another model": lambda s: false_evidence(s, model=cid("else")),
    "a larger budget": lambda s: false_evidence(s, shares=Shares(BUDGET_WEI + 1)),
    "a missing contribution": lambda s: false_evidence(s, entries=s.evidence().entries[:2]),
    "another node's update": lambda s: false_evidence(
        s, entries=(replace(s.evidence().entries[0], cid=cid("else")), *s.evidence().entries[1:])
    ),
    "more samples": lambda s: false_evidence(
        s, entries=(replace(s.evidence().entries[0], samples=641), *s.evidence().entries[1:])
    ),
    "a reward that no score explains": lambda s: with_leaf(s.evidence(), 1, reward_wei=7, cumulative_wei=7),
    "a score not in its entry": lambda s: with_leaf(s.evidence(), 0, score=9),
    "a cumulative reward from nowhere": lambda s: with_leaf(s.evidence(), 2, cumulative_wei=BUDGET_WEI),
    "a stranger's leaf": lambda s: false_evidence(
        s,
        leaves=(*s.evidence().leaves, Leaf(address(77), 0, 0, 0, 5)),
    ),
    "a node left out": lambda s: false_evidence(s, leaves=s.evidence().leaves[1:]),
    "another score": lambda s: false_evidence(
        s, entries=(replace(s.evidence().entries[0], score=9), *s.evidence().entries[1:])
    ),
}


@pytest.mark.parametrize("lie", FALSE)
def test_false_evidence_is_refused_and_changes_nothing(
    settled: tuple[Indexer, JobStory], path: Path, lie: str
) -> None:
    indexer, story = settled
    evidence = FALSE[lie](story)
    evidence_cid = story.settle(evidence)
    catch_up(indexer)
    before = dump(path, *DERIVED, "evidence")
    with pytest.raises(VerificationFailed):
        indexer.add_evidence(evidence, evidence_cid)
    assert dump(path, *DERIVED, "evidence") == before


def test_evidence_that_is_not_the_settled_one_is_refused(settled: tuple[Indexer, JobStory]) -> None:
    indexer, story = settled
    evidence = story.evidence()
    evidence_cid = story.settle(evidence)
    catch_up(indexer)
    with pytest.raises(VerificationFailed, match="other evidence"):
        indexer.add_evidence(story.evidence(scores=(1, 1, 0)), cid("else"))
    with pytest.raises(VerificationFailed, match="root"):
        indexer.add_evidence(replace(evidence, method="else", leaves=evidence.leaves[:1]), evidence_cid)


def test_waiting_evidence_that_proves_false_is_dropped(settled: tuple[Indexer, JobStory], path: Path) -> None:
    indexer, story = settled
    evidence = with_leaf(story.evidence(), 0, score=9)
    evidence_cid = story.settle(evidence)
    assert not indexer.add_evidence(evidence, evidence_cid)
    catch_up(indexer)
    assert [s.evidence for s in indexer.missing_evidence()] == [evidence_cid]
    assert dump(path, "evidence", "leaves") == {"evidence": [], "leaves": []}


def test_cumulative_rewards_go_on_from_the_round_before(
    settled: tuple[Indexer, JobStory], chain: FakeChain
) -> None:
    indexer, story = settled
    first = story.evidence()
    first_cid = story.settle(first)
    story.whole_round()
    good = story.evidence()
    bad = with_leaf(good, 0, cumulative_wei=good.leaves[0].cumulative_wei + 1)
    bad_cid = story.settle(bad)
    catch_up(indexer)
    # without the first round's leaves nothing speaks against the second's
    assert indexer.add_evidence(bad, bad_cid)
    assert indexer.add_evidence(first, first_cid)
    assert [s.evidence for s in indexer.missing_evidence()] == [bad_cid]
    with pytest.raises(VerificationFailed, match="in all"):
        indexer.add_evidence(bad, bad_cid)
