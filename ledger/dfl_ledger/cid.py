"""Names of files: content identifiers."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache

RAW = 0x55
DAG_PB = 0x70
DAG_CBOR = 0x71
_SHA2_256 = 0x12
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True, order=True, slots=True)
class Cid:
    """A CIDv1 over SHA2-256 (https://github.com/multiformats/cid).

    A version 0 CID (`Qm…`) is read as the version 1 CID of the same DAG-PB block.
    """

    codec: int  # RAW, DAG_PB or DAG_CBOR: each a single varint byte
    digest: bytes  # 32 bytes

    def __post_init__(self) -> None:
        if self.codec not in (RAW, DAG_PB, DAG_CBOR):
            raise ValueError(f"codec {self.codec:#x} is not one of raw, dag-pb, dag-cbor")
        if len(self.digest) != 32:
            raise ValueError(f"a SHA2-256 digest has 32 bytes, not {len(self.digest)}")

    @classmethod
    def of(cls, block: bytes, codec: int = RAW) -> Cid:
        """The CID of one block."""
        return cls(codec, hashlib.sha256(block).digest())

    @classmethod
    @lru_cache(maxsize=4096)  # a ledger's rows name the same few again and again
    def parse(cls, text: str) -> Cid:
        """From `b…` (base32, version 1) or `Qm…` (base58, version 0). Raises ValueError."""
        if len(text) > 100:
            raise ValueError("not a CID: longer than 100 characters")
        if text.startswith("Qm") and len(text) == 46:
            number = 0
            for char in text:
                number = number * 58 + _BASE58.index(char)
            raw = number.to_bytes(34, "big")
            if raw[:2] != bytes((_SHA2_256, 32)):
                raise ValueError(f"not a SHA2-256 CID: {text!r}")
            return cls(DAG_PB, raw[2:])
        if not text.startswith("b"):
            raise ValueError(f"not a CIDv1 in base32 nor a CIDv0: {text!r}")
        body = text[1:].upper()
        try:
            raw = base64.b32decode(body + "=" * (-len(body) % 8))
        except ValueError as bad:
            raise ValueError(f"not base32: {text!r}") from bad
        cid = cls.from_bytes(raw)
        if str(cid) != text:
            raise ValueError(f"not canonical base32: {text!r}")
        return cid

    @classmethod
    def from_bytes(cls, raw: bytes) -> Cid:
        """From the binary form. Raises ValueError."""
        if len(raw) == 34 and raw[:2] == bytes((_SHA2_256, 32)):
            return cls(DAG_PB, raw[2:])
        if len(raw) != 36 or raw[0] != 1 or raw[2:4] != bytes((_SHA2_256, 32)):
            raise ValueError(f"not a CIDv1 over SHA2-256: {raw[:8].hex()}…")
        return cls(raw[1], raw[4:])

    def __bytes__(self) -> bytes:
        return bytes((1, self.codec, _SHA2_256, 32)) + self.digest

    def __str__(self) -> str:
        return "b" + base64.b32encode(bytes(self)).decode().rstrip("=").lower()

    @classmethod
    def from_digest(cls, digest: bytes) -> Cid:
        """From a digest as the chain keeps it.

        Every file the chain refers to is a UnixFS file with a DAG-PB root, so 32 bytes are the whole CID.
        """
        return cls(DAG_PB, digest)
