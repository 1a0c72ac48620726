"""The sum trees of a settlement: against a naive reading of their definition, against forgeries, and at
size.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
from eth_abi.abi import encode as abi_encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_ledger import merkle, rewards
from dfl_ledger.merkle import Node, RewardTree, ScoreTree, Top, depth_of, verify
from dfl_ledger.records import NOBODY, REFUSED, Address, Leaf, ProofStep, ScoreLeaf, Tree

UINT128_MAX = 2**128 - 1

addresses = st.binary(min_size=20, max_size=20).map(lambda raw: Address(to_checksum_address(raw)))
leaf_values = st.builds(
    Leaf,
    account=addresses,
    asset=st.one_of(st.just(0), st.integers(0, 2**256 - 1)),
    score=st.integers(-(2**127), 2**127 - 1),
    reward_wei=st.integers(0, UINT128_MAX),
    cumulative_wei=st.integers(0, 2**121),
)
score_values = st.one_of(st.just(REFUSED), st.integers(-(2**63), 2**63 - 1), st.integers(-9, 9)).map(
    lambda score: ScoreLeaf(score, rewards.contribution_weight(score))
)


def padded(lowest: list[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
    return lowest + [(bytes(32), 0)] * ((1 << depth_of(len(lowest))) - len(lowest))


def naive_root(domain: int, lowest: list[tuple[bytes, int]]) -> tuple[bytes, int]:
    """The definition, with eth_abi and no regard for speed."""
    level = padded(lowest)
    while len(level) > 1:
        level = [
            (
                keccak(abi_encode(["uint256", "bytes32", "uint256", "bytes32", "uint256"], [domain, *a, *b])),
                a[1] + b[1],
            )
            for a, b in zip(level[::2], level[1::2], strict=True)
        ]
    return level[0]


def naive_leaf(leaf: Leaf) -> tuple[bytes, int]:
    types = ["uint256", "address", "uint256", "int128", "uint128", "uint128"]
    words = [0, leaf.account, leaf.asset, leaf.score, leaf.reward_wei, leaf.cumulative_wei]
    return keccak(abi_encode(types, words)), leaf.cumulative_wei


def make_leaves(count: int, seed: int = 1) -> list[Leaf]:
    rng = random.Random(seed)  # noqa: S311  reproducible, not secret
    return [
        Leaf(
            account=Address(to_checksum_address(rng.randbytes(20))),
            asset=0,
            score=rng.randrange(-(10**9), 10**9),
            reward_wei=(reward := rng.randrange(10**20)),
            cumulative_wei=reward + rng.randrange(10**21),
        )
        for _ in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(leaf_values, min_size=1, max_size=33))
def test_a_reward_tree_follows_the_definition(leaves: list[Leaf]) -> None:
    tree = RewardTree(leaves)
    assert (tree.root, tree.total_wei) == naive_root(1, [naive_leaf(leaf) for leaf in leaves])
    for place, leaf in enumerate(leaves):
        assert len(tree.proof(place)) == depth_of(len(leaves))
        assert merkle.place_of(Tree.REWARD, tree.top, leaf, tree.proof(place)) == place
        assert verify(leaf, tree.proof(place), tree.top)


@settings(max_examples=60, deadline=None)
@given(st.lists(score_values, min_size=1, max_size=33))
def test_a_score_tree_follows_the_definition(leaves: list[ScoreLeaf]) -> None:
    tree = ScoreTree(leaves)
    lowest = [
        (keccak(abi_encode(["uint256", "int64", "uint256"], [4, leaf.score, leaf.weight])), leaf.weight)
        for leaf in leaves
    ]
    assert (tree.root, tree.total) == naive_root(5, lowest)
    for place, leaf in enumerate(leaves):
        assert merkle.place_of(Tree.SCORE, tree.top, leaf, tree.proof(place)) == place


def test_a_place_is_a_path() -> None:
    """A leaf proven at one place is not proven at another, and beyond the last leaf there is nothing."""
    leaves = make_leaves(5)
    tree = RewardTree(leaves)
    for place in range(8):
        node = tree.node(place)
        climbed, at = merkle.climb(Tree.REWARD, node, tree.proof(place))
        assert (climbed, at) == ((tree.root, tree.total), place)
        assert (node == merkle.EMPTY) == (place >= 5)
    swapped = [replace(step, is_left=not step.is_left) for step in tree.proof(0)]
    assert not verify(leaves[0], swapped, tree.top)
    with pytest.raises(IndexError):
        tree.proof(8)


def test_a_single_leaf_is_its_own_root() -> None:
    (leaf,) = make_leaves(1)
    tree = RewardTree([leaf])
    assert (tree.root, tree.proof(0)) == (merkle.leaf_hash(leaf), ())
    assert verify(leaf, (), tree.top)


FORGERIES = {
    "another account": lambda leaf, proof: (replace(leaf, account=NOBODY), proof),
    "a higher reward": lambda leaf, proof: (replace(leaf, cumulative_wei=leaf.cumulative_wei + 1), proof),
    "another score": lambda leaf, proof: (replace(leaf, score=leaf.score + 1), proof),
    "a short proof": lambda leaf, proof: (leaf, proof[:-1]),
    "a long proof": lambda leaf, proof: (leaf, (*proof, ProofStep(bytes(32), 0, False))),
    "a sibling's sum": lambda leaf, proof: (leaf, (replace(proof[0], sum=proof[0].sum + 1), *proof[1:])),
    "a sum of 129 bits": lambda leaf, proof: (leaf, (replace(proof[0], sum=2**128), *proof[1:])),
    "a negative sum": lambda leaf, proof: (leaf, (replace(proof[0], sum=-1), *proof[1:])),
    "a sum of 257 bits": lambda leaf, proof: (leaf, (replace(proof[0], sum=2**256), *proof[1:])),
    "half a hash": lambda leaf, proof: (leaf, (replace(proof[0], hash=bytes(16)), *proof[1:])),
    "no address": lambda leaf, proof: (replace(leaf, account="0x" + "_" * 40), proof),
    "an asset of 257 bits": lambda leaf, proof: (replace(leaf, asset=2**256), proof),
    "a score of 129 bits": lambda leaf, proof: (replace(leaf, score=2**127), proof),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_are_refused(name: str) -> None:
    tree = RewardTree(make_leaves(6))
    leaf, proof = FORGERIES[name](tree.leaves[3], tree.proof(3))
    assert not verify(leaf, proof, tree.top)


@pytest.mark.parametrize(
    ("leaves", "why"),
    [
        ([], "at least one"),
        ([replace(make_leaves(1)[0], asset=2**256)], "asset"),
        ([replace(make_leaves(1)[0], score=-(2**127) - 1)], "score"),
        ([replace(make_leaves(1)[0], reward_wei=-1)], "reward"),
        ([replace(make_leaves(1)[0], account=Address("0x1"))], "address"),
        ([replace(leaf, cumulative_wei=UINT128_MAX) for leaf in make_leaves(2)], "128 bits"),
    ],
)
def test_what_is_no_reward_tree(leaves: list[Leaf], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        RewardTree(leaves)


def test_weights_never_carry() -> None:
    most = ScoreLeaf(1, 2**112 - 1)
    with pytest.raises(ValueError, match="fields"):
        ScoreTree([most, ScoreLeaf(1, 1)])
    with pytest.raises(ValueError, match="weight"):
        ScoreTree([ScoreLeaf(0, 2**256)])
    assert merkle.add(Tree.SCORE, 2**111, 2**111) == (2**112, False)
    assert merkle.add(Tree.SCORE, 2**255, 2**255) == (0, False)
    assert merkle.add(Tree.SCORE, 2**224 | 5, 2**224 | 7) == (2**225 | 12, True)
    assert merkle.add(Tree.REWARD, UINT128_MAX, 1) == (2**128, False)


def test_judging_nodes() -> None:
    """An honest tree has no node that is not sound; each flaw of another one is found."""
    leaves = make_leaves(3)
    tree = RewardTree(leaves)
    for level in range(3):
        for place in range(4 >> level):
            found = merkle.judge(
                Tree.REWARD, tree.top, tree.node(place, level), tree.proof(place, level), b""
            )
            assert (found.shown, found.sound, found.place) == (True, True, place)
    children = (tree.node(0, 1), tree.node(1, 1))
    inner = merkle.preimage_of(Tree.REWARD, children)
    assert merkle.judge(Tree.REWARD, tree.top, Node(tree.root, tree.total), (), inner).sound
    line = merkle.preimage_of(Tree.REWARD, leaves[2])
    assert merkle.judge(Tree.REWARD, tree.top, tree.node(2), tree.proof(2), line).sound

    def judged(top: Top, node: Node, proof: tuple[ProofStep, ...], preimage: bytes) -> tuple[bool, bool]:
        found = merkle.judge(Tree.REWARD, top, node, proof, preimage)
        return found.shown, found.sound

    # more than its children carry; a leaf where none may be, or none where one must; a leaf as an inner node
    more = Top(tree.root, tree.total + 1, 3)
    assert judged(more, Node(tree.root, tree.total + 1), (), inner) == (True, False)
    assert judged(Top(tree.root, tree.total, 4), tree.node(3), tree.proof(3), b"") == (True, False)
    assert judged(Top(*tree.top[:2], 2), tree.node(2), tree.proof(2), b"") == (False, False)
    single = RewardTree(leaves[:1])
    assert judged(
        Top(*single.top[:2], 2), Node(*single.top[:2]), (), merkle.preimage_of(Tree.REWARD, leaves[0])
    ) == (
        True,
        False,
    )
    # what is not in the tree, or not the preimage, shows nothing
    assert judged(tree.top, Node(bytes(32), 0), tree.proof(0), b"") == (False, False)
    assert judged(tree.top, tree.node(2), tree.proof(2), inner) == (False, False)
    assert judged(tree.top, tree.node(2), tree.proof(2), b"x") == (False, False)


def test_twenty_thousand_leaves_in_a_moment() -> None:
    leaves = make_leaves(20_000)
    started = time.thread_time()  # not the wall clock: the machine may be busy with other things
    tree = RewardTree(leaves)
    proof = tree.proof(12_345)
    assert time.thread_time() - started < 1.5  # four times what was measured
    assert verify(tree.leaves[12_345], proof, tree.top)
