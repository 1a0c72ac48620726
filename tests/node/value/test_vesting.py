"""When an audited job pays: after an audit, in standing, or not at all."""

from __future__ import annotations

from random import Random

import pytest

from dfl_node.value import vesting
from dfl_node.value.vesting import MEASURED, Account

GOOD = [1] * MEASURED
THREE = Account().earned(1, 10).earned(2, 20).earned(5, 50)


def test_nothing_is_paid_before_an_audit() -> None:
    assert (THREE.payable_wei, THREE.withheld_wei) == (0, 80)


def test_an_audit_pays_up_to_its_round() -> None:
    passed = THREE.passed(2, GOOD)
    assert (passed.payable_wei, passed.withheld) == (30, ((5, 50),))
    assert passed.passed(2, GOOD) == passed
    assert passed.passed(9, GOOD) == Account(80)


def test_an_early_audit_says_nothing_of_harm() -> None:
    assert THREE.passed(5, GOOD[1:]) == THREE


def test_work_that_does_harm_in_all_is_not_paid() -> None:
    lucky = [100, *[-12] * 9]
    assert THREE.passed(5, lucky) == THREE
    assert THREE.passed(5, [*lucky, 9]) == Account(80)
    assert THREE.ended(lucky) == THREE.ended([]) == Account(0, (), 80)


def test_what_was_paid_stays_and_the_rest_is_void() -> None:
    assert THREE.passed(2, GOOD).forfeited() == Account(30, (), 50)
    assert THREE.forfeited() == Account(0, (), 80)
    assert THREE.forfeited().earned(6, 7).ended([1]) == Account(7, (), 80)


def test_the_end_pays_what_is_left() -> None:
    assert THREE.ended([1]) == Account(80)


def test_the_last_audit_is_of_a_withheld_round() -> None:
    paid = THREE.passed(1, GOOD)
    assert {paid.exit_audit(draw) for draw in range(40)} == {2, 5}
    assert paid.exit_audit(3) == paid.exit_audit(3)
    assert THREE.ended([1]).exit_audit(3) is None


def test_rounds_rise() -> None:
    for round_, wei in ((5, 1), (4, 1), (6, -1)):
        with pytest.raises(ValueError, match="after"):
            THREE.earned(round_, wei)
    assert THREE.earned(6, 0) == THREE


def test_no_wei_is_made_or_lost() -> None:
    for seed in range(300):
        random, account, earned, round_ = Random(seed), Account(), 0, 0  # noqa: S311
        for _ in range(30):
            match random.randrange(5):
                case 0:
                    account = account.passed(random.randint(0, round_ + 1), random.choice(([], GOOD)))
                case 1 if random.random() < 0.3:
                    account = account.forfeited()
                case _:
                    round_ += random.randint(1, 2)
                    wei = random.randrange(100)
                    earned += wei
                    account = account.earned(round_, wei)
            assert account.payable_wei + account.withheld_wei + account.void_wei == earned
        assert account.ended([1]).withheld == ()
    assert vesting.MEASURED > 1
