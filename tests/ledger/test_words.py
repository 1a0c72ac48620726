"""Quick decoding agrees with eth_abi on every word, and refuses what it refuses."""

from __future__ import annotations

import random

import pytest
from eth_abi.abi import decode as reference
from eth_abi.exceptions import DecodingError
from eth_utils.address import to_checksum_address

from dfl_ledger.words import word_decoder

KINDS = ("address", "bool", "uint8", "uint32", "uint64", "uint96", "uint128", "uint256")
MORE = ("int8", "int64", "int128", "int256", "bytes1", "bytes4", "bytes31", "bytes32")


def expected(kind: str, word: bytes) -> object:
    (value,) = reference([kind], word)
    if isinstance(value, bytes):
        return "0x" + value.hex()
    return to_checksum_address(value) if kind == "address" else value


@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_every_word_means_what_eth_abi_says(kind: str) -> None:
    draw = random.Random(kind)  # noqa: S311
    decode = word_decoder(kind)
    assert decode is not None
    refused = taken = 0
    for _ in range(600):
        size = draw.randint(0, 32)
        ends = (
            draw.randbytes(size).rjust(32, draw.choice((b"\0", b"\xff"))),
            draw.randbytes(size).ljust(32, b"\0"),
        )
        word = draw.choice((*ends, draw.randint(0, 2).to_bytes(32, "big")))
        try:
            wanted = expected(kind, word)
        except DecodingError:
            refused += 1
            with pytest.raises(ValueError, match=r"not|longer"):
                decode(word)
        else:
            taken += 1
            assert decode(word) == wanted
    assert taken > 20
    assert refused > 20 or kind in ("uint256", "int256", "bytes32")


@pytest.mark.parametrize(
    "kind",
    ["string", "bytes", "uint64[]", "uint64[2]", "(uint64,bool)", "uint0", "uint264", "bytes33", "function"],
)
def test_what_is_more_than_a_word_is_left_to_eth_abi(kind: str) -> None:
    assert word_decoder(kind) is None
