"""Keccak-256 for many short messages.

eth_hash makes an object for each message, which costs more than hashing it. A tree of 100,000 leaves hashes
200,000 of them, so its hasher keeps one state of pycryptodome's C code and starts it anew each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eth_hash.auto import keccak

_CAPACITY_BYTES, _ROUNDS, _DIGEST_BYTES = 64, 24, 32
_KECCAK_PADDING = 0x01  # SHA-3, which came later, pads with 0x06
_PROBE = b"\x00" * 192  # longer than one block of 136 bytes


def hasher() -> Callable[[bytes], bytes]:
    """Keccak-256 of bytes, for use by one thread. As fast as this installation allows."""
    try:
        quick = _raw_hasher()
        if all(quick(probe) == keccak(probe) for probe in (b"", _PROBE)):
            return quick
    except Exception:  # noqa: S110  another version of pycryptodome inside: any failure means "not this way"
        pass
    return keccak


def _raw_hasher() -> Callable[[bytes], bytes]:
    from Crypto.Hash import keccak as module
    from Crypto.Util import _raw_api

    lib: Any = vars(module)["_raw_keccak_lib"]
    raw: Any = _raw_api
    made = raw.VoidPointer()
    if lib.keccak_init(made.address_of(), _CAPACITY_BYTES, _ROUNDS):
        raise RuntimeError("no state")
    state, out = made.get(), raw.create_string_buffer(_DIGEST_BYTES)
    held = raw.SmartPointer(state, lib.keccak_destroy)
    reset, absorb, digest, read = lib.keccak_reset, lib.keccak_absorb, lib.keccak_digest, raw.get_raw_buffer

    def quick(message: bytes, _held: object = held) -> bytes:  # held as long as this function is: then freed
        reset(state)
        absorb(state, message, len(message))
        digest(state, out, _DIGEST_BYTES, _KECCAK_PADDING)
        digest_bytes: bytes = read(out)
        return digest_bytes

    return quick
