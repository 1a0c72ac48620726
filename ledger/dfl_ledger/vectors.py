"""An evaluator's scores as bytes, and their Merkle tree: twin of contracts/libraries/VectorTree.sol.

A vector has 8 bytes a score, big-endian two's complement, in 1e-9 of validation loss. Four scores make a word
of 32 bytes, the last one padded with zero bytes:

    leaf    keccak256(2 | word)
    inner   keccak256(3 | left | right)

The tree is perfect, with hash 0 at each place from the number of words up to the next power of two.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from eth_hash.auto import keccak

from dfl_ledger.errors import VerificationFailed
from dfl_ledger.merkle import depth_of
from dfl_ledger.records import Address, Word

SCORE_BYTES = 8
SCORES_A_WORD = 4
_WORD_BYTES = SCORE_BYTES * SCORES_A_WORD
_LEAF_TAG = (2).to_bytes(32, "big")
_INNER_TAG = (3).to_bytes(32, "big")


def encode(scores: Sequence[int]) -> bytes:
    """The bytes of a vector. Raises ValueError for a score beyond 64 bits."""
    try:
        return struct.pack(f">{len(scores)}q", *scores)
    except struct.error as bad:
        raise ValueError(f"not a vector of scores: {bad}") from bad


def decode(vector: bytes, subjects: int) -> tuple[int, ...]:
    """The scores of a vector of anybody. Raises VerificationFailed if it has not this many."""
    if len(vector) != SCORE_BYTES * subjects:
        raise VerificationFailed(
            "a score vector has another length", why=f"{len(vector)} bytes are not {subjects} scores"
        )
    return struct.unpack(f">{subjects}q", vector)


def commitment(job: int, round_: int, panel: int, evaluator: Address, vector: bytes, salt: bytes) -> bytes:
    """What binds a seat to its vector before it shows it: 32 bytes. The evaluator is inside, so that a copied
    commitment cannot be revealed. `salt` has 32 bytes, and is secret until the reveal."""
    if len(salt) != 32:
        raise ValueError(f"a salt has 32 bytes, not {len(salt)}")
    who = bytes.fromhex(evaluator.removeprefix("0x")).rjust(32, b"\0")
    numbers = b"".join(number.to_bytes(32, "big") for number in (job, round_, panel))
    return keccak(numbers + who + keccak(vector) + salt)


class VectorTree:
    """The tree over a vector. An empty vector has the root 0."""

    def __init__(self, vector: bytes) -> None:
        self._words = [
            vector[at : at + _WORD_BYTES].ljust(_WORD_BYTES, b"\0")
            for at in range(0, len(vector), _WORD_BYTES)
        ]
        self._levels = [[keccak(_LEAF_TAG + word) for word in self._words]]
        self._empty = [bytes(32)]
        while len(self._levels[-1]) > 1:
            level, empty = self._levels[-1], self._empty[-1]
            if len(level) % 2:
                level = [*level, empty]
            self._levels.append([_inner(a, b) for a, b in zip(level[::2], level[1::2], strict=True)])
            self._empty.append(_inner(empty, empty))
        self.root: bytes = self._levels[-1][0] if self._words else bytes(32)

    def word(self, subject: int) -> tuple[bytes, tuple[bytes, ...]]:
        """The word that holds a subject's score, and its proof, bottom up. Raises IndexError."""
        place = subject // SCORES_A_WORD
        word, proof = self._words[place], []
        for level, empty in zip(self._levels[:-1], self._empty, strict=False):
            sibling = place ^ 1
            proof.append(level[sibling] if sibling < len(level) else empty)
            place >>= 1
        return word, tuple(proof)


def word_of(seat: int, vector: bytes, subject: int) -> Word:
    """What a challenge or a verdict shows of a seat's vector. Raises IndexError."""
    return Word(seat, *VectorTree(vector).word(subject))


def holds(root: bytes, subjects: int, subject: int, word: bytes, proof: Sequence[bytes]) -> bool:
    """True if `word` holds the score of `subject` in the vector of so many subjects with this root."""
    if len(proof) != depth_of(-(-subjects // SCORES_A_WORD)) or len(word) != _WORD_BYTES:
        return False
    place, node = subject // SCORES_A_WORD, keccak(_LEAF_TAG + word)
    for height, sibling in enumerate(proof):
        node = _inner(sibling, node) if place >> height & 1 else _inner(node, sibling)
    return node == root


def score_in(word: bytes, subject: int) -> int:
    """The score of a subject, in its word."""
    at = SCORE_BYTES * (subject % SCORES_A_WORD)
    return int.from_bytes(word[at : at + SCORE_BYTES], "big", signed=True)


def _inner(left: bytes, right: bytes) -> bytes:
    return keccak(_INNER_TAG + left + right)
