"""Draws that every machine makes alike: no library's stream, which may change."""

from __future__ import annotations

import hashlib

MAX_SEED = 2**256 - 1


def shuffled(domain: bytes, seed: int, number: int, items: list[int]) -> list[int]:
    """Fisher-Yates with 64 bits a step from SHAKE-256, in place: a bias below 2^-50 for any list that fits.

    Raises ValueError unless the seed fits 32 bytes.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError("a seed has 32 bytes")
    text = domain + seed.to_bytes(32, "big") + number.to_bytes(8, "big")
    stream = hashlib.shake_256(text).digest(8 * len(items))
    for left in range(len(items), 1, -1):
        chosen = int.from_bytes(stream[8 * (left - 1) : 8 * left], "big") % left
        items[left - 1], items[chosen] = items[chosen], items[left - 1]
    return items
