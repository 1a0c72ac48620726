"""The attacks benchmark: its members against the trainer's own steps, and what its quick part shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks import attacks
from dfl_node.train.evaluation import Inputs

import adversaries  # isort: skip  found once `attacks` is imported
import virtual_job  # isort: skip
import virtual_members  # isort: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def quick() -> dict[tuple[str, str], virtual_job.Outcome]:
    """Every job of `--quick`, by attack and defence."""
    return {
        (cell.attack, cell.defence.name): virtual_job.Job(cell.setting(1)).run(attacks.QUICK_ROUNDS)
        for cell in attacks.QUICK
    }


def test_members_work_as_the_trainer_does() -> None:
    everything, parts = virtual_members.digits().train, virtual_members.split(4, 0.5, 1)
    shards = [Inputs(everything.x[part], everything.y[part]) for part in parts]
    parent = virtual_members.first(1)
    for round_ in (1, 2):
        found = virtual_members.work(parent, shards, 7, round_)
        for member, shard in enumerate(shards):
            expected = virtual_members.done_again(parent, shard, 7, round_, member)
            assert float((found[member] - expected).norm() / expected.norm()) < 1e-5
        parent = parent - found.mean(0)


def test_audits_keep_what_the_mean_loses(quick: dict[tuple[str, str], virtual_job.Outcome]) -> None:
    clean = quick[attacks.NONE, attacks.BEST.name].accuracy
    assert clean > 0.85
    assert quick["inner product 3", "mean"].accuracy < 0.2
    assert quick[adversaries.LABEL_FLIP, "mean"].accuracy < clean - 0.05
    for attack in ("inner product 3", adversaries.LABEL_FLIP):
        assert quick[attack, attacks.BEST.name].accuracy > clean - 0.05  # after 16 rounds; 40 make it up


def test_audits_ban_attackers_and_nobody_else(quick: dict[tuple[str, str], virtual_job.Outcome]) -> None:
    for outcome in quick.values():
        assert outcome.false_bans == 0
        assert outcome.furthest < 1e-5
    found = quick["inner product 3", attacks.BEST.name]
    assert found.banned >= 6  # of 8, two audits a round
    assert found.net == 0.0
    assert quick[adversaries.LABEL_FLIP, attacks.BEST.name].banned == 0  # an audit cannot see it


def test_rows_that_lie_are_not_paid(quick: dict[tuple[str, str], virtual_job.Outcome]) -> None:
    assert quick[adversaries.LABEL_FLIP, attacks.BEST.name].net < 0.05


def test_copies_are_banned_at_once() -> None:
    """Two copies without a disguise: near-duplicates are all audited, and the copied one passes."""
    setting = virtual_job.Setting(adversaries.MIMIC, 2, "mean", False, True, None, 1)
    job = virtual_job.Job(setting)
    job.attack = lambda honest, own, random: honest[:1].expand_as(own).clone()
    outcome = job.run(1)
    assert (outcome.banned, outcome.false_bans) == (2, 0)


@pytest.mark.parametrize("attack", list(adversaries.ATTACKS))
def test_attacks_are_what_they_are_called(attack: str) -> None:
    random, generator = torch.Generator().manual_seed(1), virtual_job.np.random.RandomState(1)
    honest, own = torch.randn(12, 50, generator=random) + 1, torch.randn(8, 50, generator=random)
    sent = adversaries.ATTACKS[attack](honest, own, generator)
    assert sent.shape == own.shape
    mean, disguise = honest.mean(0), 2 * adversaries.DISGUISE
    match attack.split():
        case ["label", _]:
            assert torch.equal(sent, own)
        case ["sign", _]:
            assert torch.equal(sent, -own)
        case ["noise"]:
            longer = sent.norm(dim=1) / honest.norm(dim=1).mean()
            assert longer == pytest.approx(adversaries.NOISE_LENGTHS, rel=1e-5)
        case ["inner", _, factor]:
            for row in sent:
                expected = float(factor) * mean.norm()
                assert float((row + float(factor) * mean).norm()) < disguise * expected
        case ["ALIE"]:
            assert bool(((sent - mean).abs() < 2 * honest.std(0)).float().mean() > 0.95)
        case ["MinMax"]:
            furthest = torch.cdist(sent, honest).max()
            assert float(furthest) < 1.05 * float(torch.cdist(honest, honest).max())
        case ["mimic"]:
            assert float((sent - honest[0]).norm(dim=1).max()) < disguise * float(honest[0].norm())
    if attack not in (adversaries.LABEL_FLIP, "sign flip", "noise"):
        assert len({row.numpy().tobytes() for row in sent}) == len(own)  # each in its own disguise


def test_tables_name_the_worst_attack() -> None:
    outcome = virtual_job.Outcome(0.9, 0, 0, 0, 10, 1e-7, 0.0, 0.0, 0.5, 0.001)
    results: attacks.Results = {cell: [outcome] for cell in attacks.grid()}
    low = attacks.Cell("IID", 0.4, "ALIE", attacks.BEST)
    results[low] = [attacks.Outcome(**{**vars_of(outcome), "accuracy": 0.8})]
    assert "80.0 (ALIE)" in attacks.tables(results)
    found = next(w for w in attacks.summary(results)["worst"] if (w["data"], w["fraction"]) == ("IID", 0.4))
    assert (found["attack"], found["points_lost"]) == ("ALIE", pytest.approx(10))


def vars_of(outcome: virtual_job.Outcome) -> dict[str, object]:
    return {name: getattr(outcome, name) for name in outcome.__dataclass_fields__}
