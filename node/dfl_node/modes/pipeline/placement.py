"""Which node holds which pieces of the model. Pure arithmetic on what the nodes said of themselves.

A model is a row of pieces between its possible cuts; a stage is some of them in a row. The slowest stage sets
the pace of a pipeline, by what it computes and by what it sends and receives; so `place` looks for the cuts
and the order of nodes that make the slowest stage fastest, among those where every stage fits in its node's
memory. `refill` finds another node for a stage whose node is gone, when the cuts can no longer change.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, combinations
from typing import NamedTuple

from dfl_ledger.errors import DflError
from dfl_ledger.records import Address

MAX_EXACT = 8  # nodes and stages up to which every order of nodes is looked at: 2^8 sets
# Of a node's link, both ways together: a good home uplink (160 Mbit/s), and a little less than the 28 MB/s
# that one stream under TLS and yamux gives on loopback. A constant, so that all members count alike.
LINK_BYTES_PER_S = 20e6
_MIB = 2**20

# (first piece, one past the last, place of the stage) -> bytes the stage takes
Need = Callable[[int, int, int], int]


class DoesNotFit(DflError):
    """No placement of the stages on these nodes: says which stage and what is missing."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a node offers."""

    node: Address
    memory_bytes: int
    speed: float  # FLOP/s, measured


@dataclass(frozen=True, slots=True)
class Layout:
    """Where stages 1, 2, … begin (indices of pieces), and who holds each stage."""

    starts: tuple[int, ...]
    holders: tuple[Address, ...]


def place(
    flops: Sequence[int],
    need: Need,
    rooms: Sequence[Room],
    stages: int,
    *,
    passes_bytes: Sequence[int] = (),
    must_hold: Address | None = None,
) -> Layout:
    """The layout whose slowest stage is fastest: exact for up to MAX_EXACT nodes and stages.

    `flops` are those of each piece for one row, `passes_bytes` what of a row it passes on to the next (the
    last one's go nowhere); without them traffic costs nothing. Of equally fast layouts it is the one with the
    least traffic. Beyond MAX_EXACT the fastest nodes are tried in order of speed, then those with the most
    memory. With fewer nodes than stages, some hold two: half of their memory and speed each, and what passes
    between the two counts as if it left the node. Raises DoesNotFit.
    """
    if stages > len(flops):
        raise DoesNotFit(f"{stages} stages of {len(flops)} pieces", why="a stage has at least one piece")
    rooms = sorted(rooms, key=lambda room: (-room.speed, -room.memory_bytes, room.node))
    if len(rooms) < stages:
        rooms = [
            half for room in rooms for half in (Room(room.node, room.memory_bytes // 2, room.speed / 2),) * 2
        ]
    if len(rooms) < stages:
        nodes = len({room.node for room in rooms})
        raise DoesNotFit(f"{stages} stages for {nodes} nodes", why="a node holds at most two")
    most = max(stages, MAX_EXACT)
    # Over a cut go the activations and, as large, their gradients; over the model's two ends neither.
    crossing = (0, *(2 * size for size in passes_bytes[:-1] or (0,) * (len(flops) - 1)), 0)
    pieces = _Pieces((0, *accumulate(flops)), crossing, cache(need))
    by_memory = sorted(rooms, key=lambda room: (-room.memory_bytes, -room.speed, room.node))
    for chosen in (_with(must_hold, rooms, most), _with(must_hold, by_memory, most)):
        found = _fastest(pieces, chosen, stages, must_hold)
        if found is not None:
            return found
    raise _too_large(flops, need, rooms, stages)


def _with(must_hold: Address | None, rooms: Sequence[Room], most: int) -> list[Room]:
    """The first `most` rooms, the one that must be there among them."""
    own = [room for room in rooms if room.node == must_hold]
    return (own + [room for room in rooms if room.node != must_hold])[:most]


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The model as its stages see it. Bound b is where piece b begins; the last one is the model's end."""

    done: tuple[int, ...]  # FLOP a row before each bound
    crossing: tuple[int, ...]  # bytes a row over each bound, forward and backward
    need: Need

    def takes_s(self, room: Room, start: int, end: int) -> float:
        """Seconds a row. What is received and sent is added: at worst nothing of it overlaps."""
        link_s = (self.crossing[start] + self.crossing[end]) / LINK_BYTES_PER_S
        return (self.done[end] - self.done[start]) / room.speed + link_s

    def ends(self, room: Room, start: int, last: int, stage: int, limit_s: float) -> list[int]:
        """Where a stage that begins at `start` can end on this node, up to `last`.

        A later end may be within the limit where an earlier one is not: fewer bytes may pass there.
        """
        found = []
        for end in range(start + 1, last + 1):
            if self.need(start, end, stage) > room.memory_bytes:
                break
            if self.takes_s(room, start, end) <= limit_s:
                found.append(end)
        return found


class _Stages(NamedTuple):
    """The first stages of a layout."""

    traffic: int  # bytes a row over their ends, forward and backward
    ends: tuple[int, ...]
    holders: tuple[Address, ...]


def _fastest(pieces: _Pieces, rooms: Sequence[Room], stages: int, must_hold: Address | None) -> Layout | None:
    """By bisection over every time that some run of pieces takes on some node."""
    runs = list(combinations(range(len(pieces.done)), 2))
    times = sorted({pieces.takes_s(room, start, end) for start, end in runs for room in rooms})

    def fits(limit_s: float) -> Layout | None:
        return _within(limit_s, pieces, rooms, stages, must_hold)

    if fits(times[-1]) is None:
        return None
    best = bisect_left(range(len(times)), 1, key=lambda place: int(fits(times[place]) is not None))
    return fits(times[best])


def _within(
    limit_s: float, pieces: _Pieces, rooms: Sequence[Room], stages: int, must_hold: Address | None
) -> Layout | None:
    """The layout with the least traffic of those with no stage slower than the limit.

    Of a set of nodes all that matters is where its stages can end, and with how little traffic so far. Beyond
    MAX_EXACT the rooms are as many as the stages, and taken as they come.
    """
    reached: dict[int, dict[int, _Stages]] = {0: {0: _Stages(0, (), ())}}  # set of rooms -> end -> stages
    model_end = len(pieces.done) - 1
    for stage in range(stages):
        last = model_end - (stages - 1 - stage)  # every later stage needs a piece too
        grown: dict[int, dict[int, _Stages]] = {}
        places = range(len(rooms)) if len(rooms) <= MAX_EXACT else [stage]
        table = {
            place: [pieces.ends(rooms[place], start, last, stage, limit_s) for start in range(last)]
            for place in places
        }
        for mask, found in reached.items():
            for place in places:
                if mask >> place & 1:
                    continue
                wider = grown.setdefault(mask | 1 << place, {})
                for start in sorted(found, reverse=True):
                    before = found[start]
                    for end in table[place][start]:
                        traffic = before.traffic + pieces.crossing[end]
                        if end not in wider or traffic < wider[end].traffic:
                            holders = (*before.holders, rooms[place].node)
                            wider[end] = _Stages(traffic, (*before.ends, end), holders)
        reached = grown
    whole = [found[model_end] for _, found in sorted(reached.items()) if model_end in found]
    whole = [layout for layout in whole if must_hold is None or must_hold in layout.holders]
    if not whole:
        return None
    best = min(whole, key=lambda layout: layout.traffic)
    return Layout(best.ends[:-1], best.holders)


def _too_large(flops: Sequence[int], need: Need, rooms: Sequence[Room], stages: int) -> DoesNotFit:
    largest = max(room.memory_bytes for room in rooms)
    # The last stage has the fewest micro-batches in flight: a piece too large even there fits nowhere.
    least = [need(piece, piece + 1, stages - 1) for piece in range(len(flops))]
    if max(least) > largest:
        what = f"piece {least.index(max(least))} of the model takes {max(least) / _MIB:.0f} MiB"
    else:
        what = f"the model in {stages} stages takes {need(0, len(flops), stages - 1) / _MIB:.0f} MiB"
    offered = ", ".join(f"{room.memory_bytes / _MIB:.0f}" for room in rooms[:16])
    return DoesNotFit(
        f"{what}, which does not fit in {stages} stages on these nodes",
        why=f"they offer {offered} MiB",
        help_command="dfl-node start --max-memory SIZE",
    )


def refill(
    holders: Sequence[Address | None],
    rooms: Sequence[Room],
    need: Sequence[int],
    reserve: Collection[Address] = (),
) -> tuple[Address, ...] | None:
    """Every vacant stage (None) to a node with enough memory; None if there is none for some stage.

    Free nodes come first, the fastest of them; then the free ones of `reserve`; then whoever has room beside
    what it holds already. `need` is in bytes, a stage each; the largest vacancy is filled first.
    """
    taken = list(holders)
    for stage in sorted((s for s, node in enumerate(taken) if node is None), key=lambda s: -need[s]):

        def left(room: Room) -> int:
            held = sum(n for n, node in zip(need, taken, strict=True) if node == room.node)
            return room.memory_bytes - held

        fitting = [room for room in rooms if left(room) >= need[stage]]
        if not fitting:
            return None
        taken[stage] = min(
            fitting,
            key=lambda room: (
                taken.count(room.node) + (room.node in reserve and room.node not in taken) * 0.5,
                -room.speed,
                room.node,
            ),
        ).node
    return tuple(node for node in taken if node is not None)
