"""Which pieces make the model: complete attempts only, the vouched-for one first, the same for everybody."""

from __future__ import annotations

import random

import pytest

from dfl_ledger.records import Address, Cid, JobId
from dfl_node.modes.pipeline.files import Record, StageHeader
from dfl_node.modes.pipeline.judging import FeedPiece, StagePiece, choices, missing
from dfl_node.modes.pipeline.plan import Finish, Point

A, B, C, D = (Address(name) for name in "ABCD")
PARENT = Cid.of(b"parent", 0x70)


def piece(place: int, node: Address, stage: int, *, epoch: int = 1, conductor: Address = D) -> StagePiece:
    header = StageHeader(JobId(1), 1, PARENT, epoch, conductor, ("x",), stage, 10)
    return StagePiece(place, node, Cid.of(f"{node} {stage} {epoch}".encode(), 0x70), header)


def feed(place: int, *stages: StagePiece, node: Address = D, epoch: int = 1) -> FeedPiece:
    nodes, cids = tuple(p.node for p in stages), tuple(p.cid for p in stages)
    point = Point(epoch, node, 10, ("x",), nodes, cids, ())
    return FeedPiece(place, node, Record(JobId(1), 1, PARENT, Finish(epoch, point, nodes), (), (), ()))


def test_the_stages_of_one_attempt_make_the_model() -> None:
    first, second = piece(0, A, 0), piece(1, B, 1)
    (choice,) = choices(2, [second, first], [feed(2, first, second)])
    assert choice.stages == (first, second)
    assert choice.feed is not None


def test_stages_of_different_attempts_do_not() -> None:
    assert not list(choices(2, [piece(0, A, 0, epoch=1), piece(1, B, 1, epoch=2)], []))
    assert not list(choices(2, [piece(0, A, 0), piece(1, B, 1, conductor=C)], []))


def test_of_two_pieces_for_a_stage_the_one_that_the_feed_names_counts() -> None:
    copied, first, second = piece(0, C, 0), piece(1, A, 0), piece(2, B, 1)
    (choice,) = choices(2, [copied, first, second], [feed(3, first, second)])
    assert choice.stages == (first, second)


def test_of_two_pieces_for_a_stage_the_first_revealed_counts_where_nobody_vouches() -> None:
    first, second, later = piece(0, A, 0), piece(1, B, 1), piece(2, C, 0)
    (choice,) = choices(2, [first, second, later], [])
    assert choice.stages == (first, second)
    assert choice.feed is None


def test_a_feed_that_names_what_nobody_revealed_vouches_for_nothing() -> None:
    first, second, elsewhere = piece(0, A, 0), piece(1, B, 1), piece(9, C, 0)
    (choice,) = choices(2, [first, second], [feed(2, elsewhere, second)])
    assert choice.stages == (first, second)
    assert choice.feed is None


def test_after_a_partition_the_vouched_for_attempt_goes_first_then_the_latest() -> None:
    ours = [piece(0, A, 0, epoch=2), piece(1, B, 1, epoch=2)]
    theirs = [piece(2, C, 0, epoch=5, conductor=C), piece(3, D, 1, epoch=5, conductor=C)]
    assert [c.stages for c in choices(2, ours + theirs, [])] == [tuple(theirs), tuple(ours)]
    vouched = [feed(4, *ours, epoch=2)]
    assert [c.stages for c in choices(2, ours + theirs, vouched)] == [tuple(ours), tuple(theirs)]


@pytest.mark.parametrize("seed", range(20))
def test_every_node_chooses_the_same_whatever_the_order_it_reads_them_in(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    pieces = [
        piece(place, draw.choice([A, B, C, D]), draw.randrange(2), epoch=draw.randrange(3))
        for place in range(8)
    ]
    shuffled = draw.sample(pieces, len(pieces))
    assert list(choices(2, pieces, [])) == list(choices(2, shuffled, []))


def test_what_is_missing_is_named() -> None:
    assert missing(3, [piece(0, A, 1)]) == (0, 2)
