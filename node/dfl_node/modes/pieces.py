"""A round's revealed pieces of work: their rows, their bytes, and what speaks against them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import trio

from dfl_ledger.errors import BlobNotFound, CidMismatch, UpdateRefused
from dfl_ledger.query import ContributionRow
from dfl_ledger.records import Address, Cid
from dfl_node.parts import Parts
from dfl_node.train.trainer import Verdict


@dataclass(frozen=True, slots=True)
class Revealed:
    """What a round's members revealed, in the order of their reveal."""

    rows: tuple[ContributionRow, ...]
    pieces: tuple[bytes, ...]  # empty where `refused` says why
    refused: tuple[str, ...]  # empty text where nothing speaks against the piece so far
    all_here: bool  # nothing failed to arrive; what is too large or claims too much counts as arrived

    def standing(self) -> list[tuple[ContributionRow, bytes]]:
        """The pieces that nothing speaks against so far."""
        return [
            (row, piece)
            for row, piece, why in zip(self.rows, self.pieces, self.refused, strict=True)
            if not why
        ]

    def spread(self, verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
        """The verdicts on `standing()`, put back in the places of the whole round."""
        inspected = iter(verdicts)
        return tuple(Verdict(False, why) if why else next(inspected) for why in self.refused)

    def accepted(self, verdicts: tuple[Verdict, ...]) -> Revealed:
        """Refuses all but what the model was made of. Raises BlobNotFound if some of that is not here."""
        for row, verdict, why in zip(self.rows, verdicts, self.refused, strict=True):
            if verdict.accepted and why:
                raise BlobNotFound(f"piece {row.cid} of contribution {row.id}", why=why)
        return replace(self, refused=tuple("" if v.accepted else v.why for v in verdicts))


async def fetch(
    parts: Parts,
    rows: Sequence[ContributionRow],
    *,
    objection: Callable[[ContributionRow], str],
    max_bytes: int,
    patience_s: float,
    also: Collection[Address] = (),
) -> Revealed:
    """Fetch every piece at once; one that cannot be had, is too large or is objected to is refused.

    `objection` blocks and is called in a thread. `also` are others who may have the pieces.
    """
    pieces, refused = [b""] * len(rows), [""] * len(rows)
    all_here = True

    async def fetch_one(place: int, row: ContributionRow) -> None:
        nonlocal all_here
        if why := await trio.to_thread.run_sync(objection, row):
            refused[place] = why
            return
        try:
            pieces[place] = await parts.store.get(
                Cid.parse(row.cid),
                max_bytes=max_bytes,
                timeout_s=patience_s,
                providers=tuple(p.peer_id for p in parts.channel.peers() if p.address in (row.node, *also)),
            )
        except UpdateRefused as bad:
            refused[place] = bad.why or bad.what
        except BlobNotFound:
            all_here, refused[place] = False, f"nobody delivered it within {patience_s:g} s"
        except CidMismatch as bad:
            all_here, refused[place] = False, bad.why or bad.what

    async with trio.open_nursery() as nursery:
        for place, row in enumerate(rows):
            nursery.start_soon(fetch_one, place, row)
    return Revealed(tuple(rows), tuple(pieces), tuple(refused), all_here)
