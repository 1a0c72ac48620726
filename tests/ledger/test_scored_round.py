"""Whoever was not there recounts a scored round, and finds what a settler or an evaluator lied about."""

from __future__ import annotations

import csv
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from dfl_ledger.errors import BlobNotFound, VerificationFailed
from dfl_ledger.evidence import Evidence
from dfl_node.cli import cli
from dfl_node.train.memory import MemoryTrainer
from tests.ledger.conftest import ChainWorld, MemoryWorld
from tests.ledger.scored_round import ScoredRound, with_leaf

ALL = [
    *("evidence", "chain", "medians", "score tree", "rewards", "cumulative", "reward tree"),
    *("model", "scores", "payouts"),
]


@pytest.fixture
def round_(tmp_path: Path) -> Iterator[ScoredRound]:
    played = ScoredRound(MemoryWorld(), tmp_path / "node")
    yield played
    played.close()


def verify(played: ScoredRound) -> list[str]:
    said: list[str] = []
    trio.run(played.verifier(said).verify_round, 1)
    return said


def found_wrong(played: ScoredRound, what: str, why: str) -> list[str]:
    """The checks before the one that must fail."""
    said: list[str] = []
    verifier = played.verifier(said)
    with pytest.raises(VerificationFailed, match=f"fails the check of its {what}.*{why}") as caught:
        trio.run(verifier.verify_round, 1)
    assert caught.value.exit_code == 6
    return said


def test_an_honest_round_holds_before_and_after_it_is_paid(round_: ScoredRound) -> None:
    evidence = round_.settled()
    assert verify(round_) == ALL
    before = round_.owner.balance_wei(round_.owner.address)
    round_.claim(evidence)
    assert verify(round_) == ALL
    assert round_.owner.balance_wei(round_.owner.address) - before == 20 * 10**18


def less_reward(right: Evidence) -> Evidence:
    mine = right.leaves[0]
    return with_leaf(right, 0, reward_wei=mine.reward_wei - 5, cumulative_wei=mine.cumulative_wei - 5)


def less_in_all(right: Evidence) -> Evidence:
    return with_leaf(right, 1, cumulative_wei=right.leaves[1].cumulative_wei - 5)


def another_score(right: Evidence) -> Evidence:
    other = replace(right.entries[0], score=right.entries[0].score + 5)
    return replace(right, entries=(other, *right.entries[1:]))


def more_samples(right: Evidence) -> Evidence:
    other = replace(right.entries[0], samples=right.entries[0].samples + 1)
    return replace(right, entries=(other, *right.entries[1:]))


LIES: dict[str, tuple[Callable[[Evidence], Evidence], str, int]] = {
    "chain": (more_samples, r"contributions\[0\]", 1),
    "medians": (another_score, "the panel's median is", 2),
    "rewards": (less_reward, "is due", 4),
    "cumulative": (less_in_all, "wei in all, not", 5),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_the_settler_lied_about_is_named(round_: ScoredRound, lie: str) -> None:
    tell, why, before = LIES[lie]
    round_.submit()
    round_.train()
    round_.judge()
    round_.show()
    round_.settle(tell(round_.evidence()))
    assert found_wrong(round_, lie, why) == ALL[:before]


@pytest.mark.parametrize("lie", [10**9, -(10**9)])
def test_evaluators_who_lied_about_a_data_set_are_found(round_: ScoredRound, lie: int) -> None:
    round_.submit()
    round_.train()
    round_.judge(data_off=lie)
    round_.show()
    evidence = round_.evidence()
    round_.index.add_evidence(evidence, round_.settle(evidence).evidence)
    worth = round_.data_worth()
    assert worth > 0
    why = (
        f"data set {round_.asset} got {worth + lie}e-9, recomputed {worth}e-9; outside the tolerance: seat 0"
    )
    assert found_wrong(round_, "scores", why) == ALL[:8]


def test_roots_that_are_not_those_of_the_evidence(round_: ScoredRound) -> None:
    round_.submit()
    round_.train()
    round_.judge()
    round_.show()
    round_.settle(round_.evidence(), root=b"r" * 32)
    assert found_wrong(round_, "reward tree", "settled is root 0x7272") == ALL[:6]


def test_a_lie_whose_evidence_is_hidden_is_one_all_the_same(round_: ScoredRound) -> None:
    round_.submit()
    round_.train()
    round_.judge()
    round_.show()
    right = round_.evidence()
    round_.settle(less_reward(right), publish=False)
    assert found_wrong(round_, "reward tree", f"{right.reward_tree.total_wei} wei") == ["score tree"]


def test_hidden_evidence_is_no_lie(round_: ScoredRound) -> None:
    """The money is right; what is missing is missing (exit code 3)."""
    round_.submit()
    round_.train()
    round_.judge()
    round_.show()
    round_.settle(round_.evidence(), publish=False)
    said: list[str] = []
    verifier = round_.verifier(said)
    with pytest.raises(BlobNotFound) as caught:
        trio.run(verifier.verify_round, 1)
    assert (caught.value.exit_code, said) == (3, ["score tree", "reward tree"])


def test_a_model_that_the_pieces_do_not_give(round_: ScoredRound) -> None:
    round_.submit()
    round_.train(forged=b"another model")
    round_.judge()
    round_.show()
    round_.settle(round_.evidence())
    assert found_wrong(round_, "model", "recomputed") == ALL[:7]


def test_evaluators_that_measured_something_else_are_named(round_: ScoredRound) -> None:
    round_.submit()
    round_.train()
    round_.judge(off={0: 10**9, 1: 10**9})
    round_.show()
    round_.settle(round_.evidence())
    assert found_wrong(round_, "scores", r"outside the tolerance: seat 0 \(0x.*seat 1 \(0x") == ALL[:8]


def test_an_evaluator_alone_is_outvoted_and_named(round_: ScoredRound) -> None:
    round_.submit()
    round_.train()
    weights = [seat.weight for seat in round_.requester.seats(round_.job, 1)]
    light = weights.index(min(weights))
    round_.judge(off={light: 10**9})
    round_.show()
    round_.settle(round_.evidence())
    said: list[str] = []
    trio.run(round_.verifier(said, detailed=True).verify_round, 1)
    (scores,) = [line for line in said if line.startswith("scores")]
    assert f"outside the tolerance, and outvoted: seat {light} (0x" in scores


# -- on a real chain, by the command line -------------------------------------------------------------------
@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """`dfl-node ledger ... --json` on the data directory of a round, with the trainer that made it."""

    @asynccontextmanager
    async def open_trainer() -> AsyncIterator[MemoryTrainer]:
        yield MemoryTrainer()

    monkeypatch.setattr("dfl_node.train.process.open_trainer", open_trainer)
    monkeypatch.setattr("dfl_node.logs.configure", lambda *_: None)  # it would be that of all tests

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, ["ledger", *words, "--datadir", str(tmp_path / "node"), "--json"])

    return run


def test_a_paid_round_on_a_real_chain(
    world: ChainWorld, tmp_path: Path, command: Callable[..., Result]
) -> None:
    with closing(ScoredRound(world, tmp_path / "node")) as played:
        evidence = played.settled()
        before = played.owner.balance_wei(played.owner.address)
        played.claim(evidence)
        assert played.owner.balance_wei(played.owner.address) - before == 20 * 10**18
        done = command("verify", f"{played.job}.1")
        assert done.exit_code == 0, done.output
        assert [check["check"] for check in json.loads(done.stdout)["data"]["checks"]] == ALL
        explains(played, command)


def explains(played: ScoredRound, command: Callable[..., Result]) -> None:
    """Each kind of payment, to people and to programs."""
    done = command("explain", f"{played.job}.1.0")
    told = json.loads(done.stdout)["data"]
    assert (told["claim_tx"][:2], told["reason"], len(told["judgements"])) == ("0x", "", 2)
    assert told["formula"] in done.stderr
    assert "the median of 2 by stake" in done.stderr
    assert all(judge.address in done.stderr for judge in played.judges)

    done = command("explain", played.judges[0].address)
    (seat,) = json.loads(done.stdout)["data"]["evaluations"]
    assert (seat["reward_wei"], seat["claim_tx"][:2]) == (str(5 * 10**18 // 2), "0x")
    assert f"{5 * 10**18} wei * 1 // 2" in done.stderr

    done = command("explain", played.owner.address)
    lent = json.loads(done.stdout)["data"]["assets"][0]
    assert (lent["asset"], lent["kind"], lent["reward_wei"]) == (
        str(played.asset),
        "dataset",
        str(20 * 10**18),
    )
    assert "20 VNX" in done.stderr

    out = played.datadir / "rows.csv"
    assert json.loads(command("export", "--csv", str(out)).stdout)["data"]["rows"] == 2 + 2 + 2
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # the second round has opened, and nobody has earned anything in it
    assert [row["kind"] for row in rows] == [*["update"] * 2, *["evaluation"] * 2, *["dataset"] * 2]
    due = sum(int(row["reward_wei"] or 0) for row in rows)
    assert due == sum(leaf.reward_wei for leaf in played.rows.leaves(played.job, 1))
    assert (rows[4]["asset"], rows[4]["node"]) == (str(played.asset), played.owner.address)
    only = command("export", "--csv", "-", "--kind", "dataset", "--round", "1")
    assert json.loads(only.stdout)["data"]["rows"] == 1


def test_a_tampered_settlement_on_a_real_chain(
    world: ChainWorld, tmp_path: Path, command: Callable[..., Result]
) -> None:
    with closing(ScoredRound(world, tmp_path / "node")) as played:
        played.submit()
        played.train()
        played.judge()
        played.show()
        right = played.evidence()
        played.settle(less_reward(right))
        done = command("verify", str(played.job))
        assert done.exit_code == 6
        told = json.loads(done.stdout)["data"]
        assert told["error"]["what"].endswith("fails the check of its rewards")
        assert told["error"]["why"].startswith(
            f"{right.leaves[0].account} is due {right.leaves[0].reward_wei}"
        )
        assert [check["check"] for check in told["checks"]] == ALL[:4]
