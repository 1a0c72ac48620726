"""Python and Solidity find the same in 10,000 random cases of each kind.

The cases are drawn by both from the same hashes, and what is found is rolled into one hash a kind, which
stands in contracts/test/Vectors.t.sol; the Solidity tests there compare theirs to it, and these compare ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from eth_account.messages import encode_typed_data
from eth_utils.address import to_checksum_address

from dfl_ledger import merkle, rewards, vectors
from dfl_ledger.chain_calls import PERMIT
from dfl_ledger.contracts import commitment
from dfl_ledger.keccak import hasher
from dfl_ledger.median import Vote, is_outlier, weighted_median
from dfl_ledger.merkle import RewardTree, ScoreTree
from dfl_ledger.records import REFUSED, Address, Cid, Contribution, JobId, Kind, Leaf, ScoreLeaf, Tree

SOLIDITY = Path(__file__).parents[2] / "contracts" / "test" / "Vectors.t.sol"
keccak = hasher()


def word(value: int | bool | bytes) -> bytes:
    """32 bytes as `abi.encode` has them."""
    return value if isinstance(value, bytes) else (value % 2**256).to_bytes(32, "big")


class Dice:
    """The n-th number of a case is keccak256(abi.encode(kind, index, n))."""

    def __init__(self, kind: int, index: int) -> None:
        self._start = word(kind) + word(index)
        self._drawn = 0

    def next(self) -> int:
        drawn = keccak(self._start + word(self._drawn))
        self._drawn += 1
        return int.from_bytes(drawn, "big")

    def signed(self, bits: int) -> int:
        return signed(self.next(), bits)

    def address(self) -> Address:
        return Address(to_checksum_address((self.next() % 2**160).to_bytes(20, "big")))

    def score(self) -> int:
        value = self.next()
        if value % 8 == 0:
            return REFUSED
        return (value >> 8) % 7 - 3 if value % 2 == 0 else signed(value >> 8, 64)


def signed(value: int, bits: int) -> int:
    low = value % 2**bits
    return low - 2**bits if low >> (bits - 1) else low


def reward_tree(dice: Dice) -> bytes:
    def leaf() -> Leaf:
        account, asset = dice.address(), dice.next()
        return Leaf(
            account,
            asset if asset % 4 == 0 else 0,
            dice.signed(128),
            dice.next() % 2**128,
            dice.next() % 2**120,
        )

    tree = RewardTree([leaf() for _ in range(1 + dice.next() % 9)])
    place = dice.next() % len(tree.leaves)
    assert merkle.place_of(Tree.REWARD, tree.top, tree.leaves[place], tree.proof(place)) == place
    return tree.root + word(tree.total) + word(place)


def score_tree(dice: Dice) -> bytes:
    def leaf() -> ScoreLeaf:
        score = dice.score()
        weigh = rewards.dataset_weight if dice.next() % 3 == 0 else rewards.contribution_weight
        return ScoreLeaf(score, weigh(score))

    tree = ScoreTree([leaf() for _ in range(1 + dice.next() % 9)])
    place = dice.next() % len(tree.leaves)
    assert merkle.place_of(Tree.SCORE, tree.top, tree.leaves[place], tree.proof(place)) == place
    return tree.root + word(tree.total) + word(place)


def vector_tree(dice: Dice) -> bytes:
    scores = [dice.signed(64) for _ in range(1 + dice.next() % 20)]
    subject = dice.next() % len(scores)
    tree = vectors.VectorTree(vectors.encode(scores))
    held, proof = tree.word(subject)
    assert vectors.holds(tree.root, len(scores), subject, held, proof)
    assert vectors.score_in(held, subject) == scores[subject]
    # the offset of the proof, behind the four other words and itself, then its length and its words
    return tree.root + held + word(32 * 5) + word(scores[subject]) + word(len(proof)) + b"".join(proof)


def median(dice: Dice) -> bytes:
    votes = []
    for seat in range(1 + dice.next() % 16):
        score, weight = dice.score(), dice.next()
        votes.append(Vote(score, seat, weight % 5 if weight % 3 == 0 else weight % 2**96))
    found = weighted_median(votes)
    return word(found) + word(is_outlier(votes[0].score, found))


def permit(dice: Dice) -> bytes:
    chain_id, token = dice.next() % 2**64, dice.address()
    message = {
        "owner": dice.address(),
        "spender": dice.address(),
        "value": dice.next(),
        "nonce": dice.next(),
        "deadline": dice.next(),
    }
    domain = {"name": "dfl VNX", "version": "1", "chainId": chain_id, "verifyingContract": token}
    signable = encode_typed_data(domain, {"Permit": PERMIT}, message)
    return keccak(b"\x19\x01" + signable.header + signable.body)


def commitments(dice: Dice) -> bytes:
    job, round_ = JobId(dice.next() % 2**64), dice.next() % 2**32
    node, salt = dice.address(), word(dice.next())
    parent, update = (Cid.from_digest(word(dice.next())) for _ in range(2))
    kind, samples = Kind(dice.next() % 4), dice.next() % 2**64
    contribution = Contribution(job, round_, node, kind, update, parent, samples)
    vector = word(dice.next())
    panel = dice.next() % 2**8
    return commitment(contribution, salt) + vectors.commitment(job, round_, panel, node, vector, salt)


KINDS: dict[str, Callable[[Dice], bytes]] = {
    "REWARD_TREES": reward_tree,
    "SCORE_TREES": score_tree,
    "VECTOR_TREES": vector_tree,
    "MEDIANS": median,
    "PERMITS": permit,
    "COMMITMENTS": commitments,
}


def rolled(name: str) -> str:
    """What all cases of a kind give."""
    number, find = list(KINDS).index(name), KINDS[name]
    found = bytes(32)
    for index in range(10_000):
        found = keccak(found + find(Dice(number, index)))
    return "0x" + found.hex()


@pytest.mark.parametrize("name", KINDS)
def test_ten_thousand_cases(name: str) -> None:
    text = SOLIDITY.read_text(encoding="utf-8")
    assert "CASES = 10_000;" in text
    stated = re.search(rf"constant {name} =\s*(0x[0-9a-f]{{64}});", text)
    assert stated is not None
    assert rolled(name) == stated.group(1)


def write_vectors() -> None:
    """Write the hashes anew: python -c "from tests.ledger.test_twins import write_vectors as w; w()"."""
    text = SOLIDITY.read_text(encoding="utf-8")
    for name in KINDS:
        text = re.sub(rf"(constant {name} =)\s*[0-9a-fx]+;", rf"\1\n        {rolled(name)};", text)
    SOLIDITY.write_text(text, encoding="utf-8")
