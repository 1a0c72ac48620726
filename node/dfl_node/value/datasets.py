"""What each dataset was worth: group Shapley over the updates that used it, never its declared size. Pure.

The players are datasets. An update takes part in a coalition of datasets if that holds every dataset it
used: it could not have been made without. All updates that declare none are one more player, whose worth is
paid to no dataset. So the worths of a round add up to v(all) here too (Shapley 1953; sources of data as the
players, as in Ghorbani and Zou 2019, arXiv:1904.02868).

Where the worths of pieces add up as they are (hops, the feed of a pipeline), no coalition has to be measured:
in such a game each piece's worth is shared equally by the datasets it used, which is the same Shapley value.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from dfl_node.value import duplicates, valuation


def players(uses: Sequence[frozenset[int]]) -> tuple[int, ...]:
    """The datasets that some update used, in rising order."""
    return tuple(sorted(frozenset[int]().union(*uses)))


def most_evaluations(uses: Sequence[frozenset[int]], method: str) -> int:
    """`worths` asks for no more coalitions of updates."""
    return valuation.most_evaluations(len(players(uses)) + (not all(uses)), method)


def worths(uses: Sequence[frozenset[int]], method: str, seed: int) -> Generator[int, int, dict[int, int]]:
    """Worth by dataset, from what each update used. Yields the coalitions of *updates* whose values it wants,
    each once and never the empty one, and is sent them."""
    assets = players(uses)
    if not assets:
        return {}
    bit = {asset: 1 << place for place, asset in enumerate(assets)}
    undeclared = 0 if all(uses) else 1 << len(assets)
    needs = [sum(bit[asset] for asset in own) or undeclared for own in uses]

    def updates(coalition: int) -> int:
        return sum(1 << i for i, need in enumerate(needs) if not need & ~coalition)

    asking = valuation.value(len(assets) + bool(undeclared), method, seed)
    found = yield from valuation.asked_once(asking, {0: 0}, updates)
    return dict(zip(assets, found.worths, strict=False))  # the undeclared come last and have no name


def parted(worths: Sequence[int], uses: Sequence[frozenset[int]]) -> dict[int, int]:
    """Worth by dataset where pieces' worths add up, from what each piece was worth and what it used. Whole
    parts; what is left over goes to the lower numbers."""
    found = dict.fromkeys(players(uses), 0)
    for worth, own in zip(worths, uses, strict=True):
        if own:
            for asset, part in zip(sorted(own), duplicates.shares(worth, len(own)), strict=True):
                found[asset] += part
    return found
