"""Assets as their owners speak of them: what is asked of the registry, and the manifest of a data set.

A manifest says what an asset is without giving it away. That of a data set names its rows by a digest, the
same that a node commits to when it joins an audited job: never the rows themselves.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfl_ledger.errors import UsageError
from dfl_ledger.records import AssetKind, AssetUse, Cid

MANIFEST_FORMAT = "dfl data set 1"
MAX_MANIFEST_BYTES = 1 << 20
MAX_PRICE_BPS = 10_000
MAX_PARENTS = 16
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", re.ASCII)  # as SPDX identifiers and CIDs are
_NAME_CHARS = 64
_APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_DIGEST = re.compile(r"0x([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class DatasetManifest:
    """What ties a data set to rows."""

    app: str  # the application whose rows they are
    rows: int
    digest: bytes  # SHA-256 of the rows in their order: 32 bytes


@dataclass(frozen=True, slots=True)
class NewAsset:
    """What the registry is asked to mint. Raises UsageError for what it would refuse."""

    kind: AssetKind
    manifest: Cid
    licence: str  # an SPDX identifier, or the CID of a text
    uses: AssetUse
    price_bps: int  # the least share of a round's budget for which it may be used
    parents: tuple[int, ...] = ()  # the assets it was derived from

    def __post_init__(self) -> None:
        check_licence(self.licence)
        read_price(self.price_bps)
        for parent in self.parents:
            read_number(parent)
        if not self.uses:
            raise UsageError("an asset needs a use", why="nobody could do anything with it")
        if len(self.parents) > MAX_PARENTS:
            raise UsageError(f"{len(self.parents)} parents are too many", why=f"at most {MAX_PARENTS}")

    @property
    def licence_word(self) -> bytes:
        """What the chain keeps of the licence: keccak256 of an SPDX identifier, or the CID's digest."""
        from eth_hash.auto import keccak

        try:
            return Cid.parse(self.licence).digest
        except ValueError:
            return keccak(self.licence.encode())

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind.name.lower(),
            "manifest": str(self.manifest),
            "licence": self.licence,
            "uses": use_names(self.uses),
            "price_bps": self.price_bps,
            "parents": list(self.parents),
        }

    @classmethod
    def from_json(cls, asked: object) -> NewAsset:
        """From the body of a request. Raises UsageError."""
        names = {"kind", "manifest", "licence", "uses", "price_bps", "parents"}
        if not isinstance(asked, dict) or asked.keys() != names:
            raise UsageError("the request is not an asset", why=f"it needs {', '.join(sorted(names))}")
        try:
            return cls(
                kind=AssetKind[_text(asked["kind"]).upper()],
                manifest=Cid.parse(_text(asked["manifest"])),
                licence=_text(asked["licence"]),
                uses=read_uses([_text(use) for use in asked["uses"]]),
                price_bps=asked["price_bps"],
                parents=tuple(asked["parents"]),
            )
        except (KeyError, TypeError, ValueError) as bad:
            raise UsageError("the request is not an asset", why=str(bad)) from bad


def read_uses(names: list[str]) -> AssetUse:
    """Raises KeyError for no such use."""
    uses = AssetUse(0)
    for name in names:
        uses |= AssetUse[name.upper()]
    return uses


def use_names(uses: AssetUse) -> list[str]:
    """Those that are known by name: anybody may set other bits."""
    return [use.name.lower() for use in AssetUse if use.name and use in uses]


def read_price(price_bps: object) -> int:
    """Basis points. Raises UsageError."""
    if type(price_bps) is not int or not 0 <= price_bps <= MAX_PRICE_BPS:
        raise UsageError(
            f"{price_bps!r:.40} basis points are no price", why=f"whole numbers from 0 to {MAX_PRICE_BPS}"
        )
    return price_bps


def read_number(asset: object) -> int:
    """An asset's. Raises UsageError."""
    if type(asset) is not int or not 0 < asset < 2**63:
        raise UsageError(f"{asset!r:.40} is no asset", why="they are numbered from 1")
    return asset


def check_licence(licence: str) -> None:
    """Raises UsageError."""
    if not _LICENCE.fullmatch(licence):
        raise UsageError(
            f"{licence!r:.80} is not a licence",
            why="an SPDX identifier such as CC-BY-4.0, or the CID of a text, is wanted",
            help_command="dfl-node asset mint --help",
        )


def dataset_manifest(app: str, path: Path, *, name: str, licence: str) -> dict[str, Any]:
    """What an NPZ file of an application's rows holds. Raises UsageError for a file that is refused.

    The digest is of the rows in the order in which `start --data APP=PATH` trains on them.
    """
    from dfl_node.train import rows
    from dfl_node.train.application import load_application

    check_licence(licence)
    if not 1 <= len(name) <= _NAME_CHARS or not name.isprintable():
        raise UsageError(f"{name!r:.80} is not a name", why=f"1 to {_NAME_CHARS} printable characters")
    found = load_application(app).load(str(path), (1, 1, 1), None)
    return {
        "format": MANIFEST_FORMAT,
        "name": name,
        "app": app,
        "rows": len(found),
        "shape": list(found.X.shape[1:]),
        "type": found.X.dtype.name,
        "digest": "0x" + rows.commitment(found).hex(),
        "licence": licence,
    }


def read_manifest(data: bytes) -> DatasetManifest:
    """From a stranger's file. Raises UsageError for what is no manifest of rows."""
    try:
        told = json.loads(data)
        if not isinstance(told, dict) or told.get("format") != MANIFEST_FORMAT:
            raise ValueError(f"its format is not {MANIFEST_FORMAT!r}")
        app, rows, digest = told.get("app"), told.get("rows"), _DIGEST.fullmatch(str(told.get("digest")))
        if not isinstance(app, str) or not _APP.fullmatch(app) or type(rows) is not int or digest is None:
            raise ValueError("it lacks app, rows or digest")
    except (ValueError, RecursionError) as bad:  # JSON of 10,000 brackets
        raise UsageError("manifest refused", why=str(bad)[:200]) from bad
    return DatasetManifest(app, rows, bytes.fromhex(digest[1]))


def encode_manifest(manifest: dict[str, Any]) -> bytes:
    """JSON, the same bytes for the same manifest."""
    return json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value
