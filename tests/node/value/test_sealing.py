"""Sealed shards: a chain of keys that one hash checks, and boxes that nothing but their key opens."""

from __future__ import annotations

import hashlib
import hmac
import struct

import pytest
from eth_hash.auto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_ledger.errors import VerificationFailed
from dfl_node.value import sealing
from dfl_node.value.sealing import make_chain, seal, unseal, verify

SECRET = bytes(range(32))


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with no salt, one block: written out here."""
    pseudorandom = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(pseudorandom, info + b"\x01", "sha256")


def chacha20(key: bytes, nonce: bytes, counter: int) -> bytes:
    """One block of RFC 8439, written out here."""
    state = list(struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<I", counter) + nonce))
    work = state.copy()

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            work[x] = (work[x] + work[y]) & 0xFFFFFFFF
            mixed = work[z] ^ work[x]
            work[z] = (mixed << turn | mixed >> (32 - turn)) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            quarter(column, column + 4, column + 8, column + 12)
        for column in range(4):
            quarter(column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)
    return struct.pack("<16I", *((x + y) & 0xFFFFFFFF for x, y in zip(work, state, strict=True)))


def test_every_key_follows_the_one_before_it() -> None:
    chain = make_chain(SECRET, 50)
    assert len(chain.keys) == 50
    previous = chain.anchor
    for key in chain.keys:
        verify(key, previous)
        assert keccak(key) == previous
        previous = key
    with pytest.raises(VerificationFailed):
        verify(chain.keys[2], chain.keys[0])  # one was left out
    with pytest.raises(VerificationFailed):
        verify(chain.keys[0], chain.keys[1])  # backwards
    for wrong in (b"", chain.keys[0][:31], chain.keys[0] + b"\0"):
        with pytest.raises(VerificationFailed):
            verify(wrong, chain.anchor)


def test_the_last_key_comes_from_the_secret_and_the_label_alone() -> None:
    assert make_chain(SECRET, 3).keys[-1] == hkdf(SECRET, b"dfl seal chain")
    assert make_chain(SECRET, 9).keys[-3:] == make_chain(SECRET, 3).keys
    assert make_chain(SECRET, 3, b"job 7").keys[-1] == hkdf(SECRET, b"dfl seal chainjob 7")
    assert make_chain(SECRET, 1).anchor == keccak(hkdf(SECRET, b"dfl seal chain"))


def test_vectors() -> None:
    """Computed here from the RFCs alone, and as hexadecimal for other implementations."""
    chain = make_chain(SECRET, 3, b"vectors")
    assert chain.anchor.hex() == "d06b421fecc2fa7fcb4b52df029def63e90d90ac58799029609be8c6af501451"
    shard, index = b"forty-two rows of validation data", 1
    sealed = seal(shard, chain.keys[index], index)
    own = hkdf(chain.keys[index], b"dfl shard\0\0\0\1")
    nonce = hmac.digest(own, hashlib.sha256(shard).digest(), "sha256")[:12]
    stream = chacha20(own, nonce, 1)
    assert sealed[:20] == b"dflseal1" + nonce
    assert sealed[20:-16] == bytes(a ^ b for a, b in zip(shard, stream, strict=False))
    assert sealed.hex() == (
        "64666c7365616c31c8a51943edadb8505932dd75a6a56d226fa074ea9770b40be69a9681a6a8ea5e"
        "143b1f2e5adecba2b8a0ec01aa6d0e245b2718c1d5e50a4d294843596e"
    )


@given(st.binary(max_size=300), st.integers(0, 6), st.data())
@settings(max_examples=60)
def test_only_its_key_opens_a_shard_and_nobody_can_change_it(
    shard: bytes, index: int, data: st.DataObject
) -> None:
    keys = make_chain(SECRET, 7).keys
    sealed = seal(shard, keys[index], index)
    assert len(sealed) == len(shard) + sealing.OVERHEAD_BYTES
    assert unseal(sealed, keys[index], index) == shard
    assert sealed == seal(shard, keys[index], index)
    other = data.draw(st.integers(0, 6).filter(lambda i: i != index))
    place = data.draw(st.integers(0, len(sealed) - 1))
    changed = bytearray(sealed)
    changed[place] ^= data.draw(st.integers(1, 255))
    for wrong in (
        (sealed, keys[other], index),
        (sealed, keys[index], other),
        (bytes(changed), keys[index], index),
        (sealed[:place], keys[index], index),
        (sealed + b"\0", keys[index], index),
        (sealed, keys[index][:31], index),
    ):
        with pytest.raises(VerificationFailed):
            unseal(*wrong)


def test_two_shards_under_one_key_have_two_nonces() -> None:
    key = make_chain(SECRET, 1).keys[0]
    assert seal(b"one", key, 0)[8:20] != seal(b"two", key, 0)[8:20]


def test_size_is_checked_before_anything_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_chain(SECRET, 1).keys[0]
    sealed = seal(bytes(1000), key, 0)
    assert unseal(sealed, key, 0, max_bytes=1000) == bytes(1000)
    monkeypatch.setattr(sealing, "ChaCha20Poly1305", None)  # nothing may be decrypted any more
    with pytest.raises(VerificationFailed, match="1000 bytes, more than the 999 allowed"):
        unseal(sealed, key, 0, max_bytes=999)
    with pytest.raises(ValueError, match="more than"):
        seal(bytes(sealing.MAX_SHARD_BYTES + 1), key, 0)


def test_keys_are_not_shown() -> None:
    chain = make_chain(SECRET, 2)
    assert chain.keys[0].hex() not in repr(chain)
    assert repr(chain.keys[0]) not in repr(chain)


@pytest.mark.parametrize(
    ("secret", "n"), [(bytes(31), 1), (SECRET, 0), (SECRET, -1), (SECRET, sealing.MAX_KEYS + 1)]
)
def test_impossible_chains(secret: bytes, n: int) -> None:
    with pytest.raises(ValueError, match=r"secret|chain"):
        make_chain(secret, n)


def test_impossible_indexes() -> None:
    key = make_chain(SECRET, 1).keys[0]
    for index in (-1, sealing.MAX_KEYS):
        with pytest.raises(ValueError, match="seals shard"):
            seal(b"", key, index)
