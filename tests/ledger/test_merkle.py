"""The sum tree: against a naive reading of its definition, against forgeries, and at size."""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode as abi_encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_ledger.merkle import MAX_DEPTH, SumTree, leaf_hash, verify
from dfl_ledger.records import Address, Leaf, ProofStep

VECTORS = Path(__file__).parent / "vectors" / "sum_tree.json"
UINT128_MAX = 2**128 - 1

addresses = st.binary(min_size=20, max_size=20).map(lambda raw: Address(to_checksum_address(raw)))
small_addresses = st.integers(0, 40).map(lambda n: Address(to_checksum_address(n.to_bytes(20, "big"))))
leaf_values = st.builds(
    Leaf,
    account=st.one_of(addresses, small_addresses),
    asset=st.one_of(st.just(0), st.integers(0, 2**256 - 1)),
    score=st.integers(-(2**127), 2**127 - 1),
    reward_wei=st.integers(0, UINT128_MAX),
    cumulative_wei=st.integers(0, 2**121),
)
leaf_sets = st.lists(leaf_values, min_size=1, max_size=33, unique_by=lambda x: (int(x.account, 16), x.asset))


def naive_root(leaves: list[Leaf]) -> tuple[bytes, int]:
    """The definition, with eth_abi and no regard for speed."""
    level = [
        (
            keccak(
                abi_encode(
                    ["uint8", "address", "uint256", "int128", "uint128", "uint128"],
                    [0, leaf.account, leaf.asset, leaf.score, leaf.reward_wei, leaf.cumulative_wei],
                )
            ),
            leaf.cumulative_wei,
        )
        for leaf in sorted(leaves, key=lambda x: (int(x.account, 16), x.asset))
    ]
    while len(level) > 1:
        above = []
        for i in range(0, len(level), 2):
            if i + 1 == len(level):
                above.append(level[i])
                continue
            (left, left_sum), (right, right_sum) = level[i], level[i + 1]
            types = ["uint8", "bytes32", "uint128", "bytes32", "uint128"]
            packed = abi_encode(types, [1, left, left_sum, right, right_sum])
            above.append((keccak(packed), left_sum + right_sum))
        level = above
    return level[0]


def make_leaves(count: int, seed: int = 1) -> list[Leaf]:
    rng = random.Random(seed)  # noqa: S311  reproducible, not secret
    return [
        Leaf(
            account=Address(to_checksum_address(rng.randbytes(20))),
            asset=rng.choice((0, 0, 0, rng.getrandbits(200))),
            score=rng.randrange(-(10**9), 10**9),
            reward_wei=(reward := rng.randrange(10**20)),
            cumulative_wei=reward + rng.randrange(10**21),
        )
        for _ in range(count)
    ]


def make_vectors() -> list[dict[str, Any]]:
    """Trees of every awkward size, for whoever implements the tree in another language.

    Numbers are decimal strings, bytes are 0x hex.
    """
    extremes = Leaf(
        Address(to_checksum_address(b"\xff" * 20)), 2**256 - 1, -(2**127), UINT128_MAX, UINT128_MAX
    )
    sets = [make_leaves(count, seed=count) for count in (1, 2, 3, 4, 5, 7, 8, 9, 13)] + [[extremes]]
    return [_vector(SumTree(leaves)) for leaves in sets]


def _vector(tree: SumTree) -> dict[str, Any]:
    def step(s: ProofStep) -> dict[str, Any]:
        return {"hash": "0x" + s.hash.hex(), "sum_wei": str(s.sum_wei), "is_left": s.is_left}

    return {
        "root": "0x" + tree.root.hex(),
        "total_wei": str(tree.total_wei),
        "leaves": [
            {key: value if isinstance(value, str) else str(value) for key, value in asdict(leaf).items()}
            | {"hash": "0x" + leaf_hash(leaf).hex(), "proof": [step(s) for s in tree.proof(index)]}
            for index, leaf in enumerate(tree.leaves)
        ],
    }


def test_the_committed_vectors_are_what_the_tree_gives() -> None:
    """To write them anew: python -c "import test_merkle as t; t.write_vectors()" in this folder."""
    assert json.loads(VECTORS.read_text()) == make_vectors()


def write_vectors() -> None:
    VECTORS.write_text(json.dumps(make_vectors(), indent=1) + "\n")


@settings(max_examples=60, deadline=None)
@given(leaf_sets)
def test_root_and_proofs_follow_the_definition(leaves: list[Leaf]) -> None:
    tree = SumTree(leaves)
    assert (tree.root, tree.total_wei) == naive_root(leaves)
    for index, leaf in enumerate(tree.leaves):
        proof = tree.proof(index)
        assert verify(leaf, proof, tree.root, tree.total_wei)
        assert tree.index_of(leaf.account, leaf.asset) == index


@settings(max_examples=60, deadline=None)
@given(leaf_sets, st.data())
def test_nothing_changed_verifies(leaves: list[Leaf], data: st.DataObject) -> None:
    tree = SumTree(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    leaf, proof = tree.leaves[index], tree.proof(index)
    forged = data.draw(leaf_values.filter(lambda other: other != leaf))
    assert not verify(forged, proof, tree.root, tree.total_wei)
    assert not verify(leaf, proof, tree.root, tree.total_wei + 1)
    assert not verify(leaf, (*proof, ProofStep(bytes(32), 0, True)), tree.root, tree.total_wei)
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        step = proof[at]
        for wrong in (
            replace(step, sum_wei=step.sum_wei + 1),
            replace(step, is_left=not step.is_left),
            replace(step, hash=bytes(31) + b"\x01"),
            replace(step, hash=step.hash[:31]),
            replace(step, sum_wei=-1),
            replace(step, sum_wei=2**128),
        ):
            assert not verify(leaf, (*proof[:at], wrong, *proof[at + 1 :]), tree.root, tree.total_wei)
        assert not verify(leaf, proof[:-1], tree.root, tree.total_wei)


def test_the_order_given_does_not_matter() -> None:
    leaves = make_leaves(9)
    shuffled = random.Random(3).sample(leaves, len(leaves))  # noqa: S311
    assert SumTree(leaves).root == SumTree(shuffled).root


def test_accounts_are_ordered_as_integers_whatever_the_case_of_their_hex() -> None:
    lower, upper = "0x" + "0a" * 20, "0x" + "0B" * 20
    tree = SumTree([Leaf(Address(upper), 0, 0, 0, 1), Leaf(Address(lower), 0, 0, 0, 2)])
    assert [leaf.cumulative_wei for leaf in tree.leaves] == [2, 1]


def test_a_path_longer_than_the_contract_takes_is_refused() -> None:
    leaf = make_leaves(1)[0]
    proof: list[ProofStep] = []
    node, total = leaf_hash(leaf), leaf.cumulative_wei
    for _ in range(MAX_DEPTH + 1):
        types = ["uint8", "bytes32", "uint128", "bytes32", "uint128"]
        node = keccak(abi_encode(types, [1, node, total, bytes(32), 0]))
        proof.append(ProofStep(bytes(32), 0, is_left=False))
    assert not verify(leaf, proof, node, total)


def test_sums_that_wrap_around_are_refused() -> None:
    leaf = replace(make_leaves(1)[0], cumulative_wei=UINT128_MAX)
    types = ["uint8", "bytes32", "uint128", "bytes32", "uint128"]
    node = keccak(abi_encode(types, [1, leaf_hash(leaf), UINT128_MAX, bytes(32), 1]))
    assert not verify(leaf, [ProofStep(bytes(32), 1, is_left=False)], node, 0)
    assert not verify(leaf, [ProofStep(bytes(32), 1, is_left=False)], node, 2**128)


@pytest.mark.parametrize(
    "changes",
    [
        {"account": "0x1234"},
        {"account": "0x" + "g" * 40},
        {"account": "0x" + " 1" * 20},
        {"account": "1x" + "11" * 20},
        {"asset": -1},
        {"asset": 2**256},
        {"score": 2**127},
        {"reward_wei": -1},
        {"reward_wei": 2**128},
        {"cumulative_wei": 2**128},
    ],
)
def test_values_without_a_solidity_form_are_refused(changes: dict[str, Any]) -> None:
    good = make_leaves(1)[0]
    bad = replace(good, **changes)
    with pytest.raises(ValueError, match=r"address|fit"):
        SumTree([bad])
    assert not verify(bad, (), leaf_hash(good), good.cumulative_wei)


def test_trees_that_cannot_be_settled_are_refused() -> None:
    leaf = make_leaves(1)[0]
    with pytest.raises(ValueError, match="at least one"):
        SumTree([])
    with pytest.raises(ValueError, match="two leaves"):
        SumTree([leaf, replace(leaf, account=Address(leaf.account.lower()), cumulative_wei=1)])
    full = replace(leaf, cumulative_wei=UINT128_MAX)
    with pytest.raises(ValueError, match="128 bits"):
        SumTree([full, replace(leaf, asset=leaf.asset + 1, cumulative_wei=1)])


def test_unknown_leaves_have_no_place() -> None:
    tree = SumTree(make_leaves(5))
    with pytest.raises(KeyError):
        tree.index_of(Address("0x" + "00" * 20))
    with pytest.raises(KeyError):
        tree.index_of(tree.leaves[4].account, 2**255 + 7)
    with pytest.raises(IndexError):
        tree.proof(5)
    with pytest.raises(IndexError):
        tree.proof(-1)


def test_twenty_thousand_leaves_in_a_moment() -> None:
    leaves = make_leaves(20_000)
    started = time.thread_time()  # not the wall clock: the machine may be busy with other things
    tree = SumTree(leaves)
    proof = tree.proof(12_345)
    assert time.thread_time() - started < 1.5  # four times what was measured
    assert verify(tree.leaves[12_345], proof, tree.root, tree.total_wei)
