"""Placing stages: within every memory, as good as trying everything, and clear when it cannot be."""

from __future__ import annotations

import random
from itertools import combinations, pairwise, permutations

import pytest

from dfl_ledger.records import Address
from dfl_node.modes.pipeline.placement import LINK_BYTES_PER_S, DoesNotFit, Room, place, refill

MIB = 1 << 20


def rooms(*given: tuple[int, float]) -> list[Room]:
    return [Room(Address(f"node {n}"), memory * MIB, speed) for n, (memory, speed) in enumerate(given)]


def needs(parameters: list[int], stages: int) -> object:
    """Bytes of a run of pieces; the earlier the stage, the more micro-batches it keeps."""

    def need(start: int, end: int, stage: int) -> int:
        return sum(parameters[start:end]) * MIB + (stages - stage) * (end - start) * MIB

    return need


Cost = tuple[float, int]  # seconds a row of the slowest stage, bytes a row over all cuts


def cost(starts: tuple[int, ...], order: list[Room], flops: list[int], passes: list[int]) -> Cost:
    traffic = {start: 2 * passes[start - 1] for start in starts}  # there and back
    slowest_s = max(
        sum(flops[a:b]) / room.speed + (traffic.get(a, 0) + traffic.get(b, 0)) / LINK_BYTES_PER_S
        for (a, b), room in zip(pairwise((0, *starts, len(flops))), order, strict=True)
    )
    return slowest_s, sum(traffic.values())


def by_trying_all(
    flops: list[int], passes: list[int], need: object, nodes: list[Room], stages: int
) -> Cost | None:
    def spread(cut: tuple[int, ...], order: tuple[Room, ...]) -> zip[tuple[tuple[int, int], Room]]:
        return zip(pairwise((0, *cut, len(flops))), order, strict=True)

    found = [
        cost(cut, list(order), flops, passes)
        for order in permutations(nodes, stages)
        for cut in combinations(range(1, len(flops)), stages - 1)
        if all(
            need(a, b, stage) <= room.memory_bytes  # type: ignore[operator]
            for stage, ((a, b), room) in enumerate(spread(cut, order))
        )
    ]
    return min(found, default=None)


@pytest.mark.parametrize("most_s", [0, 2, 20], ids=["free", "light", "heavy"])
@pytest.mark.parametrize("seed", range(60))
def test_the_slowest_stage_is_as_fast_as_any_placement_allows(seed: int, most_s: int) -> None:
    """`most_s`: what passes at a cut takes up to so long each way; computing takes a few tens of seconds."""
    draw = random.Random(seed)  # noqa: S311
    pieces, stages = draw.randint(3, 7), draw.randint(1, 3)
    flops = [draw.randint(1, 50) for _ in range(pieces)]
    need = needs([draw.randint(1, 20) for _ in range(pieces)], stages)
    nodes = rooms(
        *((draw.randint(10, 90), draw.uniform(1, 5)) for _ in range(draw.randint(stages, stages + 2)))
    )
    passes = [draw.randint(0, int(most_s * LINK_BYTES_PER_S)) for _ in range(pieces)]
    best = by_trying_all(flops, passes, need, nodes, stages)
    if best is None:
        with pytest.raises(DoesNotFit):
            place(flops, need, nodes, stages, passes_bytes=passes)  # type: ignore[arg-type]
        return
    layout = place(flops, need, nodes, stages, passes_bytes=passes)  # type: ignore[arg-type]
    by_node = {room.node: room for room in nodes}
    assert len(set(layout.holders)) == stages
    for stage, ((start, end), node) in enumerate(
        zip(pairwise((0, *layout.starts, pieces)), layout.holders, strict=True)
    ):
        assert start < end
        assert need(start, end, stage) <= by_node[node].memory_bytes  # type: ignore[operator]
    order = [by_node[node] for node in layout.holders]
    assert cost(layout.starts, order, flops, passes) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(20))
def test_where_computing_is_equal_the_cheapest_cut_wins(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    passes = [draw.randint(1, 10**6) for _ in range(6)]
    nodes = rooms((100, 1.0), (100, 1.0))
    flops = [9, 0, 0, 0, 0, 9]
    layout = place(flops, needs([1] * 6, 2), nodes, 2, passes_bytes=passes)  # type: ignore[arg-type]
    assert passes[layout.starts[0] - 1] == min(passes[:-1])


def test_of_equally_fast_layouts_the_one_with_the_least_traffic_wins() -> None:
    """Piece 0 sets the pace wherever the rest is cut."""
    nodes = rooms((100, 1.0), (100, 1.0), (100, 1.0))
    for passes, starts in (([5, 9, 1, 0], (1, 3)), ([5, 1, 9, 0], (1, 2))):
        layout = place([100, 1, 1, 1], needs([1] * 4, 3), nodes, 3, passes_bytes=passes)  # type: ignore[arg-type]
        assert layout.starts == starts


@pytest.mark.parametrize("stages", [3, 12])
def test_traffic_that_is_none_changes_nothing(stages: int) -> None:
    flops, need = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7], needs([1] * 14, stages)
    nodes = rooms(*((40, 1.0 + n % 3) for n in range(stages)))
    without = place(flops, need, nodes, stages)  # type: ignore[arg-type]
    assert place(flops, need, nodes, stages, passes_bytes=[0] * 14) == without  # type: ignore[arg-type]


def test_the_cheapest_cut_is_not_taken_where_memory_forbids_it() -> None:
    nodes = rooms((30, 1.0), (30, 1.0))
    passes = [10**9, 10**9, 1, 0]
    free = place([1] * 4, needs([1] * 4, 2), nodes, 2, passes_bytes=passes)  # type: ignore[arg-type]
    assert free.starts == (3,)
    heavy = place([1] * 4, needs([12] * 4, 2), nodes, 2, passes_bytes=passes)  # type: ignore[arg-type]
    assert heavy.starts == (2,)


def test_a_small_node_may_stand_behind_a_fast_one_that_could_go_further() -> None:
    """Piece 1 alone fits the small node: the node before it must stop short, however far it could go."""
    parameters = [20, 1, 20, 20]
    nodes = rooms((60, 9.0), (5, 1.0), (60, 1.0))
    layout = place([1] * 4, needs(parameters, 3), nodes, 3)  # type: ignore[arg-type]
    assert layout.starts == (1, 2)
    assert layout.holders[1] == nodes[1].node


def test_who_must_hold_a_stage_does() -> None:
    nodes = rooms((100, 9.0), (100, 9.0), (100, 0.1))
    layout = place([1] * 6, needs([1] * 6, 2), nodes, 2, must_hold=nodes[2].node)  # type: ignore[arg-type]
    assert nodes[2].node in layout.holders


def test_more_nodes_than_can_be_tried_are_placed_all_the_same() -> None:
    nodes = rooms(*((10 + n, 1.0 + n) for n in range(40)))
    layout = place([5] * 30, needs([1] * 30, 12), nodes, 12)  # type: ignore[arg-type]
    assert len(set(layout.holders)) == 12


def test_the_largest_memories_are_tried_where_the_fastest_nodes_are_too_small() -> None:
    nodes = rooms(*((1, 100.0) for _ in range(10)), (80, 1.0), (80, 1.0))
    layout = place([1] * 8, needs([9] * 8, 2), nodes, 2)  # type: ignore[arg-type]
    assert set(layout.holders) == {nodes[10].node, nodes[11].node}


def test_too_few_nodes_hold_two_stages_each() -> None:
    (node,) = rooms((100, 1.0))
    layout = place([1] * 4, needs([1] * 4, 2), [node], 2)  # type: ignore[arg-type]
    assert layout.holders == (node.node, node.node)


@pytest.mark.parametrize(
    ("parameters", "memory", "why"),
    [([50, 1, 1], 30, "piece 0 of the model takes 51 MiB"), ([20, 20, 20], 30, "takes 63 MiB")],
)
def test_what_does_not_fit_says_what_it_takes_and_what_there_is(
    parameters: list[int], memory: int, why: str
) -> None:
    with pytest.raises(DoesNotFit, match=why) as refused:
        place([1] * 3, needs(parameters, 2), rooms((memory, 1.0), (memory, 1.0)), 2)  # type: ignore[arg-type]
    assert "30, 30 MiB" in refused.value.why
    assert "--max-memory" in refused.value.help_command


# -- replacing ----------------------------------------------------------------------------------------------
def test_a_vacant_stage_goes_to_the_fastest_free_node_that_has_the_memory() -> None:
    a, b, fast_but_small, c = nodes = rooms((50, 1.0), (50, 1.0), (5, 9.0), (50, 2.0))
    assert refill([a.node, None], nodes, [20 * MIB, 20 * MIB]) == (a.node, c.node)
    assert fast_but_small.node not in (b.node, c.node)


def test_the_feed_takes_a_stage_only_when_no_other_node_is_free() -> None:
    a, feed, spare = nodes = rooms((50, 1.0), (50, 9.0), (50, 1.0))
    need = [20 * MIB, 20 * MIB]
    assert refill([a.node, None], nodes, need, reserve=[feed.node]) == (a.node, spare.node)
    assert refill([a.node, None], [a, feed], need, reserve=[feed.node]) == (a.node, feed.node)


def test_a_node_takes_a_second_stage_if_it_has_room_for_both() -> None:
    (a,) = rooms((50, 1.0))
    assert refill([a.node, None], [a], [20 * MIB, 20 * MIB]) == (a.node, a.node)
    assert refill([a.node, None], [a], [40 * MIB, 20 * MIB]) is None
