"""From what the members offer to cuts and holders: the run's terms around the pure `placement`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

from dfl_ledger.records import Address
from dfl_node.modes.pipeline.messages import Offer
from dfl_node.modes.pipeline.placement import DoesNotFit, Layout, Room, place, refill
from dfl_node.modes.pipeline.plan import Plan, Point
from dfl_node.modes.pipeline.setting import Setting
from dfl_node.train.stage import SegmentCost, stage_memory_bytes

Seats = tuple[tuple[str, ...], tuple[Address, ...]]  # cuts, holders


class Seating:
    """Seats the stages of one run's model."""

    def __init__(self, setting: Setting, costs: Sequence[SegmentCost]) -> None:
        self._setting, self._costs = setting, costs
        self._stages = setting.pipeline.stages
        self._starts = [cost.name for cost in costs]
        # Without a place for a feed's own piece, who feeds is paid for a stage.
        self._feeder_holds = setting.context.spec.target <= self._stages

    def seat(
        self,
        offers: Mapping[Address, Offer],
        point: Point | None,
        before: Plan | None,
        *,
        excluded: frozenset[Address],
        resting: Address | None,
    ) -> Seats:
        """Where each stage goes now. Whom the last failure was about is asked last. Raises DoesNotFit."""
        measured = [offer.speed for offer in offers.values() if offer.speed > 0]
        usual = median(measured) if measured else 1.0
        rooms = [
            Room(node, offer.memory_bytes, offer.speed if offer.speed > 0 else usual)
            for node, offer in sorted(offers.items())
            if node not in excluded and offer.finish is None
        ]
        rested = [room for room in rooms if room.node != resting]
        for chosen in (rested, rooms):
            try:
                return self._seat(chosen, point, before)
            except DoesNotFit as no:
                last = no
        raise last

    def _seat(self, rooms: Sequence[Room], point: Point | None, before: Plan | None) -> Seats:
        if point is None:
            layout = self._place(rooms)
            return tuple(self._starts[start] for start in layout.starts), layout.holders
        holders = before.holders if before is not None and before.cuts == point.cuts else point.holders
        me, here = self._setting.me, {room.node for room in rooms}
        kept = [node if node in here else None for node in holders]
        bounds = [0, *(self._starts.index(cut) for cut in point.cuts), len(self._costs)]
        needs = [self._need(start, end, stage) for stage, (start, end) in enumerate(pairwise(bounds))]
        found = None
        if me in kept and not self._feeder_holds:  # everybody goes back anyway: a free node may take ours
            given = [None if node == me else node for node in kept]
            free = [room for room in rooms if room.node != me]
            found = refill(given, free, needs) if len(free) >= self._stages else None
        found = found or refill(kept, rooms, needs, reserve=(me,))
        if found is None:
            vacant = ", ".join(str(stage) for stage, node in enumerate(kept) if node is None)
            offered = ", ".join(f"{room.memory_bytes >> 20}" for room in rooms) or "nothing"
            raise DoesNotFit(
                f"no node can hold stage {vacant}", why=f"{len(rooms)} nodes offer {offered} MiB"
            )
        return point.cuts, found

    def _place(self, rooms: Sequence[Room]) -> Layout:
        me, flops = self._setting.me, [cost.flops for cost in self._costs]
        passes = [cost.passes_bytes for cost in self._costs]
        others = [room for room in rooms if room.node != me]
        if self._feeder_holds:
            tries: list[tuple[Sequence[Room], Address | None]] = [(rooms, me), (others, None)]
        else:
            tries = [(others, None), (rooms, None)]
        # Nodes hold two stages only where all of them together are too few.
        tries.sort(key=lambda attempt: len(attempt[0]) < self._stages)
        for chosen, must in tries:
            try:
                return place(flops, self._need, chosen, self._stages, passes_bytes=passes, must_hold=must)
            except DoesNotFit as no:
                last = no
        raise last

    def _need(self, start: int, end: int, stage: int) -> int:
        config = self._setting.stage_config(self._placeholder_cuts, stage)
        return stage_memory_bytes(self._costs[start:end], config)

    @property
    def _placeholder_cuts(self) -> tuple[str, ...]:
        """Memory depends on how many stages there are, not on where they begin."""
        return tuple(self._starts[1 : self._stages])
