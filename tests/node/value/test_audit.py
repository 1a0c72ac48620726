"""Audits: who is drawn, what can be audited, the verdict, bans and appeals."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from dfl_ledger.errors import SpecInvalid, UpdateRefused, UsageError, VerificationFailed
from dfl_ledger.records import Address
from dfl_node.train.trainer import AggregationConfig, ModelConfig, TrainingConfig
from dfl_node.value import audit
from dfl_node.value.audit import Bans

TRAINING = TrainingConfig(6, 16, 0.05, 0.9, "sgd", 1, 1 << 20)
MODEL = ModelConfig("mlp", {})
ALICE, BOB, CAROL, DAVE, EVE = (Address(f"0x{n:040x}") for n in range(1, 6))
GOLDEN = [(7, 0, 5, 2), (1, 7, 2, 0)]  # of draws 0 and 1: 4 of 10


# -- draws --------------------------------------------------------------------------------------------
def test_the_same_draw_gives_the_same_places() -> None:
    """Golden: a contract and other nodes draw these too."""
    assert audit.drawn(0, 20, 3) == audit.drawn(0, 20, 3)
    assert audit.drawn(2**256 - 1, 5, 5) != audit.drawn(2**256 - 2, 5, 5)
    assert [audit.drawn(draw, 10, 4) for draw in (0, 1)] == GOLDEN


@pytest.mark.parametrize(("n", "k"), [(0, 0), (0, 3), (1, 1), (5, 0), (5, 3), (5, 5), (5, 9), (200, 7)])
def test_places_are_drawn_once(n: int, k: int) -> None:
    for draw in range(50):
        found = audit.drawn(draw, n, k)
        assert len(set(found)) == len(found) == min(n, k)
        assert all(0 <= place < n for place in found)


def test_a_longer_draw_begins_as_a_shorter_one() -> None:
    for draw in range(50):
        assert audit.drawn(draw, 30, 10)[:4] == audit.drawn(draw, 30, 4)


def test_everybody_is_drawn_equally_often() -> None:
    random = Random(1)  # noqa: S311
    counts = Counter(place for _ in range(6000) for place in audit.drawn(random.getrandbits(256), 6, 2))
    assert all(abs(counts[place] - 2000) < 200 for place in range(6))  # 5 standard deviations


def test_impossible_draws() -> None:
    for draw, n, k in ((-1, 3, 1), (2**256, 3, 1), (0, -1, 1), (0, 3, -1)):
        with pytest.raises(ValueError, match="cannot draw"):
            audit.drawn(draw, n, k)


def test_copies_are_audited_too() -> None:
    for draw in range(20):
        drawn = set(audit.drawn(draw, 10, 1))
        assert audit.audited(draw, 10, 1, [(2, 7), (4,)]) == tuple(sorted(drawn | {2, 7}))
        assert audit.audited(draw, 10, 1) == tuple(drawn)


def test_juries_are_fresh() -> None:
    everyone = [ALICE, BOB, CAROL, DAVE, EVE]
    for draw in range(30):
        found = audit.jury(draw, everyone, 2, {ALICE, BOB})
        assert set(found) <= {CAROL, DAVE, EVE}
        assert len(found) == 2
        assert found == audit.jury(draw, reversed(everyone), 2, {BOB, ALICE})
    assert set(audit.jury(1, everyone, 9, {EVE})) == {ALICE, BOB, CAROL, DAVE}
    assert len({audit.jury(draw, everyone, 1, ()) for draw in range(50)}) == 5


# -- what can be audited ------------------------------------------------------------------------------
@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam", "fedyogi", "diloco"])
def test_what_depends_on_the_round_alone_can_be_done_again(strategy: str) -> None:
    audit.check_recomputable(MODEL, AggregationConfig(strategy))


def test_what_stays_on_a_node_cannot() -> None:
    with pytest.raises(SpecInvalid, match="audited job") as caught:
        audit.check_recomputable(replace(MODEL, personal=("*",)), AggregationConfig())
    assert caught.value.field == "model.personal"
    with pytest.raises(SpecInvalid, match="all earlier rounds") as caught:
        audit.check_recomputable(MODEL, AggregationConfig("scaffold"))
    assert caught.value.field == "training.strategy"


def test_samples_say_how_many_steps() -> None:
    assert [audit.steps_of(16 * steps, TRAINING) for steps in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    for samples in (1, 15, 17, 16 * 7):
        with pytest.raises(VerificationFailed, match="whole batches"):
            audit.steps_of(samples, TRAINING)
    for samples in (0, -16):
        with pytest.raises(UpdateRefused):
            audit.steps_of(samples, TRAINING)


# -- verdict, bans, appeals ---------------------------------------------------------------------------
def test_only_what_is_near_passes() -> None:
    for distance in (0.0, 1e-7, audit.TOLERANCE):
        assert audit.objection(distance) == ""
    for distance in (audit.TOLERANCE * 1.01, 2.0, math.inf, math.nan, -1.0):
        assert "of its length" in audit.objection(distance)
    assert audit.objection(0.1, tolerance=0.2) == ""


def test_a_failed_audit_bans_and_nothing_changes_in_place() -> None:
    none = Bans()
    one = none.failed(ALICE, 3, "it differs", [BOB])
    assert ALICE in one
    assert ALICE not in none
    assert one.failed(ALICE, 4, "again", [CAROL]) == one
    assert (one.banned[ALICE].round, one.banned[ALICE].judges) == (3, (BOB,))
    with pytest.raises(UsageError, match="judge itself"):
        none.failed(ALICE, 3, "", [ALICE])


@pytest.mark.parametrize(
    ("votes", "stands"),
    [
        ({CAROL: True, DAVE: True, EVE: False}, True),
        ({CAROL: True, DAVE: False, EVE: False}, False),
        ({CAROL: True, DAVE: False}, False),  # a tie
        ({CAROL: True}, True),
        ({}, False),  # nobody confirms it
    ],
)
def test_a_fresh_jury_decides(votes: dict[Address, bool], stands: bool) -> None:
    banned = Bans().failed(ALICE, 3, "it differs", [BOB])
    after = banned.appealed(ALICE, votes)
    assert (ALICE in after) == stands
    assert ALICE in banned
    if stands:
        with pytest.raises(UsageError, match="has appealed"):
            after.appealed(ALICE, {EVE: False})
    else:
        assert [ban.judges for ban in after.overturned[ALICE]] == [(BOB,)]  # whose stake pays for it
        with pytest.raises(UsageError, match="not banned"):
            after.appealed(ALICE, votes)


def test_who_was_cleared_can_be_banned_again() -> None:
    cleared = Bans().failed(ALICE, 3, "", [BOB]).appealed(ALICE, {})
    again = cleared.failed(ALICE, 5, "", [CAROL])
    assert ALICE in again
    assert not again.banned[ALICE].appealed
    twice = again.appealed(ALICE, {})
    assert [ban.round for ban in twice.overturned[ALICE]] == [3, 5]


def test_parties_do_not_judge() -> None:
    banned = Bans().failed(ALICE, 3, "", [BOB])
    for party in (ALICE, BOB):
        with pytest.raises(UsageError, match="fresh juror"):
            banned.appealed(ALICE, {party: False, CAROL: False})


# -- what follows -------------------------------------------------------------------------------------
def test_bans_leave_fewer_to_bear() -> None:
    assert [audit.hostile_left(8, out) for out in (0, 3, 8, 9)] == [8, 5, 0, 0]


def test_the_stake_is_what_a_cheat_earns_until_it_is_found() -> None:
    assert audit.deterring_stake_wei(20, 1, 5) == 100
    assert audit.deterring_stake_wei(20, 3, 5) == 34  # rounded up
    random, wei, stake = Random(2), 5, audit.deterring_stake_wei(20, 2, 5)  # noqa: S311
    found = []
    for _ in range(3000):
        rounds = 1
        while 0 not in audit.drawn(random.getrandbits(256), 20, 2):
            rounds += 1
        found.append(rounds * wei)
    assert sum(found) / len(found) == pytest.approx(stake, rel=0.06)
    with pytest.raises(ValueError, match="audits"):
        audit.deterring_stake_wei(20, 0, 5)
