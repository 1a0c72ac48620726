"""Rows of data: what they are, how they are read from a hostile NPZ file, and how they are split.

An NPZ file is a zip of NPY files (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
Ours holds exactly `X` and `y`. Pickles are never read, and an array's declared size is checked before any of
it is inflated: 195 kB of zip can hold 200 MB.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from dfl_ledger.errors import UsageError, VerificationFailed

MAX_DATA_BYTES = 256 << 20  # of both arrays together, inflated
MAX_PARTS = 100_000
_MEMBERS = {"X.npy", "y.npy"}
_MAX_NPY_HEADER = 1_000
_NPY_MAGIC = b"\x93NUMPY"
_NPY_LENGTH = {b"\1\0": struct.Struct("<H"), b"\2\0": struct.Struct("<I")}  # by format version
# As numpy writes it. Matched and not evaluated: numpy's own reader runs a Python parser on it.
_NPY_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<|](?:[ui][1248]|f[248]))', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,12},? ?){1,8})\),? ?\} *\n?"
)
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ZIPFILE_TOO = (ValueError, OSError, EOFError, RuntimeError, NotImplementedError)  # zipfile on damaged files
_ZIP_END = struct.Struct("<4s4H2LH")  # end of central directory; field 5 is the directory's size
_MAX_DIRECTORY = 1_000  # bytes
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Rows:
    X: NDArray[np.uint8] | NDArray[np.float32]  # (n, *shape); uint8 is read as value / 255
    y: NDArray[np.int64]  # (n,) labels from 0

    def __len__(self) -> int:
        return len(self.y)

    def take(self, places: NDArray[np.intp]) -> Rows:
        return Rows(self.X[places], self.y[places])


# -- files --------------------------------------------------------------------------------------------
def write_npz(rows: Rows) -> bytes:
    """The rows as a compressed NPZ file; the same rows give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in (("X.npy", rows.X), ("y.npy", rows.y)):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    return out.getvalue()


def read_npz(data: bytes, *, max_bytes: int = MAX_DATA_BYTES) -> Rows:
    """The rows of an NPZ file: X uint8 or float32 with finite values, y whole numbers from 0.

    Raises UsageError, which names what is wrong, before it takes more than `max_bytes`.
    """
    _check_directory(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if len(infos) != 2 or {info.filename for info in infos} != _MEMBERS:
                raise _refusal(f"it must hold X and y, not {', '.join(i.filename[:40] for i in infos[:5])}")
            declared = sum(info.file_size for info in infos)
            if declared > max_bytes:
                raise _refusal(f"{declared} bytes inflated, more than the {max_bytes} allowed")
            if any(info.compress_type not in _METHODS for info in infos):
                raise _refusal("it must be stored or deflated")
            arrays = {info.filename: _read_member(archive, info) for info in infos}
    except (zipfile.BadZipFile, zlib.error, struct.error, *_ZIPFILE_TOO) as bad:
        raise _refusal(f"not a sound zip file ({bad})") from bad
    return _checked(arrays["X.npy"], arrays["y.npy"])


def read_opened(data: bytes, committed: bytes) -> Rows:
    """The rows of a shard that its node opened. Raises VerificationFailed unless they are those committed."""
    try:
        rows = read_npz(data)
    except UsageError as bad:
        raise VerificationFailed("the opened shard was refused", why=bad.why) from bad
    if (found := commitment(rows)) != committed:
        why = f"its rows are 0x{found.hex()}, and its node committed to 0x{committed.hex()}"
        raise VerificationFailed("the opened shard was refused", why=why)
    return rows


def _check_directory(data: bytes) -> None:
    """zipfile reads the whole directory at once, and 64 MB of entries would take a gigabyte: the directory
    of two members is small, ends the file, and needs no 64-bit extension."""
    end = data[-_ZIP_END.size :]
    if len(end) < _ZIP_END.size or _ZIP_END.unpack(end)[0] != b"PK\5\6":
        raise _refusal("not a sound zip file (its directory is not at its end)")
    if _ZIP_END.unpack(end)[5] > _MAX_DIRECTORY or data[-42:-38] == b"PK\6\7":
        raise _refusal("it must hold X and y, and its directory holds more")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[np.generic]:
    with archive.open(info) as member:
        content = member.read(info.file_size)  # never more, whatever the deflated stream holds
    version = content[6:8]
    if not content.startswith(_NPY_MAGIC) or version not in _NPY_LENGTH:
        raise _refusal(f"{info.filename} is not an NPY file")
    length = _NPY_LENGTH[version]
    start = 8 + length.size
    end = start + (length.unpack(content[8:start])[0] if len(content) >= start else 0)
    found = _NPY_HEADER.fullmatch(content[start:end]) if end - start <= _MAX_NPY_HEADER else None
    if found is None or found["fortran"] == b"True":
        shown = content[start : min(end, start + 80)].decode("ascii", "replace").strip()
        raise _refusal(f"{info.filename} must hold plain numbers in C order, no pickles and no text: {shown}")
    dtype = np.dtype(found["dtype"].decode())
    shape = tuple(int(side) for side in found["shape"].split(b",") if side.strip())
    if prod(shape) * dtype.itemsize != len(content) - end:
        raise _refusal(f"{info.filename} declares shape {str(shape)[:60]} of {dtype}, which is not its size")
    return np.frombuffer(content, dtype, offset=end).reshape(shape)


def _checked(x: NDArray[np.generic], y: NDArray[np.generic]) -> Rows:
    if y.ndim != 1 or y.dtype.kind not in "ui":
        raise _refusal(f"y must be whole numbers of shape (n,), not {y.dtype} {y.shape}")
    if x.ndim < 2 or len(x) != len(y) or not len(y):
        raise _refusal(f"X {x.shape} and y {y.shape} must have equally many rows, at least one")
    if y.min() < 0 or y.max() > np.iinfo(np.int32).max:
        raise _refusal("y must hold labels from 0")
    if x.dtype == np.uint8:
        return Rows(x.astype(np.uint8, copy=False), y.astype(np.int64))
    if x.dtype != np.float32:
        raise _refusal(f"X must be uint8 or float32, not {x.dtype}")
    if not np.isfinite(x.min()) or not np.isfinite(x.max()):
        raise _refusal("X holds NaN or Inf")
    return Rows(x.astype(np.float32, copy=False), y.astype(np.int64))


def _refusal(why: str) -> UsageError:
    return UsageError("data file refused", why=why, help_command="dfl-node eval --help")


def commitment(rows: Rows) -> bytes:
    """SHA-256 of the rows in their order: their form, then every number, little-endian. Not of a file, whose
    bytes depend on a library's compression."""
    x, y = (np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for a in (rows.X, rows.y))
    digest = hashlib.sha256(f"dfl rows 1 {x.dtype.str} {x.shape} {y.dtype.str}\n".encode())
    digest.update(x.data)
    digest.update(y.data)
    return digest.digest()


# -- splits -------------------------------------------------------------------------------------------
# RandomState and not default_rng: NumPy promises that its stream never changes (NEP 19), and every node must
# draw the same parts.
def iid_parts(n: int, of: int, seed: int) -> list[NDArray[np.intp]]:
    """`of` disjoint parts of rows 0..n-1, sizes at most one apart."""
    return np.array_split(np.random.RandomState(seed).permutation(n), of)


def dirichlet_parts(y: NDArray[np.int64], of: int, alpha: float, seed: int) -> list[NDArray[np.intp]]:
    """`of` disjoint parts whose shares of each label are drawn from Dirichlet(alpha) (Hsu et al. 2019,
    arXiv:1909.06335). The smaller alpha, the more a part is of one label; a part may be empty.
    """
    random = np.random.RandomState(seed)
    pieces: list[list[NDArray[np.intp]]] = [[] for _ in range(of)]
    for label in np.unique(y):
        places = random.permutation(np.flatnonzero(y == label))
        shares = random.dirichlet(np.full(of, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(places)).astype(np.intp)
        for piece, chosen in zip(pieces, np.split(places, cuts), strict=True):
            piece.append(chosen)
    return [random.permutation(np.concatenate(piece)) for piece in pieces]


def stratified(y: NDArray[np.int64], sizes: Sequence[int], seed: int) -> list[NDArray[np.intp]]:
    """One part per size with `size / len(y)` of each label's rows, then a last part with the rest."""
    random = np.random.RandomState(seed)
    parts: list[list[NDArray[np.intp]]] = [[] for _ in range(len(sizes) + 1)]
    for label in np.unique(y):
        places = random.permutation(np.flatnonzero(y == label))
        cuts = np.cumsum([round(size * len(places) / len(y)) for size in sizes])
        for part, chosen in zip(parts, np.split(places, cuts), strict=True):
            part.append(chosen)
    return [random.permutation(np.concatenate(part)) for part in parts]


def shard(rows: Rows, cut: tuple[int, int, int], alpha: float | None, *, seed: int) -> Rows:
    """The rows of parts first..last of `of`, counted from 1. Raises UsageError if there are none."""
    first, last, of = cut
    if not 1 <= first <= last <= of <= MAX_PARTS:
        raise UsageError(
            f"shard {first}:{last}/{of}", why=f"1 <= first <= last <= of <= {MAX_PARTS} must hold"
        )
    parts = iid_parts(len(rows), of, seed) if alpha is None else dirichlet_parts(rows.y, of, alpha, seed)
    places = np.concatenate(parts[first - 1 : last])
    if not len(places):
        raise UsageError(
            f"shard {first}:{last}/{of} holds no rows",
            why=f"{len(rows)} rows are shared out" + ("" if alpha is None else f" by Dirichlet({alpha:g})"),
            help_command="dfl-node start --shard 1:1/1 …",
        )
    return rows.take(places)
