"""A round's scores, put together: who is a player, what each is worth, what each dataset was. Pure.

Whoever can measure the value of a coalition of players drives it: `Trainer.score` does.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from dfl_ledger.errors import UsageError
from dfl_node.value import datasets, duplicates, valuation
from dfl_node.value.draws import MAX_SEED


@dataclass(frozen=True, slots=True)
class Scores:
    """Worths in 1e-9 of validation loss, one an update, in the order given; 0 for a refused one."""

    worths: tuple[int, ...]
    errors: tuple[int, ...]  # standard errors of the worths; 0 where nothing was estimated
    method: str  # "shapley", "gtg-shapley" or "leave-one-out": what the worths are
    alike: tuple[int, ...]  # the first update of its group of near-duplicates; itself if it is like no other
    datasets: dict[int, int]  # worth by asset, of every dataset that an accepted update used


def check(method: str, seed: int) -> None:
    """Raises UsageError for what cannot be asked for."""
    if method not in valuation.METHODS:
        raise UsageError(f"no scoring method {method!r:.40}", why=f"one of {', '.join(valuation.METHODS)}")
    if not 0 <= seed <= MAX_SEED:
        raise UsageError("no seed for a valuation", why="it must fit 32 bytes")


def most_evaluations(updates: int, used: int, method: str) -> int:
    """No scoring of so many updates, which used so many datasets, measures more coalitions."""
    by_data = valuation.most_evaluations(used + 1, method) if used else 0
    return valuation.most_evaluations(updates, method) + by_data


def score(
    accepted: Sequence[bool], first: Sequence[int], uses: Sequence[frozenset[int]], method: str, seed: int
) -> Generator[int, int, Scores]:
    """Yields the coalitions (bit masks over the players) whose values it wants, each once, and is sent them.

    `accepted` and `uses` (datasets) are one an update; `first` is `duplicates.groups` of the accepted ones.
    A group's datasets are those of all its updates.
    """
    places = [place for place, fine in enumerate(accepted) if fine]
    players = [[places[i] for i in group] for group in duplicates.members(first)]
    known = {0: 0}
    by_player = yield from valuation.asked_once(valuation.value(len(players), method, seed), known)
    used = [frozenset[int]().union(*(uses[place] for place in player)) for player in players]
    by_dataset = yield from valuation.asked_once(datasets.worths(used, method, seed), known)
    worths, errors, alike = [0] * len(accepted), [0] * len(accepted), list(range(len(accepted)))
    for player, worth, error in zip(players, by_player.worths, by_player.errors, strict=True):
        for place, part in zip(player, duplicates.shares(worth, len(player)), strict=True):
            worths[place], errors[place], alike[place] = part, -(-error // len(player)), player[0]
    return Scores(tuple(worths), tuple(errors), by_player.method, tuple(alike), by_dataset)
