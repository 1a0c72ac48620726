"""A shard opened to one juror: sealed to the key behind its peer id, readable by nobody else.

    ephemeral X25519 x the juror's key -> HKDF-SHA256 -> ChaCha20-Poly1305

X25519 (RFC 7748) with a fresh key for every box, HKDF (RFC 5869) over the shared secret with both public keys
in its info, ChaCha20-Poly1305 (RFC 8439). The key is used once, so that the nonce may be zero. A juror's
Ed25519 node key becomes an X25519 one as in RFC 7748, section 4.1: u = (1 + y) / (1 - y) of its point, and of
its seed the first half of SHA-512, which Ed25519 has as its scalar too (RFC 8032, section 5.1.5).

A box says nothing of who sealed it: what is inside is held to what was committed. `context` (the job, the
round, who is audited) goes into the key, so that a box cannot be passed off as another's.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from dfl_ledger.errors import UsageError, VerificationFailed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

MAX_OPENED_BYTES = 256 << 20  # what a data file may hold inflated, and no NPZ file of it is larger
_LABEL = b"dfl shard opening 1"
_KEY_BYTES, _TAG_BYTES = 32, 16
OVERHEAD_BYTES = _KEY_BYTES + _TAG_BYTES
_NONCE = bytes(12)
_P = 2**255 - 19  # the field of both curves
_D = -121665 * pow(121666, -1, _P) % _P  # of Ed25519: -x^2 + y^2 = 1 + d x^2 y^2


def seal_to(peer_key: bytes, data: bytes, context: bytes) -> bytes:
    """A box that the owner of this raw Ed25519 public key (32 bytes) can open: OVERHEAD_BYTES longer.

    Raises UsageError for more than MAX_OPENED_BYTES, VerificationFailed for bytes that are no key.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    if len(data) > MAX_OPENED_BYTES:
        raise UsageError(
            "the shard is too large to be opened",
            why=f"{len(data)} bytes, more than the {MAX_OPENED_BYTES} allowed",
        )
    juror = _montgomery(peer_key)
    ours = X25519PrivateKey.generate()
    public = ours.public_key().public_bytes_raw()
    key = _key(ours, juror, public, juror.public_bytes_raw(), context)
    return public + ChaCha20Poly1305(key).encrypt(_NONCE, data, None)


def open_with(seed: bytes, box: bytes, context: bytes) -> bytes:
    """What is in a box sealed to the node key with this seed (32 bytes, `NodeKey.seed`). Raises
    VerificationFailed for another's box, another context's, and one that was changed or is too large."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    if len(box) < OVERHEAD_BYTES:
        raise _refusal(f"truncated: {len(box)} bytes")
    if len(box) > MAX_OPENED_BYTES + OVERHEAD_BYTES:
        raise _refusal(f"{len(box)} bytes, more than the {MAX_OPENED_BYTES + OVERHEAD_BYTES} allowed")
    ours = X25519PrivateKey.from_private_bytes(hashlib.sha512(seed).digest()[:_KEY_BYTES])
    public = box[:_KEY_BYTES]
    theirs = X25519PublicKey.from_public_bytes(public)
    try:
        key = _key(ours, theirs, public, ours.public_key().public_bytes_raw(), context)
        return ChaCha20Poly1305(key).decrypt(_NONCE, memoryview(box)[_KEY_BYTES:], None)
    except InvalidTag as bad:
        raise _refusal("it was sealed to another key or for another audit, or changed on its way") from bad


def _key(
    own: X25519PrivateKey, other: X25519PublicKey, ephemeral: bytes, juror: bytes, context: bytes
) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    try:
        shared = own.exchange(other)
    except ValueError as bad:  # a point of small order: the secret would be known to all
        raise _refusal("its key is a point of small order") from bad
    info = b"".join((_LABEL, ephemeral, juror, len(context).to_bytes(8, "big"), context))
    return HKDF(SHA256(), _KEY_BYTES, salt=None, info=info).derive(shared)


def _montgomery(peer_key: bytes) -> X25519PublicKey:
    """The X25519 public key of an Ed25519 one."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    if len(peer_key) != _KEY_BYTES:
        raise VerificationFailed(
            "no peer key", why=f"an Ed25519 public key has 32 bytes, not {len(peer_key)}"
        )
    y = int.from_bytes(peer_key, "little") & ((1 << 255) - 1)
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P  # x^2; d y^2 + 1 has no root
    # Euler's criterion. Without it a number that is no key's would open to the curve's weaker twin.
    if y >= _P or (square and pow(square, (_P - 1) // 2, _P) != 1) or y == 1:
        raise VerificationFailed("no peer key", why="it is not a point of Ed25519")
    u = (1 + y) * pow(1 - y, -1, _P) % _P
    return X25519PublicKey.from_public_bytes(u.to_bytes(_KEY_BYTES, "little"))


def _refusal(why: str) -> VerificationFailed:
    return VerificationFailed("an opened shard was refused", why=why)
