"""Which node holds which pieces of the model. Pure arithmetic on what the nodes said of themselves.

A model is a row of pieces between its possible cuts; a stage is some of them in a row. The slowest stage sets
the pace of a pipeline, so `place` looks for the cuts and the order of nodes that make the slowest stage
fastest, among those where every stage fits in its node's memory. `refill` finds another node for a stage
whose node is gone, when the cuts can no longer change.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

from dfl_ledger.errors import DflError
from dfl_ledger.records import Address

MAX_EXACT = 8  # nodes and stages up to which every order of nodes is looked at: 2^8 sets
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
    must_hold: Address | None = None,
) -> Layout:
    """The layout whose slowest stage is fastest: exact for up to MAX_EXACT nodes and stages.

    `flops` are those of each piece, for as many rows as one likes. Beyond MAX_EXACT the fastest nodes are
    tried in order of speed, then those with the most memory. With fewer nodes than stages, some hold two:
    half of their memory and speed each. Raises DoesNotFit.
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
    by_memory = sorted(rooms, key=lambda room: (-room.memory_bytes, -room.speed, room.node))
    for chosen in (_with(must_hold, rooms, most), _with(must_hold, by_memory, most)):
        found = _fastest(flops, need, chosen, stages, must_hold)
        if found is not None:
            return found
    raise _too_large(flops, need, rooms, stages)


def _with(must_hold: Address | None, rooms: Sequence[Room], most: int) -> list[Room]:
    """The first `most` rooms, the one that must be there among them."""
    own = [room for room in rooms if room.node == must_hold]
    return (own + [room for room in rooms if room.node != must_hold])[:most]


def _fastest(
    flops: Sequence[int], need: Need, rooms: Sequence[Room], stages: int, must_hold: Address | None
) -> Layout | None:
    """By bisection over every time that some run of pieces takes on some node."""
    done = [0, *accumulate(flops)]
    runs = {done[end] - done[start] for start in range(len(flops)) for end in range(start + 1, len(done))}
    times = sorted({run / room.speed for run in runs for room in rooms})
    search = _exact if len(rooms) <= MAX_EXACT else _in_order

    def fits(limit_s: float) -> Layout | None:
        return search(done, need, rooms, stages, limit_s, must_hold)

    if fits(times[-1]) is None:
        return None
    best = bisect_left(range(len(times)), 1, key=lambda place: int(fits(times[place]) is not None))
    return fits(times[best])


def _reach(
    done: Sequence[int], need: Need, room: Room, start: int, stage: int, stages: int, limit_s: float
) -> int:
    """How far a stage that begins at `start` can go on this node; `start` if it cannot hold one piece."""
    last = len(done) - 1 - (stages - 1 - stage)  # every later stage needs a piece too
    end = start
    while (
        end < last
        and (done[end + 1] - done[start]) / room.speed <= limit_s
        and need(start, end + 1, stage) <= room.memory_bytes
    ):
        end += 1
    return end


def _exact(
    done: Sequence[int],
    need: Need,
    rooms: Sequence[Room],
    stages: int,
    limit_s: float,
    must_hold: Address | None,
) -> Layout | None:
    """Over sets of nodes: the furthest that a set can cover is all that matters of its order."""
    furthest: dict[int, tuple[int, ...]] = {0: (0,)}  # set of rooms -> starts of its stages, then its end
    order: dict[int, tuple[int, ...]] = {0: ()}
    for stage in range(stages):
        grown: dict[int, tuple[int, ...]] = {}
        for mask, ends in furthest.items():
            for place, room in enumerate(rooms):
                if mask >> place & 1:
                    continue
                end = _reach(done, need, room, ends[-1], stage, stages, limit_s)
                wider = mask | 1 << place
                if end > ends[-1] and (wider not in grown or end > grown[wider][-1]):
                    grown[wider] = (*ends, end)
                    order[wider] = (*order[mask], place)
        furthest = grown
    for mask in sorted(furthest):
        holders = tuple(rooms[place].node for place in order[mask])
        if furthest[mask][-1] == len(done) - 1 and (must_hold is None or must_hold in holders):
            return Layout(furthest[mask][1:-1], holders)
    return None


def _in_order(
    done: Sequence[int],
    need: Need,
    rooms: Sequence[Room],
    stages: int,
    limit_s: float,
    must_hold: Address | None,
) -> Layout | None:
    """The rooms as they come, each as far as it can go; one that holds nothing is left out."""
    ends, holders = [0], list[Address]()
    for room in rooms:
        if len(holders) == stages:
            break
        end = _reach(done, need, room, ends[-1], len(holders), stages, limit_s)
        if end > ends[-1]:
            ends.append(end)
            holders.append(room.node)
    if len(holders) < stages or ends[-1] < len(done) - 1 or (must_hold and must_hold not in holders):
        return None
    return Layout(tuple(ends[1:-1]), tuple(holders))


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
