"""A shard opened to a whole jury: one file, which each juror opens with its node key. Pure.

    magic, number of boxes (1 byte), round the piece was made for (4 bytes, big-endian)
    for each seat: the juror's node key (32 bytes), and the file's own key in a box for it (`opening`)
    the rows, an NPZ file, by ChaCha20-Poly1305 under the file's own key, with all before them authenticated

So a shard is sealed once, however many judge it. The file's key is used once: its nonce may be zero.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from dfl_ledger.errors import UsageError, VerificationFailed
from dfl_ledger.records import Address, JobId
from dfl_node.value import opening

MAX_JURORS = 16
MAX_ROWS_BYTES = 64 << 20  # a juror may have eight such shards in memory
_MAGIC = b"dfl boxes 1\n"
_HEAD = struct.Struct(">BI")
_KEY_BYTES, _TAG_BYTES = 32, 16
_BOX_BYTES = _KEY_BYTES + opening.OVERHEAD_BYTES
_NO_BOX = bytes(_BOX_BYTES)
_NONCE = bytes(12)
MAX_BYTES = len(_MAGIC) + _HEAD.size + MAX_JURORS * (_KEY_BYTES + _BOX_BYTES) + MAX_ROWS_BYTES + _TAG_BYTES


@dataclass(frozen=True, slots=True)
class Boxes:
    """An opened shard as everybody sees it."""

    made_in: int  # the round its node says it trained the piece for: it seeds the batches
    keys: tuple[bytes, ...]  # the node key that each seat's box is for
    data: bytes

    def open(self, seat: int, seed: bytes, context: bytes) -> bytes:
        """The rows (NPZ), for the juror with this node key. Raises VerificationFailed for what is not to be
        opened: another's box, another audit's, a changed one."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        head = len(_MAGIC) + _HEAD.size + len(self.keys) * (_KEY_BYTES + _BOX_BYTES)
        if seat >= len(self.keys):
            raise _refusal(f"it has no box for seat {seat}")
        at = len(_MAGIC) + _HEAD.size + seat * (_KEY_BYTES + _BOX_BYTES) + _KEY_BYTES
        key = opening.open_with(seed, self.data[at : at + _BOX_BYTES], context)
        sealed = memoryview(self.data)
        try:
            return ChaCha20Poly1305(key).decrypt(_NONCE, sealed[head:], sealed[:head])
        except InvalidTag as bad:
            raise _refusal("its rows are not sealed by the key in its boxes") from bad


def context(job: JobId, round_: int, audit: int, panel: int, node: Address) -> bytes:
    """What a box is for: it opens nothing elsewhere."""
    return f"{job}/{round_}/{audit}/{panel}/{node}".encode()


def seal(rows: bytes, jurors: Sequence[bytes], context: bytes, *, made_in: int) -> bytes:
    """The file that opens `rows` (NPZ) to the owners of these node keys, by seat. A juror whose key is none
    gets nothing. Raises UsageError for more than MAX_ROWS_BYTES."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    check_size(rows)
    key = secrets.token_bytes(_KEY_BYTES)
    head = b"".join(
        (
            *(_MAGIC, _HEAD.pack(len(jurors), made_in)),
            *(juror + _box(juror, key, context) for juror in jurors),
        )
    )
    return head + ChaCha20Poly1305(key).encrypt(_NONCE, rows, head)


def check_size(rows: bytes) -> None:
    if len(rows) > MAX_ROWS_BYTES:
        raise UsageError(
            "the rows are too many for an audited job",
            why=f"{len(rows)} bytes, and a jury takes {MAX_ROWS_BYTES} at most",
            help_command="dfl-node start --shard 1:1/2",
        )


def read(data: bytes) -> Boxes:
    """Raises VerificationFailed for what is no such file."""
    start = len(_MAGIC) + _HEAD.size
    if len(data) > MAX_BYTES or not data.startswith(_MAGIC) or len(data) < start:
        raise _refusal("it is no file of boxes")
    count, made_in = _HEAD.unpack_from(data, len(_MAGIC))
    step = _KEY_BYTES + _BOX_BYTES
    if not 1 <= count <= MAX_JURORS or len(data) < start + count * step + _TAG_BYTES:
        raise _refusal(f"truncated, or of {count} boxes")
    keys = tuple(data[start + n * step : start + n * step + _KEY_BYTES] for n in range(count))
    return Boxes(made_in, keys, data)


def _box(juror: bytes, key: bytes, context: bytes) -> bytes:
    try:
        return opening.seal_to(juror, key, context)
    except VerificationFailed:  # who registered no key at all must not keep the others from judging
        return _NO_BOX


def _refusal(why: str) -> VerificationFailed:
    return VerificationFailed("an opened shard was refused", why=why)
