"""The in-memory twin of libraries/StakeTrees.sol: who may be drawn, with what weight, as of each past
block.
"""

from __future__ import annotations

from dfl_ledger.memory_chain import Blocks
from dfl_ledger.records import Address, Interval


class Evaluators:
    """Owners of places with weights. A place that was left is taken again before a new one."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._place_of: dict[Address, int] = {}
        self._free: list[int] = []
        self._places: list[tuple[Address, int]] = []  # (owner, weight)
        self._past: list[tuple[int, tuple[tuple[Address, int], ...]]] = []  # (block, the places at its end)

    def holds(self, owner: Address) -> bool:
        return owner in self._place_of

    def set(self, owner: Address, weight: int) -> None:
        """From the block that is being mined on; 0 takes it out."""
        place = self._place_of.get(owner)
        if place is None:
            if weight == 0:
                return
            place = self._take(owner)
        self._places[place] = (owner, weight)
        if weight == 0:
            del self._place_of[owner]
            self._free.append(place)
        block = self._blocks.newest.number + 1
        if self._past and self._past[-1][0] == block:
            self._past.pop()
        self._past.append((block, tuple(self._places)))

    def total_at(self, block: int) -> int:
        """The weight of all as of the end of a block."""
        return sum(weight for _, weight in self._places_at(block))

    def owner_at(self, point: int, block: int) -> Interval:
        """Whose interval holds `point`. Raises ValueError beyond the total."""
        start = 0
        for owner, weight in self._places_at(block):
            if point < start + weight:
                return Interval(owner, start, weight)
            start += weight
        raise ValueError(f"point {point} of {start}")

    def _places_at(self, block: int) -> tuple[tuple[Address, int], ...]:
        return next((places for since, places in reversed(self._past) if since <= block), ())

    def _take(self, owner: Address) -> int:
        if self._free:
            place = self._free.pop()
        else:
            place = len(self._places)
            self._places.append((owner, 0))
        self._place_of[owner] = place
        return place
