"""Who sits on a panel, and which contributions it audits: twin of contracts/libraries/Sortition.sol.

Seats are drawn one after another without replacement, each with a chance by stake: a point of the evaluators'
intervals that are left, laid end to end.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

from eth_hash.auto import keccak

from dfl_ledger import lap_order
from dfl_ledger.records import Interval

_AUDIT = (64).to_bytes(32, "big"), (5).to_bytes(32, "big"), b"audit".ljust(32, b"\0")


def seed_of(block_hash: bytes, job: int, round_: int, panel: int) -> bytes:
    """A panel's seed, from the hash (32 bytes) of the block it is drawn from."""
    return keccak(block_hash + b"".join(number.to_bytes(32, "big") for number in (job, round_, panel)))


def draw(seed: bytes, total: int, at: Callable[[int], Interval], most: int) -> tuple[Interval, ...]:
    """At most `most` seats in the order of their numbers, fewer if there are fewer evaluators.

    `total` is the weight of all evaluators, and `at` says whose interval of it holds a point.
    """
    drawn: list[Interval] = []
    taken: list[tuple[int, int]] = []  # (start, weight), in rising order of start
    left = total
    while len(drawn) < most and left > 0:
        point = int.from_bytes(keccak(seed + len(drawn).to_bytes(32, "big")), "big") % left
        for start, weight in taken:
            if start > point:
                break
            point += weight
        found = at(point)
        drawn.append(found)
        insort(taken, (found.start, found.weight))
        left -= found.weight
    return tuple(drawn)


def audited_index(seed: bytes, audit: int, contributions: int) -> int:
    """The index of the contribution that an audit of a round is about. Raises ValueError if it has none."""
    offset, length, text = _AUDIT
    return lap_order.index_at(keccak(seed + offset + length + text), audit, contributions)
