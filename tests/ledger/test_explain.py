"""Every payment has its numbers, and every one that did not come has its reason, at each step of a round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dfl_ledger.explain import AssetEarning, Evaluation, Explainer, Explanation, Unpaid
from dfl_ledger.indexer import Indexer
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import REFUSED, Opening
from tests.conformance.ledger_story import ETHER
from tests.ledger.conftest import MemoryWorld
from tests.ledger.fake_chain import FakeChain, JobStory, address
from tests.ledger.indexer.conftest import catch_up
from tests.ledger.scored_round import ScoredRound, with_leaf


@pytest.fixture
def round_(tmp_path: Path) -> Iterator[ScoredRound]:
    played = ScoredRound(MemoryWorld(), tmp_path / "node")
    played.submit()
    yield played
    played.close()


def explainer(played: ScoredRound) -> Explainer:
    return Explainer(played.rows, played.requester.now())


def piece(played: ScoredRound, index: int = 0) -> Explanation:
    found = played.rows.contribution(f"{played.job}.1.{index}")
    assert found is not None
    return explainer(played).contribution(found)


def seat(played: ScoredRound, number: int = 0) -> Evaluation:
    return explainer(played).evaluation(played.job, 1, 0, number)


def dataset(played: ScoredRound) -> AssetEarning:
    (found,) = explainer(played).assets(played.owner.address, 10)[:1]
    return found


def reasons(played: ScoredRound) -> tuple[Unpaid | None, ...]:
    """Of a contribution, an evaluator, a data set."""
    return piece(played).money.unpaid, seat(played).money.unpaid, dataset(played).money.unpaid


def test_a_round_from_its_pieces_to_its_claims(round_: ScoredRound) -> None:
    assert dataset(round_).money.unpaid is Unpaid.OPEN
    round_.train()
    assert piece(round_).money.unpaid is Unpaid.UNSCORED
    assert "its 2 evaluators are not drawn yet" in piece(round_).money.reason
    round_.judge()
    assert "of 2 evaluators 2 have committed to their scores and 0 shown them" in piece(round_).money.reason
    assert [j.tx for j in piece(round_).judgements] == [None, None]
    round_.show()
    assert reasons(round_) == (Unpaid.UNSETTLED,) * 3
    assert piece(round_).money.formula is not None  # what it will bring is known already
    evidence = round_.evidence()
    settlement = round_.settle(evidence)
    assert reasons(round_) == (Unpaid.NO_EVIDENCE,) * 3
    round_.index.add_evidence(evidence, settlement.evidence)
    assert reasons(round_) == (Unpaid.WINDOW,) * 3
    settled = round_.requester.settlement(round_.job, 1)
    assert settled is not None
    round_.world.reach(settled.claimable_at)
    assert reasons(round_) == (Unpaid.CLAIMABLE,) * 3
    round_.claim(evidence)
    assert reasons(round_) == (None,) * 3
    assert piece(round_).money.claim_tx == round_.rows.claims(round_.nodes[0].address)[0].tx


def test_the_numbers_are_those_that_were_paid(round_: ScoredRound) -> None:
    round_.train()
    round_.judge()
    round_.show()
    evidence = round_.evidence()
    round_.index.add_evidence(evidence, round_.settle(evidence).evidence)
    for index, entry in enumerate(evidence.entries):
        told = piece(round_, index)
        total = sum(max(other.score, 0) for other in evidence.entries)
        assert told.median == entry.score / 10**9
        assert told.money.pot_wei == 75 * ETHER
        assert (told.money.weight, told.money.total_weight) == (max(entry.score, 0), total)
        assert told.money.formula == (
            f"{75 * ETHER} wei * {entry.score} // {total} = {told.money.reward_wei} wei"
        )
        assert told.money.reward_wei == evidence.leaves[evidence.reward_tree.place_of(entry.node)].reward_wei
        assert [j.score for j in told.judgements] == [told.median] * 2
        assert {j.evaluator for j in told.judgements} == {judge.address for judge in round_.judges}
    judged = seat(round_)
    assert judged.money.reward_wei == 5 * ETHER // 2
    assert judged.money.formula == f"{5 * ETHER} wei * 1 // 2 = {5 * ETHER // 2} wei"
    lent = dataset(round_)
    assert (lent.asset, lent.kind, lent.median) == (round_.asset, "dataset", round_.data_worth() / 10**9)
    assert lent.used_by == (round_.nodes[0].address,)
    assert (lent.money.reward_wei, lent.money.share) == (20 * ETHER, 0.2)


def test_who_showed_no_scores_earns_nothing(round_: ScoredRound) -> None:
    round_.train()
    round_.judge()
    round_.show(seats=[0])
    evidence = round_.evidence()
    round_.index.add_evidence(evidence, round_.settle(evidence).evidence)
    silent = seat(round_, 1)
    assert silent.money.unpaid is Unpaid.WITHHELD
    assert silent.withheld_tx is not None
    assert silent.money.reason == f"it showed no scores: it lost its bond for that in {silent.withheld_tx}"
    assert silent.money.reward_wei == 0
    assert [j.tx is None for j in piece(round_).judgements] == [False, True]


def test_who_measured_otherwise_is_shown(round_: ScoredRound) -> None:
    round_.train()
    weights = [s.weight for s in round_.requester.seats(round_.job, 1)]
    light = weights.index(min(weights))
    round_.judge(off={light: 10**9})
    round_.show()
    assert [j.outlier for j in piece(round_).judgements] == [at == light for at in (0, 1)]
    assert seat(round_, light).outliers == (round_.nodes[0].address,)
    assert seat(round_, 1 - light).outliers == ()


def test_a_refused_piece(round_: ScoredRound) -> None:
    round_.train()
    round_.judge(off=dict.fromkeys((0, 1), REFUSED - round_.measured().pieces[0]))
    round_.show()
    told = piece(round_)
    assert (told.money.unpaid, told.median) == (Unpaid.REFUSED, None)
    assert told.money.reason == "refused: by the median of its evaluators"
    assert all(j.refused for j in told.judgements)
    evidence = round_.evidence({0: "its norm is 40 times the median"})
    round_.index.add_evidence(evidence, round_.settle(evidence).evidence)
    assert piece(round_).money.reason == "refused: its norm is 40 times the median"


def test_an_overturned_settlement(round_: ScoredRound) -> None:
    round_.train()
    round_.judge()
    round_.show()
    right, place = round_.evidence(), 0
    mine = right.leaves[place]
    wrong = with_leaf(right, place, reward_wei=mine.reward_wei - 5, cumulative_wei=mine.cumulative_wei - 5)
    round_.settle(wrong)
    scores, subject = wrong.score_tree, right.facts.subject_of[mine.account, 0]
    opening = round_.rows.opening(round_.job, 1)
    assert isinstance(opening, Opening)
    round_.requester.challenge_reward(
        round_.job,
        1,
        opening,
        place,
        wrong.leaves[place],
        wrong.reward_tree.proof(place),
        scores.leaves[subject],
        scores.proof(subject),
    )
    round_.read()
    told = piece(round_)
    assert told.money.unpaid is Unpaid.OVERTURNED
    (note,) = told.money.notes
    assert note.startswith(f"a settlement of {round_.nodes[0].address} was overturned in 0x")
    assert note.endswith("its reward was wrong")
    (offence,) = round_.rows.offences(node=round_.nodes[0].address)
    assert offence.kind == "wrong settlement"


def test_a_banned_node(tmp_path: Path) -> None:
    chain = FakeChain()
    indexer = Indexer(tmp_path / "ledger.sqlite", chain.ledger, deployment_key="test", start_block=1)
    story = JobStory(chain)
    story.create()
    story.whole_round()
    evidence = story.evidence()
    cid = story.settle(evidence)
    failed = {"job": 1, "round": 1, "node": address(1), "audit": 0, "appealUntil": 9}
    chain.mine(("AuditFailed", failed), ("NodeBanned", {"job": 1, "node": address(1)}))
    catch_up(indexer)
    indexer.add_evidence(evidence, cid)
    with LedgerRows(tmp_path / "ledger.sqlite") as rows, closing(indexer):
        found = rows.contribution("1.1.0")
        assert found is not None
        told = Explainer(rows, 2000).contribution(found)
        assert told.money.notes == (
            "its audit 0 failed, which may be appealed",
            "its node is banned from the job: it can earn nothing more there",
        )
        assert told.money.unpaid is Unpaid.CLAIMABLE  # what it earned before, stays its own
