"""Jobs with adversaries: two of them played on a real chain, and the page's table against the record."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as for a command of that folder

import adversary_jobs  # isort: skip
from adversary_jobs import CASES, Chain, Outcome  # isort: skip
from played_job import BOND, BUDGET, Books, Money, Player  # isort: skip

from dfl_node.train.process import open_trainer  # isort: skip


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with adversary_jobs.chain_at(tmp_path_factory.mktemp("adversaries")) as found:
        yield found


def played(chain: Chain, name: str, folder: Path) -> Outcome:
    """One round of it."""

    async def play() -> Outcome:
        async with open_trainer(threads=1) as trainer:
            return await adversary_jobs.play(CASES[name], chain, trainer, folder / "job", rounds=1)

    return trio.run(play)


def test_who_never_reveals_loses_its_bond_and_nobody_else_anything(chain: Chain, tmp_path: Path) -> None:
    found = played(chain, "griefer", tmp_path)
    assert (found.slashed, found.earned, found.honest_lost, found.voids) == (BOND, 0.0, 0, 0)
    assert found.burned == pytest.approx(0.9 * BOND)
    assert found.paid + found.refunded == pytest.approx(BUDGET, abs=0.01)


def test_a_settler_who_pays_himself_is_overturned(chain: Chain, tmp_path: Path) -> None:
    """It keeps what its own work was worth, and no more."""
    found = played(chain, "settler who pays himself", tmp_path)
    assert (found.slashed, found.honest_lost, found.honest_lost_vnx) == (BOND, 0, 0.0)
    assert found.earned is not None
    assert 0 < found.earned < 2


def test_books_that_do_not_add_up_are_found() -> None:
    right = Books((Money(Player(), 100, 1, 0, 100),), 300, paid=100, refunded=200, slashed=10, burned=9)
    right.check()
    for wrong in ({"paid": 99}, {"refunded": 201}, {"burned": 10}):
        with pytest.raises(AssertionError):
            replace(right, **wrong).check()


def test_the_page_shows_what_is_recorded() -> None:
    recorded = adversary_jobs.recorded()
    page = adversary_jobs.PAGE.read_text(encoding="utf-8")
    shown = page.split(adversary_jobs.BEGIN)[1].split(adversary_jobs.END)[0].strip()
    assert set(recorded) <= set(CASES)
    assert shown == adversary_jobs.shown(recorded)
    assert all(name in shown for name in CASES)  # in the table, or as not recorded yet


def test_in_the_record_honest_nodes_lose_only_where_the_page_says_so() -> None:
    for name, found in adversary_jobs.recorded().items():
        assert bool(found.honest_lost) == bool(CASES[name].open), name
        assert found.paid + found.refunded == pytest.approx(found.escrow, abs=0.02)
        assert (found.voids, found.did) == (0, CASES[name].did)
