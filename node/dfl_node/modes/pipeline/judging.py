"""Which of a round's revealed pieces make its model: the same answer on every node. Pure.

Stages make a model together only if they are of one attempt (epoch, conductor, step, cuts). Several may have
been revealed: after a partition each side may have finished its own. A complete one whose feed vouches for it
goes first, then the latest epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dfl_ledger.records import Address, Cid
from dfl_node.modes.pipeline.files import Record, StageHeader

Attempt = tuple[int, str, int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class StagePiece:
    place: int  # in the round's order of reveal
    node: Address
    cid: Cid
    header: StageHeader


@dataclass(frozen=True, slots=True)
class FeedPiece:
    place: int
    node: Address
    record: Record

    @property
    def attempt(self) -> Attempt:
        point = self.record.finish.point
        return (point.epoch, point.conductor, point.step, point.cuts)

    def vouches_for(self, piece: StagePiece) -> bool:
        """For this very file of this very node."""
        finish, stage = self.record.finish, piece.header.stage
        return (
            piece.header.attempt == self.attempt
            and stage < min(len(finish.committers), len(finish.point.snapshots))
            and finish.committers[stage] == piece.node
            and finish.point.snapshots[stage] == piece.cid
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to put the model together."""

    stages: tuple[StagePiece, ...]  # in order
    feed: FeedPiece | None  # who vouches for all of them


def choices(stages: int, pieces: Sequence[StagePiece], feeds: Sequence[FeedPiece]) -> Iterator[Choice]:
    """Every attempt of which all stages are there, the best first.

    Of two pieces for a stage, the one that the feed vouches for counts, else the first revealed.
    """
    attempts: dict[Attempt, dict[int, list[StagePiece]]] = {}
    for piece in pieces:
        attempts.setdefault(piece.header.attempt, {}).setdefault(piece.header.stage, []).append(piece)
    found = []
    for attempt, by_stage in attempts.items():
        if not all(stage in by_stage for stage in range(stages)):
            continue
        vouching = _vouching(stages, by_stage, feeds)
        found.append((vouching is None, -attempt[0], attempt, _choice(stages, by_stage, vouching)))
    for *_, choice in sorted(found, key=lambda item: item[:3]):
        yield choice


def _vouching(
    stages: int, by_stage: Mapping[int, Sequence[StagePiece]], feeds: Sequence[FeedPiece]
) -> FeedPiece | None:
    return next(
        (
            feed
            for feed in feeds
            if all(any(feed.vouches_for(piece) for piece in by_stage[stage]) for stage in range(stages))
        ),
        None,
    )


def _choice(stages: int, by_stage: Mapping[int, Sequence[StagePiece]], feed: FeedPiece | None) -> Choice:
    def best(stage: int) -> StagePiece:
        return min(
            by_stage[stage], key=lambda piece: (feed is not None and not feed.vouches_for(piece), piece.place)
        )

    return Choice(tuple(best(stage) for stage in range(stages)), feed)


def missing(stages: int, pieces: Sequence[StagePiece]) -> tuple[int, ...]:
    """The stages that nobody has revealed anything for."""
    there = {piece.header.stage for piece in pieces}
    return tuple(stage for stage in range(stages) if stage not in there)
