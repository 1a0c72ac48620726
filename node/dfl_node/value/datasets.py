"""What each dataset was worth: group Shapley over the updates that used it, never its declared size. Pure.

The players are datasets. An update takes part in a coalition of datasets if that holds every dataset it
used: it could not have been made without. All updates that declare none are one more player, whose worth is
paid to no dataset. So the worths of a round add up to v(all) here too (Shapley 1953; sources of data as the
players, as in Ghorbani and Zou 2019, arXiv:1904.02868).

Datasets that were used by exactly the same updates are one player and share its worth equally: who gives one
set of rows many names takes nothing from the others by it, and costs nobody a measurement.

Where the worths of pieces add up as they are (hops, the feed of a pipeline), no coalition has to be measured:
in such a game each piece's worth is shared equally by the players it used, which is the same Shapley value.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence

from dfl_node.value import duplicates, valuation


def players(uses: Sequence[frozenset[int]]) -> tuple[tuple[int, ...], ...]:
    """The datasets that some update used, those together that always were; all in rising order."""
    used_by: dict[tuple[int, ...], list[int]] = {}
    for asset in sorted(frozenset[int]().union(*uses)):
        used_by.setdefault(tuple(i for i, own in enumerate(uses) if asset in own), []).append(asset)
    return tuple(map(tuple, used_by.values()))


def most_evaluations(uses: Sequence[frozenset[int]], method: str) -> int:
    """`worths` asks for no more coalitions of updates."""
    return valuation.most_evaluations(len(players(uses)) + (not all(uses)), method)


def worths(uses: Sequence[frozenset[int]], method: str, seed: int) -> Generator[int, int, dict[int, int]]:
    """Worth by dataset, from what each update used. Yields the coalitions of *updates* whose values it wants,
    each once and never the empty one, and is sent them."""
    own = players(uses)
    if not own:
        return {}
    undeclared = 0 if all(uses) else 1 << len(own)
    needs = [sum(1 << place for place in _places(own, used)) or undeclared for used in uses]

    def updates(coalition: int) -> int:
        return sum(1 << i for i, need in enumerate(needs) if not need & ~coalition)

    asking = valuation.value(len(own) + bool(undeclared), method, seed)
    found = yield from valuation.asked_once(asking, {0: 0}, updates)
    return _by_dataset(own, found.worths[: len(own)])  # the undeclared come last and have no name


def parted(worths: Sequence[int], uses: Sequence[frozenset[int]]) -> dict[int, int]:
    """Worth by dataset where pieces' worths add up, from what each piece was worth and what it used. Whole
    parts; what is left over goes to the lower numbers."""
    own = players(uses)
    found = [0] * len(own)
    for worth, used in zip(worths, uses, strict=True):
        places = _places(own, used)
        if places:
            for place, part in zip(places, duplicates.shares(worth, len(places)), strict=True):
                found[place] += part
    return _by_dataset(own, found)


def _places(own: Sequence[tuple[int, ...]], used: frozenset[int]) -> list[int]:
    """Which players an update needs."""
    return [place for place, assets in enumerate(own) if assets[0] in used]


def _by_dataset(own: Sequence[tuple[int, ...]], worths: Iterable[int]) -> dict[int, int]:
    found = {
        asset: part
        for assets, worth in zip(own, worths, strict=True)
        for asset, part in zip(assets, duplicates.shares(worth, len(assets)), strict=True)
    }
    return dict(sorted(found.items()))
