"""Blocks that are replaced: the ledger ends as if it had read the new chain alone."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from dfl_ledger.errors import ChainUnreachable, ReorgTooDeep
from dfl_ledger.evidence import Evidence
from dfl_ledger.indexer import Indexer
from dfl_ledger.query import open_ledger
from dfl_ledger.records import Event
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
    chain.rewind(2, "other")  # the panel's scores, and the settlement by them
    story.leaves, story.payees = (), story.payees[:-1]
    evidence = story.evidence(scores=(1, 1, 0))
    evidence_cid = story.settle(evidence)
    chain.mine_empty(1)
    catch_up(indexer)
    assert [s.evidence for s in indexer.missing_evidence()] == [evidence_cid]
    with open_ledger(path) as rows:
        assert rows.revealed(1, 1)[0].score is None
    assert indexer.add_evidence(evidence, evidence_cid)
    check_equals_a_fresh_index(chain, path, indexer_of, evidence)


def test_an_overturned_settlement_comes_back_with_its_block(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    story = JobStory(chain)
    story.create()
    indexer = indexer_of(chain)
    evidence = [settled_round(chain, story, indexer), settled_round(chain, story, indexer)]
    story.overturn(1)
    catch_up(indexer)
    with open_ledger(path) as rows:
        assert rows.unsettled_rounds(1) == (1, 2)
        assert rows.revealed(1, 1)[0].score is None
        assert [(own.round, own.why) for own in rows.overturned(1)] == [(1, "reward"), (2, None)]
    check_equals_a_fresh_index(chain, path, indexer_of)
    chain.rewind(1, "other")
    chain.mine_empty(2)
    catch_up(indexer)
    with open_ledger(path) as rows:
        assert (rows.unsettled_rounds(1), rows.overturned(1)) == ((), ())
        assert rows.revealed(1, 2)[0].reward_wei == BUDGET_WEI * 3 // 4
    check_equals_a_fresh_index(chain, path, indexer_of, *evidence)


def check_stops_loudly(indexer: Indexer, path: Path) -> None:
    """Now and ever after, with everything it had said left as it was."""
    before = dump(path, "events", *DERIVED)
    for _ in range(2):
        with pytest.raises(ReorgTooDeep, match="replaced block") as stopped:
            catch_up(indexer)
    assert (stopped.value.exit_code, stopped.value.help_command) == (6, f"mv {path} {path}.old")
    assert dump(path, "events", *DERIVED) == before


WINDOW = 64
STEP = 10  # blocks that one step of the story below brings at most


@pytest.mark.parametrize("depth", [*range(1, WINDOW + 1), WINDOW + STEP, 2 * WINDOW])
def test_reorganisations_of_every_depth(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer, depth: int
) -> None:
    """Of a busy chain that is read as it grows: followed within the window, the end beyond it."""
    story = three_rounds(chain)
    indexer = indexer_of(chain)
    for number in range(2 * WINDOW + 3):
        register(chain, number % 7, stake_wei=number)
        if number % 5 == 0:
            story.whole_round()
        if number % 3 == 0:
            catch_up(indexer)
    catch_up(indexer)
    taken = chain.rewind(depth, "other")
    chain.replay(taken)  # as high as before: only the hashes differ
    if depth > WINDOW:
        check_stops_loudly(indexer, path)
        return
    again = catch_up(indexer)
    assert min(event.block for event in again) > chain.head() - depth - STEP  # no more than it must
    register(chain, 3, stake_wei=5)
    catch_up(indexer)
    check_equals_a_fresh_index(chain, path, indexer_of)


def test_a_reorganisation_deeper_than_the_window_is_still_one_after_a_restart(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    three_rounds(chain)
    indexer = indexer_of(chain, finality_blocks=2)
    catch_up(indexer)
    chain.rewind(9, "other")
    chain.mine_empty(12)
    check_stops_loudly(indexer, path)
    indexer.close()
    check_stops_loudly(indexer_of(chain, finality_blocks=2), path)


@pytest.mark.parametrize("depth", [4, 5, 6, 201])
def test_a_reorganisation_behind_a_long_silence(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer, depth: int
) -> None:
    three_rounds(chain)
    chain.mine_empty(200)
    indexer = indexer_of(chain, finality_blocks=5)
    catch_up(indexer)
    chain.rewind(depth, "other")
    register(chain, 1)
    chain.mine_empty(202)
    if depth > 5:
        check_stops_loudly(indexer, path)
        return
    assert [event.name for event in catch_up(indexer)] == ["NodeRegistered"]
    check_equals_a_fresh_index(chain, path, indexer_of)


@pytest.mark.parametrize("jobs_before", [1, 10])
def test_another_chain_under_the_same_name(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer, jobs_before: int
) -> None:
    """A development chain that was started anew: same id, same addresses, another past."""
    for job in range(jobs_before):
        three_rounds(chain, job + 1)
    indexer = indexer_of(chain, finality_blocks=3)
    catch_up(indexer)
    indexer.close()
    restarted = FakeChain(branch="restarted")
    restarted.mine_empty(3)
    three_rounds(restarted, job=1)
    indexer = indexer_of(restarted, finality_blocks=3)
    if jobs_before == 10:  # so far it might be an endpoint that lags
        assert indexer.step() == []
        restarted.mine_empty(200)
    check_stops_loudly(indexer, path)


def test_a_chain_that_changes_while_it_is_read(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events come from another branch than the block that was asked for before them."""
    story = three_rounds(chain)
    indexer = indexer_of(chain)
    catch_up(indexer)
    story.whole_round()
    read = FakeChain.events

    def changing(self: FakeChain, from_block: int, to_block: int) -> list[Event]:
        monkeypatch.undo()
        taken = self.rewind(3, "other")
        self.mine_empty(1)
        self.replay(taken)
        return read(self, from_block, to_block)

    monkeypatch.setattr(FakeChain, "events", changing)
    with suppress(ChainUnreachable):
        indexer.step()
    catch_up(indexer)
    check_equals_a_fresh_index(chain, path, indexer_of)


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
