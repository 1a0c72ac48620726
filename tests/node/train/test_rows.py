"""NPZ files from strangers, and the splits every node must draw alike."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfl_ledger.errors import UsageError
from dfl_node.train import rows
from dfl_node.train.rows import Rows

X = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
Y = np.array([0, 2, 1])


def saved(**arrays: object) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def npy(array: object, **how: bool) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **how)  # type: ignore[arg-type]
    return out.getvalue()


def bomb() -> bytes:
    """300 MB of zeros as 300 kB of zip, declared honestly."""
    header = npy(np.zeros(0, np.uint8))
    chunk, out = bytes(1 << 20), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("X.npy", "w", force_zip64=True) as member:
            member.write(header)
            for _ in range(300):
                member.write(chunk)
        archive.writestr("y.npy", npy(Y))
    return out.getvalue()


def understated() -> bytes:
    """The same, with a directory that claims a few bytes."""
    data = bytearray(zipped(X=npy(np.zeros((3, 1 << 20), np.uint8)), y=npy(Y)))
    place = data.index(b"PK\x01\x02")
    data[place + 24 : place + 28] = (200).to_bytes(4, "little")
    return bytes(data)


def crowd() -> bytes:
    """A directory of very many empty files."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 100_000
    return directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, len(directory), 0, 0)


def relabelled() -> bytes:
    """An array that declares more than it holds."""
    content = npy(X).replace(b"(3, 4, 4)", b"(9, 9, 9)")
    return zipped(X=content, y=npy(Y))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "zip"),
    "junk": (lambda: b"junk" * 100, "zip"),
    "pickle": (lambda: pickle.dumps([1, 2, 3]), "zip"),
    "truncated": (lambda: saved(X=X, y=Y)[:-40], "zip"),
    "no y": (lambda: saved(X=X), "must hold X and y"),
    "more": (lambda: saved(X=X, y=Y, z=Y), "must hold X and y"),
    "objects": (lambda: zipped(X=npy(X), y=npy(np.array([{}, 1, 2]), allow_pickle=True)), "pickle"),
    "half a byte": (lambda: zipped(X=npy(X), y=npy(Y).replace(b"<i8", b"<f1")), "plain numbers"),
    "big endian": (lambda: saved(X=X, y=Y.astype(">i4")), "plain numbers"),
    "code": (lambda: zipped(X=npy(X), y=npy(Y).replace(b"(3,)", b"(3**9)")), "plain numbers"),
    "text": (lambda: saved(X=X, y=np.array(["a", "b", "c"])), "plain numbers"),
    "not npy": (lambda: zipped(X=b"X", y=npy(Y)), "not an NPY file"),
    "bomb": (bomb, "more than the"),
    "100,000 members": (crowd, "its directory holds more"),
    "understated": (understated, "data file refused"),
    "wrong size": (relabelled, "not its size"),
    "fewer labels": (lambda: saved(X=X, y=Y[:2]), "equally many rows"),
    "no rows": (lambda: saved(X=X[:0], y=Y[:0]), "at least one"),
    "negative label": (lambda: saved(X=X, y=Y - 1), "labels from 0"),
    "real labels": (lambda: saved(X=X, y=Y * 0.5), "whole numbers"),
    "float64": (lambda: saved(X=X.astype(np.float64), y=Y), "uint8 or float32"),
    "NaN": (lambda: saved(X=np.full((3, 4), np.nan, np.float32), y=Y), "NaN"),
    "Fortran order": (lambda: saved(X=np.asfortranarray(X), y=Y), "C order"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(name: str) -> None:
    make, why = HOSTILE[name]
    data = make()
    tracemalloc.start()
    try:
        with pytest.raises(UsageError) as caught:
            rows.read_npz(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert why in str(caught.value)
    assert peak < 8 << 20, "memory taken for a file that is refused"


def test_round_trip() -> None:
    data = rows.write_npz(Rows(X, Y))
    assert data == rows.write_npz(Rows(X.copy(), Y.copy()))
    for found in (rows.read_npz(data), rows.read_npz(saved(X=X, y=Y.astype(np.uint8)))):
        assert np.array_equal(found.X, X)
        assert np.array_equal(found.y, Y)
        assert (found.X.dtype, found.y.dtype) == (np.uint8, np.int64)
    with np.load(io.BytesIO(data)) as file:  # a plain NPZ to everybody else
        assert set(file.files) == {"X", "y"}


@given(st.binary(max_size=60), st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_damaged_files_are_read_or_refused(patch: bytes, place: int) -> None:
    data = bytearray(rows.write_npz(Rows(X, Y)))
    data[place : place + len(patch)] = patch
    try:
        found = rows.read_npz(bytes(data))
    except UsageError:
        return
    assert len(found.X) == len(found.y) > 0


# -- splits -----------------------------------------------------------------------------------------------
LABELS = np.repeat(np.arange(10), 35)


@pytest.mark.parametrize("alpha", [None, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("of", [1, 3, 12])
def test_parts_are_disjoint_and_cover(alpha: float | None, of: int) -> None:
    everything = Rows(np.arange(350, dtype=np.float32)[:, None], LABELS)
    parts = []
    for part in range(1, of + 1):
        try:
            parts.append(rows.shard(everything, (part, part, of), alpha, seed=3))
        except UsageError:
            assert alpha == 0.1  # a part may be empty
    held = np.concatenate([part.X.ravel() for part in parts])
    assert sorted(held) == list(range(350))
    if alpha is None:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_small_alpha_makes_parts_of_few_labels() -> None:
    def share(alpha: float) -> float:
        """Of the most frequent label, on average over the parts."""
        parts = rows.dirichlet_parts(LABELS, 6, alpha, seed=1)
        return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts if len(part)]))

    assert share(0.1) > 0.4 > 0.2 > share(100.0)


def test_every_node_draws_the_same_parts() -> None:
    """Golden values: they must never change, on any machine, with any numpy."""
    assert rows.iid_parts(10, 3, seed=7)[0].tolist() == [8, 5, 0, 2]
    assert [len(part) for part in rows.dirichlet_parts(LABELS, 4, 0.5, seed=7)] == [71, 57, 138, 84]


def test_shard_that_holds_nothing() -> None:
    few = Rows(X, Y)
    with pytest.raises(UsageError, match="holds no rows"):
        rows.shard(few, (4, 4, 4), None, seed=1)
    for cut in ((0, 1, 2), (2, 1, 2), (1, 3, 2), (1, 1, 10**9)):
        with pytest.raises(UsageError, match="must hold"):
            rows.shard(few, cut, None, seed=1)


def test_stratified_parts_hold_every_label_alike() -> None:
    parts = rows.stratified(LABELS, (100, 50), seed=1)
    assert [len(part) for part in parts] == [100, 50, 200]
    assert sorted(np.concatenate(parts)) == list(range(350))
    for part in parts:
        assert set(np.bincount(LABELS[part])) == {len(part) // 10}
