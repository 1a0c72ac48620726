"""Sealed validation shards: nobody knows a round's rows before it is committed, and then everybody does.

The requester makes a chain of keys backwards, one a round, and commits to its anchor when it opens the job:

    key[n-1] from its secret (HKDF-SHA256), key[i-1] = keccak256(key[i]), anchor = keccak256(key[0])

So whoever has the last key checks the next one with one hash, the contract too, and no key tells anything of
later ones. Shard i is sealed by ChaCha20-Poly1305 (RFC 8439) under HKDF-SHA256(key[i], "dfl shard" | i):

    sealed = "dflseal1" | nonce (12) | ciphertext | tag (16)      the first 8 bytes are authenticated too

The nonce is drawn from the key and the shard, so the same shard has one sealed form, and two shards under one
key, sealed by mistake, have two nonces.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from eth_hash.auto import keccak

from dfl_ledger.errors import VerificationFailed

KEY_BYTES = 32
MIN_SECRET_BYTES = 32
MAX_KEYS = 10_000
MAX_SHARD_BYTES = 64 << 20  # before it is sealed
_MAGIC = b"dflseal1"
_NONCE_BYTES, _TAG_BYTES = 12, 16
OVERHEAD_BYTES = len(_MAGIC) + _NONCE_BYTES + _TAG_BYTES
_CHAIN, _SHARD = b"dfl seal chain", b"dfl shard"


@dataclass(frozen=True, slots=True)
class KeyChain:
    """Keys in the order of their unsealing. They are secrets until then."""

    anchor: bytes  # goes on chain with the job
    keys: tuple[bytes, ...] = field(repr=False)


def make_chain(secret: bytes, n: int, label: bytes = b"") -> KeyChain:
    """The n keys that a secret gives under a label. One label a job: two jobs with the same keys would unseal
    each other's shards. Raises ValueError for a short secret or too many keys.
    """
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes, less than {MIN_SECRET_BYTES}")
    if not 1 <= n <= MAX_KEYS:
        raise ValueError(f"a chain of {n} keys, not of 1 to {MAX_KEYS}")
    keys = [_derived(secret, _CHAIN + label)]
    while len(keys) < n:
        keys.append(keccak(keys[-1]))
    return KeyChain(keccak(keys[-1]), tuple(reversed(keys)))


def verify(key: bytes, previous: bytes) -> None:
    """Whether a key follows the one before it; the first follows the anchor. Raises VerificationFailed."""
    if len(key) != KEY_BYTES or not hmac.compare_digest(keccak(key), previous):
        raise VerificationFailed("this key unseals nothing here", why="its hash is not the key before it")


def seal(shard: bytes, key: bytes, index: int) -> bytes:
    """The sealed form of a shard. Raises ValueError for a key or a shard of an impossible length."""
    if len(shard) > MAX_SHARD_BYTES:
        raise ValueError(f"a shard of {len(shard)} bytes, more than {MAX_SHARD_BYTES}")
    own = _cipher_key(key, index)
    nonce = hmac.digest(own, sha256(shard).digest(), "sha256")[:_NONCE_BYTES]
    return _MAGIC + nonce + ChaCha20Poly1305(own).encrypt(nonce, shard, _MAGIC)


def unseal(sealed: bytes, key: bytes, index: int, *, max_bytes: int = MAX_SHARD_BYTES) -> bytes:
    """The shard. Raises VerificationFailed for another key or index, and for bytes that are not what was
    sealed; before anything is taken for the shard if it would be larger than `max_bytes`.
    """
    if not sealed.startswith(_MAGIC) or len(sealed) < OVERHEAD_BYTES:
        raise _refusal("it is no sealed shard")
    if len(sealed) - OVERHEAD_BYTES > max_bytes:
        raise _refusal(f"{len(sealed) - OVERHEAD_BYTES} bytes, more than the {max_bytes} allowed")
    if len(key) != KEY_BYTES:
        raise _refusal(f"a key of {len(key)} bytes")
    body = memoryview(sealed)[len(_MAGIC) :]
    nonce, ciphertext = bytes(body[:_NONCE_BYTES]), body[_NONCE_BYTES:]
    try:
        return ChaCha20Poly1305(_cipher_key(key, index)).decrypt(nonce, ciphertext, _MAGIC)
    except InvalidTag as bad:
        raise _refusal("it was sealed with another key, or changed since") from bad


def _cipher_key(key: bytes, index: int) -> bytes:
    if len(key) != KEY_BYTES or not 0 <= index < MAX_KEYS:
        raise ValueError(f"no key of {len(key)} bytes seals shard {index}")
    return _derived(key, _SHARD + index.to_bytes(4, "big"))


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def _refusal(why: str) -> VerificationFailed:
    return VerificationFailed("a sealed shard cannot be opened", why=why)
