"""ABI values that fill one word of 32 bytes, which is what nearly every event of ours is made of.

eth_abi decodes everything and takes 30 microseconds a value; an indexer has millions of these. The checks are
the same: a word that holds more than its type allows is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

from eth_utils.address import to_checksum_address

WORD = 32
Decoder = Callable[[bytes], object]  # raises ValueError


@lru_cache(maxsize=1 << 14)
def checksummed(address: bytes) -> str:
    """EIP-55 of 20 bytes; the same few addresses come again and again."""
    return str(to_checksum_address(address))


@cache
def word_decoder(kind: str) -> Decoder | None:
    """From the word of a value of this type to what `Event.args` has; None if it is not one word."""
    if kind == "address":
        return _address
    if kind == "bool":
        return _bool
    for prefix, decoder_of, unit in (("uint", _uint, 8), ("int", _int, 8), ("bytes", _fixed_bytes, 1)):
        size = kind.removeprefix(prefix)
        if size != kind and size.isdigit() and 0 < int(size) <= WORD * unit:
            return decoder_of(int(size))
    return None


def _address(word: bytes) -> str:
    if any(word[:12]):
        raise ValueError("not an address")
    return checksummed(word[12:])


def _bool(word: bytes) -> bool:
    number = int.from_bytes(word, "big")
    if number > 1:
        raise ValueError("not a bool")
    return number == 1


def _uint(bits: int) -> Decoder:
    def decode(word: bytes) -> int:
        number = int.from_bytes(word, "big")
        if number >> bits:
            raise ValueError(f"does not fit in {bits} bits")
        return number

    return decode


def _int(bits: int) -> Decoder:
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1

    def decode(word: bytes) -> int:
        number = int.from_bytes(word, "big", signed=True)
        if not least <= number <= most:
            raise ValueError(f"does not fit in {bits} bits")
        return number

    return decode


def _fixed_bytes(size: int) -> Decoder:
    def decode(word: bytes) -> str:
        if any(word[size:]):
            raise ValueError(f"longer than {size} bytes")
        return "0x" + word[:size].hex()

    return decode
