"""Shards sealed to a juror: who can open them, and what nobody can change."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from dfl_ledger.errors import UsageError, VerificationFailed
from dfl_node.identity import NodeKey
from dfl_node.value import opening

JUROR, OTHER = NodeKey(bytes(range(32))), NodeKey(bytes(range(1, 33)))
DATA, CONTEXT = b"rows " * 1000, b"job 1 round 2"


def test_the_juror_opens_it_and_nobody_else() -> None:
    box = opening.seal_to(JUROR.public, DATA, CONTEXT)
    assert opening.open_with(JUROR.seed, box, CONTEXT) == DATA
    assert len(box) == len(DATA) + opening.OVERHEAD_BYTES
    assert DATA[:20] not in box
    with pytest.raises(VerificationFailed, match="another key"):
        opening.open_with(OTHER.seed, box, CONTEXT)
    with pytest.raises(VerificationFailed, match="another audit"):
        opening.open_with(JUROR.seed, box, b"job 1 round 3")


def test_nothing_at_all_can_be_sealed() -> None:
    assert opening.open_with(JUROR.seed, opening.seal_to(JUROR.public, b"", b""), b"") == b""


def test_the_same_rows_never_give_the_same_box() -> None:
    assert opening.seal_to(JUROR.public, DATA, CONTEXT) != opening.seal_to(JUROR.public, DATA, CONTEXT)


def test_every_changed_byte_is_noticed() -> None:
    box = opening.seal_to(JUROR.public, b"seven rows", CONTEXT)
    for place in range(len(box)):
        # The highest bit of an X25519 key says nothing (RFC 7748), but it is in the key's derivation.
        for bit in (1, 128):
            changed = bytearray(box)
            changed[place] ^= bit
            with pytest.raises(VerificationFailed):
                opening.open_with(JUROR.seed, bytes(changed), CONTEXT)


@pytest.mark.parametrize("length", [0, 31, 47])
def test_truncated(length: int) -> None:
    with pytest.raises(VerificationFailed, match="truncated"):
        opening.open_with(JUROR.seed, opening.seal_to(JUROR.public, b"", b"")[:length], b"")


def test_size_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_OPENED_BYTES", 100)
    box = opening.seal_to(JUROR.public, bytes(100), CONTEXT)
    assert opening.open_with(JUROR.seed, box, CONTEXT) == bytes(100)
    with pytest.raises(UsageError, match="101 bytes"):
        opening.seal_to(JUROR.public, bytes(101), CONTEXT)
    with pytest.raises(VerificationFailed, match="149 bytes"):
        opening.open_with(JUROR.seed, box + b"x", CONTEXT)


def test_keys_are_those_of_the_montgomery_curve() -> None:
    """Both halves of the conversion meet: a converted seed has the converted public key."""
    for number in range(50):
        key = NodeKey(hashlib.sha256(number.to_bytes(2, "big")).digest())
        scalar = X25519PrivateKey.from_private_bytes(hashlib.sha512(key.seed).digest()[:32])
        expected = scalar.public_key().public_bytes_raw()
        assert opening._montgomery(key.public).public_bytes_raw() == expected


@pytest.mark.parametrize(
    "key",
    [
        b"",
        bytes(31),
        (2).to_bytes(32, "little"),  # y = 2 is on the twin alone
        (1).to_bytes(32, "little"),  # the neutral element
        (2**255 - 19).to_bytes(32, "little"),  # 0, written a second way
        b"\xff" * 32,
    ],
)
def test_no_key(key: bytes) -> None:
    with pytest.raises(VerificationFailed, match="no peer key"):
        opening.seal_to(key, DATA, CONTEXT)


@pytest.mark.parametrize("y", [0, 2**255 - 20])
def test_points_of_small_order_are_refused(y: int) -> None:
    """Their secret would be the same for every key: who sealed to them would have told everybody."""
    with pytest.raises(VerificationFailed):
        opening.seal_to(y.to_bytes(32, "little"), DATA, CONTEXT)
    for u in (0, 1):
        box = u.to_bytes(32, "little") + opening.seal_to(JUROR.public, DATA, CONTEXT)[32:]
        with pytest.raises(VerificationFailed, match="small order"):
            opening.open_with(JUROR.seed, box, CONTEXT)
