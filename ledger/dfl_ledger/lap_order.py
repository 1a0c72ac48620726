"""Who hops when in a lap: a swap-or-not shuffle.

Hoang, Morris and Rogaway 2012 (doi:10.1007/978-3-642-32009-5_1), as in Ethereum's consensus specification
(`compute_shuffled_index`): one place of the permutation costs ROUNDS times two hashes, whatever the number of
members, and nothing need be stored. Twin of contracts/libraries/LapOrder.sol.
"""

from __future__ import annotations

from eth_hash.auto import keccak

ROUNDS = 24  # for laps of up to thousands of members; Ethereum takes 90 for a million validators


def index_at(seed: bytes, position: int, n: int) -> int:
    """The index of the member who comes at `position` of `n`. Raises ValueError outside the lap."""
    if not 0 <= position < n:
        raise ValueError(f"position {position} of {n}")
    index = position
    for round_ in range(ROUNDS):
        pivot = int.from_bytes(keccak(seed + bytes((round_,))), "big") % n
        flip = (pivot + n - index) % n
        higher = max(index, flip)
        bit = keccak(seed + bytes((round_,)) + higher.to_bytes(4, "big"))[31] & 1
        index = flip if bit else index
    return index
