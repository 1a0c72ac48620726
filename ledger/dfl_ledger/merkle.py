"""The two sum trees of a settlement: twin of contracts/libraries/SumTree.sol and Nodes.sol.

Every inner node commits to the sums of its children, so a root with its total proves that no more is paid out
than was settled. All words are 32 bytes, as `abi.encode` lays them out:

    RewardTree   leaf   keccak256(0 | account | asset | score | reward | cumulative)      sum = cumulative
                 inner  keccak256(1 | left hash | left sum | right hash | right sum)      sum = left + right
    ScoreTree    leaf   keccak256(4 | score | weight)                                     sum = weight
                 inner  keccak256(5 | left hash | left sum | right hash | right sum)      sum = left + right

Both are perfect binary trees: a leaf stands at its place, the payee's number or the subject, and (hash 0, sum
0) at each place from their number up to the next power of two. So no leaf can be missing or stand twice: its
place is its path. A single leaf is its own root. A reward tree's sums have 128 bits; a score tree's are
packed weights (rewards.py), which add field by field and must not carry from one into the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from eth_hash.auto import keccak

from dfl_ledger.keccak import hasher
from dfl_ledger.records import Address, Leaf, ProofStep, ScoreLeaf, Tree

UINT128_MAX = 2**128 - 1
_UINT256_MAX = 2**256 - 1
_UINT160_MAX = 2**160 - 1
_WEIGHT_TOPS = 1 << 111 | 1 << 223 | 1 << 255  # the highest bit of each field of a packed weight
_LEAF_START = bytes(32 + 12)  # the tag, and what an address leaves of its word
_SCORE_LEAF_TAG = (4).to_bytes(32, "big")
_INNER_TAGS = {Tree.REWARD: (1).to_bytes(32, "big"), Tree.SCORE: (5).to_bytes(32, "big")}
_LEAF_WORDS, _SCORE_LEAF_WORDS, _INNER_WORDS = 5, 2, 4

Hash = Callable[[bytes], bytes]
_Pair = tuple[bytes, int]  # (hash, sum)
L = TypeVar("L", Leaf, ScoreLeaf)


class Node(NamedTuple):
    """A node of a sum tree."""

    hash: bytes  # 32 bytes
    sum: int


EMPTY = Node(bytes(32), 0)


class Top(NamedTuple):
    """A sum tree's root, and how many leaves there are below it."""

    hash: bytes
    sum: int
    leaves: int


def depth_of(leaves: int) -> int:
    """Levels above the leaves of a tree with so many of them."""
    return (leaves - 1).bit_length() if leaves else 0


def leaf_hash(leaf: Leaf) -> bytes:
    """The 32 bytes of a reward tree's leaf. Raises ValueError if a field does not fit its Solidity type."""
    return keccak(_leaf_words(leaf))


def score_leaf_hash(leaf: ScoreLeaf) -> bytes:
    """The 32 bytes of a score tree's leaf. Raises ValueError if a field does not fit its Solidity type."""
    return keccak(_score_leaf_words(leaf))


class _SumTree(Generic[L]):
    """What both trees are. Only nodes with a leaf below them are kept; the rest are one a level."""

    def __init__(self, tree: Tree, leaves: Sequence[L], lowest: list[_Pair], hashed: Hash) -> None:
        if not lowest:
            raise ValueError("a tree has at least one leaf")
        self.leaves: tuple[L, ...] = tuple(leaves)
        self._levels: list[list[_Pair]] = [lowest]
        self._empty: list[_Pair] = [EMPTY]
        tag = _INNER_TAGS[tree]
        while len(self._levels[-1]) > 1:
            level, empty = self._levels[-1], self._empty[-1]
            right: list[_Pair] = level[1::2]
            if len(level) % 2:
                right = [*right, empty]
            # written out, and with plain tuples: a tree of 100,000 leaves has as many inner nodes
            self._levels.append(
                [
                    (hashed(tag + a + m.to_bytes(32, "big") + b + n.to_bytes(32, "big")), m + n)
                    for (a, m), (b, n) in zip(level[::2], right, strict=True)
                ]
            )
            self._empty.append(_inner(tag, Node(*empty), Node(*empty), hashed))
        self.root, self.total = self._levels[-1][0]

    @property
    def top(self) -> Top:
        return Top(self.root, self.total, len(self.leaves))

    def proof(self, place: int, level: int = 0) -> tuple[ProofStep, ...]:
        """The siblings from a node up to the root: by default the leaf's at `place`. Raises IndexError."""
        if not 0 <= level < len(self._levels) or not 0 <= place < 1 << (len(self._levels) - 1 - level):
            raise IndexError(f"no place {place} on level {level} of a tree of {len(self.leaves)} leaves")
        steps: list[ProofStep] = []
        for at in range(level, len(self._levels) - 1):
            sibling = self.node(place ^ 1, at)
            steps.append(ProofStep(sibling.hash, sibling.sum, is_left=place % 2 == 1))
            place >>= 1
        return tuple(steps)

    def node(self, place: int, level: int = 0) -> Node:
        """A node of the tree: level 0 are the leaves."""
        nodes = self._levels[level]
        return Node(*(nodes[place] if place < len(nodes) else self._empty[level]))


class RewardTree(_SumTree[Leaf]):
    """What each payee has earned, by its number.

    Raises ValueError for no leaves, a field that does not fit its type, or a total beyond uint128.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        hashed = hasher()
        lowest = [(hashed(_leaf_words(leaf)), leaf.cumulative_wei) for leaf in leaves]
        if sum(leaf.cumulative_wei for leaf in leaves) > UINT128_MAX:
            raise ValueError("the sum of cumulative rewards does not fit in 128 bits")
        super().__init__(Tree.REWARD, leaves, lowest, hashed)
        self._places = {(leaf.account, leaf.asset): place for place, leaf in enumerate(leaves)}

    @property
    def total_wei(self) -> int:
        return self.total

    def place_of(self, account: Address, asset: int = 0) -> int:
        """Where the leaf of an account, or (with NOBODY) of an asset, stands. Raises KeyError."""
        return self._places[account, asset]


class ScoreTree(_SumTree[ScoreLeaf]):
    """What each contribution, then each data set, is worth.

    Raises ValueError for no leaves, a field that does not fit its type, or a sum that carries between fields.
    """

    def __init__(self, leaves: Sequence[ScoreLeaf]) -> None:
        hashed = hasher()
        lowest = [(hashed(_score_leaf_words(leaf)), leaf.weight) for leaf in leaves]
        total = 0
        for leaf in leaves:
            total, sound = add(Tree.SCORE, total, leaf.weight)
            if not sound:
                raise ValueError("the sum of weights does not fit its fields")
        super().__init__(Tree.SCORE, leaves, lowest, hashed)


# -- proofs -----------------------------------------------------------------------------------------------
def verify(leaf: Leaf, proof: Sequence[ProofStep], top: Top) -> bool:
    """True if the proof leads from the leaf to the top of a reward tree. Never raises for hostile values."""
    return place_of(Tree.REWARD, top, leaf, proof) is not None


def place_of(tree: Tree, top: Top, leaf: Leaf | ScoreLeaf, proof: Sequence[ProofStep]) -> int | None:
    """Where a leaf is proven to stand, which may be beyond the last leaf; None if the proof proves
    nothing.
    """
    try:
        if isinstance(leaf, Leaf):
            node = Node(leaf_hash(leaf), leaf.cumulative_wei)
        else:
            node = Node(score_leaf_hash(leaf), leaf.weight)
    except ValueError:
        return None
    return _proven(tree, top, node, proof) if len(proof) == depth_of(top.leaves) else None


def climb(tree: Tree, node: Node, proof: Sequence[ProofStep]) -> tuple[Node, int | None]:
    """Follow a proof: the root it leads to, and the node's place on its level, None if a sum overflows."""
    place, sound = 0, tree is not Tree.REWARD or node.sum <= UINT128_MAX
    tag = _INNER_TAGS[tree]
    for height, step in enumerate(proof):
        sibling = Node(step.hash, step.sum)
        left, right = (sibling, node) if step.is_left else (node, sibling)
        place |= step.is_left << height
        sound &= add(tree, left.sum, right.sum)[1]
        node = _inner(tag, left, right, keccak)
    return node, place if sound else None


def add(tree: Tree, left: int, right: int) -> tuple[int, bool]:
    """The sum of two children, and whether it may stand in the tree."""
    total = (left + right) & _UINT256_MAX
    if tree is Tree.REWARD:
        return total, max(left, right, left + right) <= UINT128_MAX
    # where a bit carries both have it, or one has it and the sum has not
    carries = (left & right) | ((left | right) & ~total)
    return total, not carries & _WEIGHT_TOPS


class Judged(NamedTuple):
    """What `judge` finds of a node."""

    shown: bool  # the tree has this node, and the preimage is its hash's
    sound: bool  # an honest tree may have it there, as far as the preimage tells
    place: int | None


def judge(tree: Tree, top: Top, node: Node, proof: Sequence[ProofStep], preimage: bytes) -> Judged:
    """Judge a node that is somewhere in a tree. `preimage` is what its hash is of, or empty.

    A leaf can be challenged only if it can be proven, and that only while every sum on its way is right. So
    whoever holds a node that no honest tree has shows the node itself.
    """
    place = _proven(tree, top, node, proof)
    if place is None or not _is_of(tree, node.hash, preimage):
        return Judged(False, False, place)
    words = [int.from_bytes(preimage[at : at + 32], "big") for at in range(0, len(preimage), 32)]
    if len(proof) < depth_of(top.leaves):
        return Judged(
            True, node.hash != EMPTY.hash and (not words or _is_inner(tree, node.sum, words)), place
        )
    if place >= top.leaves:
        return Judged(True, node == EMPTY, place)
    is_line = _is_leaf if tree is Tree.REWARD else _is_score_leaf
    return Judged(True, node.hash != EMPTY.hash and (not words or is_line(node.sum, words)), place)


def preimage_of(tree: Tree, node: Leaf | ScoreLeaf | tuple[Node, Node]) -> bytes:
    """What a node's hash is of, without the domain: of a leaf, or of an inner node's two children."""
    if isinstance(node, Leaf):
        return _leaf_words(node)[32:]
    if isinstance(node, ScoreLeaf):
        return _score_leaf_words(node)[32:]
    return _inner_words(_INNER_TAGS[tree], *node)[32:]


def _proven(tree: Tree, top: Top, node: Node, proof: Sequence[ProofStep]) -> int | None:
    """The node's place on its level, None if the proof does not lead to the top."""
    if len(proof) > depth_of(top.leaves) or not all(_fits(step) for step in proof):
        return None
    root, place = climb(tree, node, proof)
    return place if root == (top.hash, top.sum) else None


def _fits(step: ProofStep) -> bool:
    return len(step.hash) == 32 and 0 <= step.sum <= _UINT256_MAX


def _is_of(tree: Tree, digest: bytes, preimage: bytes) -> bool:
    """The length of a preimage says what it is of: an inner node, or a leaf of either tree."""
    if not preimage:
        return True
    tags = {
        32 * _LEAF_WORDS: bytes(32),
        32 * _SCORE_LEAF_WORDS: _SCORE_LEAF_TAG,
        32 * _INNER_WORDS: _INNER_TAGS[tree],
    }
    tag = tags.get(len(preimage))
    return tag is not None and keccak(tag + preimage) == digest


def _is_inner(tree: Tree, total: int, words: list[int]) -> bool:
    if len(words) != _INNER_WORDS:
        return False
    own, sound = add(tree, words[1], words[3])
    return sound and own == total


def _is_leaf(total: int, words: list[int]) -> bool:
    """Words too large for their types could neither be claimed nor challenged."""
    if len(words) != _LEAF_WORDS:
        return False
    account, _asset, score, reward, cumulative = words
    narrow = max(reward, cumulative) <= UINT128_MAX and account <= _UINT160_MAX
    return narrow and _is_signed(score, 128) and cumulative == total


def _is_score_leaf(total: int, words: list[int]) -> bool:
    return len(words) == _SCORE_LEAF_WORDS and _is_signed(words[0], 64) and words[1] == total


def _is_signed(word: int, bits: int) -> bool:
    """True for the two's complement of a number of so many bits."""
    least = 1 << (bits - 1)
    return word < least or word >= 2**256 - least


# -- words ------------------------------------------------------------------------------------------------
def _inner_words(tag: bytes, left: Node, right: Node) -> bytes:
    return b"".join((tag, left.hash, left.sum.to_bytes(32, "big"), right.hash, right.sum.to_bytes(32, "big")))


def _inner(tag: bytes, left: Node, right: Node, hashed: Hash) -> Node:
    return Node(hashed(_inner_words(tag, left, right)), (left.sum + right.sum) & _UINT256_MAX)


def _leaf_words(leaf: Leaf) -> bytes:
    if not 0 <= leaf.asset <= _UINT256_MAX:
        raise ValueError(f"asset {leaf.asset} does not fit in 256 bits")
    if not -(2**127) <= leaf.score < 2**127:
        raise ValueError(f"score {leaf.score} does not fit in 128 bits")
    if not 0 <= leaf.reward_wei <= UINT128_MAX or not 0 <= leaf.cumulative_wei <= UINT128_MAX:
        raise ValueError(f"a reward of {leaf.account} does not fit in 128 bits")
    return b"".join(
        (
            _LEAF_START,
            _address_bytes(leaf.account),
            leaf.asset.to_bytes(32, "big"),
            leaf.score.to_bytes(32, "big", signed=True),
            leaf.reward_wei.to_bytes(32, "big"),
            leaf.cumulative_wei.to_bytes(32, "big"),
        )
    )


def _score_leaf_words(leaf: ScoreLeaf) -> bytes:
    if not -(2**63) <= leaf.score < 2**63:
        raise ValueError(f"score {leaf.score} does not fit in 64 bits")
    if not 0 <= leaf.weight <= _UINT256_MAX:
        raise ValueError(f"weight {leaf.weight} does not fit in 256 bits")
    return _SCORE_LEAF_TAG + leaf.score.to_bytes(32, "big", signed=True) + leaf.weight.to_bytes(32, "big")


def _address_bytes(account: str) -> bytes:
    # int(…, 16) alone would also read underscores, spaces and signs
    try:
        raw = bytes.fromhex(account[2:])
    except ValueError as bad:
        raise ValueError(f"not an address: {account!r:.60}") from bad
    if len(account) != 42 or len(raw) != 20 or account[:2] != "0x":
        raise ValueError(f"not an address: {account!r:.60}")
    return raw
