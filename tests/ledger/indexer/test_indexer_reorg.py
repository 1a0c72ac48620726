"""Blocks that are replaced: the ledger ends as if it had read the new chain alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfl_ledger.evidence import Evidence
from dfl_ledger.indexer import Indexer
from dfl_ledger.query import open_ledger
from tests.ledger.fake_chain import (
    BUDGET_WEI,
    FakeChain,
    JobStory,
    register,
)
from tests.ledger.indexer.conftest import DERIVED, OpenIndexer, catch_up, dump, three_rounds


def settled_round(chain: FakeChain, story: JobStory, indexer: Indexer) -> Evidence:
    """One more round, settled, with its evidence added."""
    story.whole_round()
    evidence = story.evidence()
    evidence_cid = story.settle(evidence)
    catch_up(indexer)
    assert indexer.add_evidence(evidence, evidence_cid)
    return evidence


def check_equals_a_fresh_index(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer, *evidence: Evidence
) -> None:
    """Whatever happened before, the database is what reading this chain from its start gives."""
    fresh = path.with_name(f"fresh-{chain.branch}-{chain.head()}.sqlite")
    indexer = indexer_of(chain, fresh)
    catch_up(indexer)
    for found in evidence:
        settled = {(s.job, s.round): s for s in indexer.missing_evidence()}
        assert indexer.add_evidence(found, settled[found.job, found.round].evidence)
    assert dump(path, "events", *DERIVED) == dump(fresh, "events", *DERIVED)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 8])
def test_blocks_with_other_content(chain: FakeChain, path: Path, indexer_of: OpenIndexer, depth: int) -> None:
    register(chain, 1)
    other = three_rounds(chain, job=2)
    story = JobStory(chain)
    story.create()
    indexer = indexer_of(chain)
    evidence = settled_round(chain, story, indexer)
    register(chain, 1, stake_wei=7)
    register(chain, 2)
    catch_up(indexer)
    chain.rewind(depth, "other")
    other.end()
    chain.mine_empty(depth)
    new = catch_up(indexer)
    assert new[0].name == "JobEnded"
    check_equals_a_fresh_index(chain, path, indexer_of, *([] if depth >= 3 else [evidence]))


def test_the_same_transactions_in_other_blocks_keep_their_scores(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    story = JobStory(chain)
    story.create()
    indexer = indexer_of(chain)
    evidence = [settled_round(chain, story, indexer), settled_round(chain, story, indexer)]
    taken = chain.rewind(7, "other")
    chain.mine_empty(1)
    chain.replay(taken)
    catch_up(indexer)
    assert indexer.missing_evidence() == []
    check_equals_a_fresh_index(chain, path, indexer_of, *evidence)
    with open_ledger(path) as rows:
        assert rows.revealed(1, 2)[0].reward_wei == BUDGET_WEI * 3 // 4


def test_a_settlement_that_became_another_loses_its_scores(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    story = JobStory(chain)
    story.create()
    indexer = indexer_of(chain)
    settled_round(chain, story, indexer)
    chain.rewind(1, "other")
    story.leaves = ()
    evidence = story.evidence(scores=(1, 1, 0))
    evidence_cid = story.settle(evidence)
    chain.mine_empty(1)
    catch_up(indexer)
    assert [s.evidence for s in indexer.missing_evidence()] == [evidence_cid]
    with open_ledger(path) as rows:
        assert rows.revealed(1, 1)[0].score is None
    assert indexer.add_evidence(evidence, evidence_cid)
    check_equals_a_fresh_index(chain, path, indexer_of, evidence)


def test_a_reorganisation_deeper_than_the_window(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    story = three_rounds(chain)
    indexer = indexer_of(chain, finality_blocks=2)
    catch_up(indexer)
    chain.rewind(9, "other")
    story.model = "model 1.0"
    story.round = 1
    story.whole_round()
    chain.mine_empty(10)
    catch_up(indexer)
    check_equals_a_fresh_index(chain, path, indexer_of)


def test_a_reorganisation_behind_a_long_silence(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    story = three_rounds(chain)
    chain.mine_empty(200)
    indexer = indexer_of(chain, finality_blocks=5)
    catch_up(indexer)
    chain.rewind(201, "other")  # the last event's block too
    chain.mine_empty(202)
    catch_up(indexer)
    check_equals_a_fresh_index(chain, path, indexer_of)
    with open_ledger(path) as rows:
        assert rows.unsettled_rounds(story.job) == (1, 2)


@pytest.mark.parametrize("jobs_before", [1, 10])
def test_another_chain_under_the_same_name(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer, jobs_before: int
) -> None:
    """A development chain that was started anew: same id, same addresses, another past."""
    for job in range(jobs_before):
        three_rounds(chain, job + 1)
    indexer = indexer_of(chain, finality_blocks=3)
    catch_up(indexer)
    restarted = FakeChain(branch="restarted")
    restarted.mine_empty(3)
    three_rounds(restarted, job=1)
    register(restarted, 9)
    indexer.close()
    catch_up(indexer_of(restarted, finality_blocks=3))
    check_equals_a_fresh_index(restarted, path, indexer_of)


def test_an_endpoint_that_lags_behind_loses_nothing(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    story = three_rounds(chain)
    indexer = indexer_of(chain)
    catch_up(indexer)
    indexed = indexer.indexed
    for chain.shown_head in (indexed - 3, 0):
        assert indexer.step() == []
        assert indexer.indexed == indexed
        assert indexer.lag() == 0
    chain.shown_head = None
    story.end()
    assert [event.name for event in catch_up(indexer)] == ["JobEnded"]
    check_equals_a_fresh_index(chain, path, indexer_of)
