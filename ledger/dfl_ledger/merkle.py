"""The Merkle-sum tree of a settlement: twin of contracts/libraries/SumTree.sol.

Every inner node commits to the sums of its children, so a root with its total proves that no more is paid out
than was settled. All words are 32 bytes, as `abi.encode` lays them out:

    leaf   keccak256(0 | account | asset | score | reward | cumulative)      sum = cumulative
    inner  keccak256(1 | left hash | left sum | right hash | right sum)      sum = left sum + right sum

Leaves stand in rising order of (account as an integer, asset); a node without a sibling at the end of its
level moves up unchanged. The first word keeps a leaf from being read as an inner node, and the other way
round.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from eth_hash.auto import keccak

from dfl_ledger.keccak import hasher
from dfl_ledger.records import Address, Leaf, ProofStep

MAX_DEPTH = 32  # steps of a proof; the contract refuses longer ones
UINT128_MAX = 2**128 - 1
_UINT256_MAX = 2**256 - 1
_LEAF_TAG = (0).to_bytes(32, "big")
_INNER_TAG = (1).to_bytes(32, "big")

_Node = tuple[bytes, int]  # (hash, sum)


def leaf_hash(leaf: Leaf) -> bytes:
    """The leaf's 32 bytes. Raises ValueError if a field does not fit its Solidity type."""
    return keccak(_leaf_words(_account_number(leaf.account), leaf))


def _leaf_words(account: int, leaf: Leaf) -> bytes:
    """`account` is the leaf's, as a number."""
    _check_leaf(leaf)
    return b"".join(
        (
            _LEAF_TAG,
            account.to_bytes(32, "big"),
            leaf.asset.to_bytes(32, "big"),
            leaf.score.to_bytes(32, "big", signed=True),
            leaf.reward_wei.to_bytes(32, "big"),
            leaf.cumulative_wei.to_bytes(32, "big"),
        )
    )


def leaf_key(leaf: Leaf) -> tuple[int, int]:
    """What leaves are ordered by. Raises ValueError if the account is not an address."""
    return (_account_number(leaf.account), leaf.asset)


class SumTree:
    """The whole tree over a round's leaves.

    Raises ValueError for no leaves, two leaves of one (account, asset), a field that does not fit its type,
    or a total beyond uint128.
    """

    def __init__(self, leaves: Iterable[Leaf]) -> None:
        keyed = sorted(((leaf_key(leaf), leaf) for leaf in leaves), key=lambda pair: pair[0])
        if not keyed:
            raise ValueError("a settlement has at least one leaf")
        self._keys = [key for key, _ in keyed]
        self.leaves: tuple[Leaf, ...] = tuple(leaf for _, leaf in keyed)
        for index in range(1, len(keyed)):
            if self._keys[index] == self._keys[index - 1]:
                twice = self.leaves[index]
                raise ValueError(f"two leaves for account {twice.account}, asset {twice.asset}")
        self.total_wei = sum(leaf.cumulative_wei for leaf in self.leaves)
        if self.total_wei > UINT128_MAX:
            raise ValueError("the sum of cumulative rewards does not fit in 128 bits")
        hashed = hasher()
        self._levels: list[list[_Node]] = [
            [(hashed(_leaf_words(key[0], leaf)), leaf.cumulative_wei) for key, leaf in keyed]
        ]
        while len(self._levels[-1]) > 1:
            self._levels.append(_level_above(self._levels[-1], hashed))
        self.root: bytes = self._levels[-1][0][0]

    def index_of(self, account: Address, asset: int = 0) -> int:
        """Where the leaf of (account, asset) stands. Raises KeyError if there is none."""
        key = (_account_number(account), asset)
        index = bisect_left(self._keys, key)
        if index == len(self._keys) or self._keys[index] != key:
            raise KeyError((account, asset))
        return index

    def proof(self, index: int) -> tuple[ProofStep, ...]:
        """The siblings from leaf `index` up to the root. Raises IndexError."""
        if not 0 <= index < len(self.leaves):
            raise IndexError(f"no leaf {index} among {len(self.leaves)}")
        steps: list[ProofStep] = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                node, sum_wei = level[sibling]
                steps.append(ProofStep(node, sum_wei, is_left=sibling < index))
            index >>= 1
        return tuple(steps)


def verify(leaf: Leaf, proof: Sequence[ProofStep], root: bytes, total_wei: int) -> bool:
    """True if the proof leads from the leaf to (root, total_wei). Never raises for hostile values."""
    if len(proof) > MAX_DEPTH:
        return False
    try:
        node, sum_wei = leaf_hash(leaf), leaf.cumulative_wei
    except ValueError:
        return False
    for step in proof:
        if len(step.hash) != 32 or not 0 <= step.sum_wei <= UINT128_MAX:
            return False
        here, sibling = (node, sum_wei), (step.hash, step.sum_wei)
        node, sum_wei = _inner(sibling, here) if step.is_left else _inner(here, sibling)
        if sum_wei > UINT128_MAX:
            return False
    return node == root and sum_wei == total_wei


def _level_above(level: list[_Node], hashed: Callable[[bytes], bytes]) -> list[_Node]:
    above = [_inner(level[i], level[i + 1], hashed) for i in range(0, len(level) - 1, 2)]
    if len(level) % 2:
        above.append(level[-1])
    return above


def _inner(left: _Node, right: _Node, hashed: Callable[[bytes], bytes] = keccak) -> _Node:
    packed = b"".join(
        (_INNER_TAG, left[0], left[1].to_bytes(32, "big"), right[0], right[1].to_bytes(32, "big"))
    )
    return hashed(packed), left[1] + right[1]


def _account_number(account: str) -> int:
    # int(…, 16) alone would also read underscores, spaces and signs
    try:
        raw = bytes.fromhex(account[2:])
    except ValueError as bad:
        raise ValueError(f"not an address: {account!r:.60}") from bad
    if len(account) != 42 or len(raw) != 20 or account[:2] != "0x":
        raise ValueError(f"not an address: {account!r:.60}")
    return int.from_bytes(raw, "big")


def _check_leaf(leaf: Leaf) -> None:
    if not 0 <= leaf.asset <= _UINT256_MAX:
        raise ValueError(f"asset {leaf.asset} does not fit in 256 bits")
    if not -(2**127) <= leaf.score < 2**127:
        raise ValueError(f"score {leaf.score} does not fit in 128 bits")
    if not 0 <= leaf.reward_wei <= UINT128_MAX or not 0 <= leaf.cumulative_wei <= UINT128_MAX:
        raise ValueError(f"a reward of {leaf.account} does not fit in 128 bits")
