"""The table of rewards: how a budget is parted and what judging costs; a misfit is refused by its field."""

from __future__ import annotations

import pytest

from dfl_ledger.errors import SpecInvalid
from dfl_ledger.records import Cid
from dfl_node import jobspec
from dfl_node.jobspec import JobSpec
from dfl_node.specrewards import SharesSpec

from .test_specrules import parsed, refusal


def published(spec: JobSpec, anchor: bytes = b"") -> JobSpec:
    return spec.with_validation(Cid.of(b"rows", 0x70), anchor)


def test_three_evaluators_share_a_twentieth_and_stake_twice_what_they_earn() -> None:
    reward = parsed().reward
    assert (reward.evaluators, reward.shares) == (3, SharesSpec(evaluators_bps=500))
    assert reward.bond_wei == reward.required_stake_wei == -(-(10**18) // 3)
    assert reward.compute_bps == 9500


def test_without_evaluators_nothing_is_set_aside_for_them() -> None:
    reward = parsed(reward__evaluators="0").reward
    assert (reward.shares, reward.bond_wei, reward.required_stake_wei) == (SharesSpec(), 0, 0)


@pytest.mark.parametrize("bps", [1, 7, 1250, 2999, 9499])
def test_percent_are_exact_basis_points(bps: int) -> None:
    spec = parsed(reward__shares=f"{{ data = {bps / 100} }}")
    assert spec.reward.shares == SharesSpec(data_bps=bps, evaluators_bps=500)
    assert jobspec.decode(published(spec).encode()).reward.shares == spec.reward.shares


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("reward.shares", {"reward__shares": "{ data = 95 }"}),
        ("reward.shares.evaluators", {"reward__shares": "{ evaluators = 0 }"}),
        ("reward.shares.evaluators", {"reward__evaluators": "0", "reward__shares": "{ evaluators = 1 }"}),
        ("reward.model_asset", {"reward__model_asset": "1"}),
        ("reward.model_asset", {"reward__shares": "{ model = 1 }"}),
        ("reward.algorithm_asset", {"reward__algorithm_asset": "1"}),
        ("reward.bond", {"reward__bond": '"0.333333333333333333"'}),
        ("reward.required_stake", {"reward__bond": "2", "reward__required_stake": "1"}),
        ("reward.audits", {"reward__evaluators": "0", "reward__audits": "1"}),
        ("reward.audits", {"reward__audits": "1", "model__personal": '["fc2.*"]'}),
        ("reward.audits", {"reward__audits": "1", "training__strategy": '"scaffold"'}),
        ("reward.score_s", {"reward__audits": "1", "reward__score_s": "19"}),
        ("reward.sealed", {"reward__evaluators": "0", "reward__sealed": "true"}),
        ("reward.validation", {"reward__validation": '"/srv/rows.npz"'}),
        ("reward.validation", {"reward__validation": '"rows.npz"', "reward__sealed": "true"}),
        ("reward.seal_anchor", {"reward__seal_anchor": f'"{"00" * 32}"'}),
    ],
)
def test_what_does_not_fit_together_is_refused_by_its_name(field: str, fields: dict[str, str]) -> None:
    assert refusal(**fields).field == field


@pytest.mark.parametrize("mode", ["chained", "pipeline"])
def test_audits_recompute_updates(mode: str) -> None:
    assert refusal(mode, reward__audits="1").field == "reward.audits"


@pytest.mark.parametrize("mode", ["chained", "pipeline"])
def test_sealed_rows_are_for_updates(mode: str) -> None:
    assert refusal(mode, reward__sealed="true").field == "reward.sealed"


def test_a_published_job_whose_rows_nobody_could_unseal_is_refused() -> None:
    with pytest.raises(SpecInvalid) as refused:
        jobspec.decode(published(parsed(reward__sealed="true")).encode())
    assert refused.value.field == "reward.seal_anchor"


def test_a_path_is_not_published() -> None:
    spec = parsed(reward__sealed="true", reward__validation='"/srv/rows.npz"')
    with pytest.raises(SpecInvalid, match="validation"):
        spec.encode()


def test_the_anchor_of_sealed_rows_is_set_at_submission() -> None:
    anchor = bytes(range(32))
    spec = published(parsed(reward__sealed="true"), anchor)
    assert jobspec.decode(spec.encode()) == spec
    assert spec.terms(Cid.of(b"spec", 0x70), Cid.of(b"model", 0x70)).seal_anchor == anchor
    public = published(parsed())
    assert public.terms(Cid.of(b"spec", 0x70), Cid.of(b"model", 0x70)).seal_anchor == bytes(32)
