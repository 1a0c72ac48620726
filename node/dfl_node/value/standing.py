"""Whose updates go into the aggregate: those of members whose work was not persistently harmful. Pure.

An audit cannot see a shard whose labels were turned round before it was committed. What such an update does
to the validation loss can be seen: a member is left out while at most SPARED of its last WINDOW measured
worths were 0 or more, once MIN_MEASURED are known (and of fewer than WINDOW, none was). Signs and not sizes:
one round in which something else went wrong must not outweigh nine. Nearly all of them and not half: as
training settles, honest worths lie around 0, and their median is below it as often as above.

Who is left out goes on training and is still measured, by the change that its update would make to what the
others give, so that it comes back when its work is good again; for what is not in the model it is not paid.
At least half of the members stay: where everybody's updates do harm (too long a step, a finished model) there
is no attacker to find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

WINDOW = 10  # rounds
SPARED = 1  # rounds of a full window that were not harmful
MIN_MEASURED = 5

M = TypeVar("M")


def left_out(worths: Mapping[M, Sequence[int]]) -> frozenset[M]:
    """Who is left out of the next aggregate. `worths` has each member's measured worths in 1e-9 of validation
    loss, oldest first, without rounds in which it was not measured. If more than half were to go, those who
    did the most harm do; of equal ones the member named later."""
    recent = {member: own[-WINDOW:] for member, own in worths.items()}
    ranked = sorted(
        (sum(own), -place, member) for place, (member, own) in enumerate(recent.items()) if _harmful(own)
    )
    return frozenset(member for _, _, member in ranked[: len(worths) // 2])


def _harmful(recent: Sequence[int]) -> bool:
    spared = sum(worth >= 0 for worth in recent)
    return len(recent) >= MIN_MEASURED and spared <= (SPARED if len(recent) == WINDOW else 0)
