"""Assets by the command line: what is asked of the node, what the ledger tells, and no row ever leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfl_ledger.errors import Reverted
from dfl_ledger.records import AssetKind, AssetUse, Cid
from dfl_node.train.application import load_application
from dfl_node.train.rows import commitment
from tests.ledger.conftest import MemoryWorld
from tests.ledger.scored_round import ScoredRound

CC = ("--licence", "CC-BY-4.0")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Seven digits."""
    path = tmp_path / "mine.npz"
    random = np.random.RandomState(1)
    np.savez_compressed(
        path, X=random.randint(0, 256, (7, 28, 28)).astype(np.uint8), y=np.arange(7, dtype=np.int64)
    )
    return path


@pytest.fixture
def story(tmp_path: Path) -> Iterator[ScoredRound]:
    played = ScoredRound(MemoryWorld(), tmp_path / "told")
    played.settled()
    yield played
    played.close()


# -- data sets -----------------------------------------------------------------------------------------------
def test_a_dataset_is_minted_by_its_manifest_alone(run: Any, fake_node: Any, rows: Path) -> None:
    place = ("--datadir", fake_node.datadir, "--json")
    told = run("dataset", "add", rows, "--app", "digits", *CC, "--price", "2.5", "--name", "mine", *place)
    assert told.exit_code == 0, told.stderr
    (asked,) = fake_node.service.assets
    assert (asked.kind, asked.price_bps, asked.uses) == (AssetKind.DATASET, 250, AssetUse.TRAIN)
    (stored,) = fake_node.service.blobs.values()
    assert asked.manifest == Cid.of(stored)
    assert told.data["manifest_cid"] == str(asked.manifest)
    manifest = json.loads(stored)
    assert manifest == told.data["manifest"]
    trained_on = load_application("digits").load(str(rows), (1, 1, 1), None)
    assert manifest == {
        "format": "dfl data set 1",
        "name": "mine",
        "app": "digits",
        "rows": 7,
        "shape": [28, 28],
        "type": "uint8",
        "digest": "0x" + commitment(trained_on).hex(),
        "licence": "CC-BY-4.0",
    }
    assert len(stored) < 500  # and no rows: they are 5,488 bytes


def test_the_manifest_of_the_same_rows_is_the_same(run: Any, fake_node: Any, rows: Path) -> None:
    for _ in range(2):
        told = run("dataset", "add", rows, "--app", "digits", *CC, "--datadir", fake_node.datadir)
        assert told.exit_code == 0, told.stderr
        assert "7 of digits" in told.stdout
    first, second = fake_node.service.assets
    assert first.manifest == second.manifest


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--app", "nonsense", *CC), "no application"),
        (("--app", "digits", "--licence", "my own"), "licence"),
        (("--app", "digits", *CC, "--price", "0.001"), "percent"),
        (("--app", "digits", *CC, "--price", "101"), "percent"),
        (("--app", "digits", *CC, "--price", "NaN"), "percent"),
        (("--app", "digits", *CC, "--parent", "0"), "--parent"),
        (("--app", "digits"), "--licence"),
        (("--app", "digits", *CC, "--name", ""), "is not a name"),
    ],
)
def test_what_cannot_be_minted_is_refused_before_anything_is_sent(
    run: Any, fake_node: Any, rows: Path, words: tuple[str, ...], why: str
) -> None:
    told = run("dataset", "add", rows, *words, "--datadir", fake_node.datadir, "--json")
    assert told.exit_code == 2
    assert why in told.error["what"] + told.error["why"]
    assert fake_node.service.assets == []
    assert fake_node.service.blobs == {}


def test_a_file_that_holds_no_digits_is_refused(run: Any, fake_node: Any, rows: Path) -> None:
    rows.write_bytes(b"PK not really")
    told = run("dataset", "add", rows, "--app", "digits", *CC, "--datadir", fake_node.datadir, "--json")
    assert (told.exit_code, told.error["what"]) == (2, "data file refused")


def test_a_copy_is_no_asset_of_its_own(run: Any, fake_node: Any, rows: Path) -> None:
    fake_node.service.fails["mint_asset"] = Reverted("mint", "ManifestTaken", {"asset": 3})
    told = run("dataset", "add", rows, "--app", "digits", *CC, "--datadir", fake_node.datadir, "--json")
    assert (told.exit_code, told.error["type"]) == (1, "Reverted")
    assert "ManifestTaken" in told.error["why"]


# -- any asset ----------------------------------------------------------------------------------------------
def test_any_kind_is_minted_of_a_file_or_of_what_is_stored(run: Any, fake_node: Any, tmp_path: Path) -> None:
    place = ("--datadir", fake_node.datadir, "--json")
    about = tmp_path / "about.md"
    about.write_text("A better optimizer.")
    told = run(
        "asset", "mint", about, "--kind", "algorithm", *CC, "--use", "train", "--use", "derive", *place
    )
    assert told.data["manifest"] == str(Cid.of(about.read_bytes()))
    cid = str(Cid.of(b"stored before"))
    more = ("--price", "10", "--parent", "1")
    told = run("asset", "mint", cid, "--kind", "model", *CC, *more, *place)
    assert (told.data["asset"], told.data["manifest"]) == ("2", cid)
    first, second = fake_node.service.assets
    assert (first.kind, first.uses) == (AssetKind.ALGORITHM, AssetUse.TRAIN | AssetUse.DERIVE)
    assert (second.kind, second.price_bps, second.parents) == (AssetKind.MODEL, 1000, (1,))
    assert run("asset", "mint", tmp_path / "none", "--kind", "model", *CC, *place).exit_code == 2
    about.write_bytes(bytes(2**20 + 1))
    assert "too large" in run("asset", "mint", about, "--kind", "model", *CC, *place).error["what"]


def test_an_asset_is_priced_lent_and_revoked(run: Any, fake_node: Any) -> None:
    place = ("--datadir", fake_node.datadir, "--json")
    assert run("asset", "price", "3", "12.25", *place).data["price_bps"] == 1225
    friend = "0x" + "ab" * 20
    assert run("asset", "allow", "3", friend, *place).data["user"].lower() == friend
    assert run("asset", "revoke", "3", *place).data["asset"] == "3"
    fake_node.service.fails["revoke_asset"] = Reverted("revoke", "NotAssetOwner", {"asset": 3})
    assert run("asset", "revoke", "3", *place).exit_code == 1
    for wrong in (("price", "3", "x"), ("price", "0", "1"), ("allow", "3", "0x12"), ("revoke", "x")):
        assert run("asset", *wrong, *place).exit_code == 2


@pytest.mark.parametrize(
    "words",
    [("revoke", "1"), ("price", "1", "2"), ("allow", "1", "0x" + "ab" * 20), ("list",), ("show", "1")],
)
def test_without_a_node_there_is_a_command_that_helps(
    run: Any, tmp_path: Path, words: tuple[str, ...]
) -> None:
    told = run("asset", *words, "--datadir", tmp_path / "none", "--json")
    assert (told.exit_code, told.error["type"]) == (3, "NodeNotRunning")
    assert "dfl-node start" in told.error["help"]


def test_assets_are_read_from_the_ledger(run: Any, story: ScoredRound) -> None:
    place = ("--datadir", story.datadir)
    (listed,) = run("asset", "list", *place, "--json").data["assets"]
    assert (listed["asset"], listed["kind"], listed["owner"]) == ("1", "dataset", story.owner.address)
    assert (listed["price_bps"], listed["uses"], listed["revoked"]) == (2000, ["train"], False)
    assert "20 %" in run("asset", "list", *place).stdout
    assert run("asset", "list", "--kind", "model", *place, "--json").data["assets"] == []
    nobody = "0x" + "ab" * 20
    assert run("asset", "list", "--owner", nobody, *place, "--json").data["assets"] == []
    shown = run("asset", "show", "1", *place, "--json").data
    assert shown["jobs"] == [{"job": 1, "earned_wei": str(20 * 10**18)}]
    assert "20 VNX" in run("asset", "show", "1", *place).stdout
    unknown = run("asset", "show", "9", *place, "--json")
    assert (unknown.exit_code, unknown.error["help"]) == (2, "dfl-node asset list")


def test_a_revoked_asset_with_uses_of_no_name_is_shown(run: Any, story: ScoredRound) -> None:
    odd = story.owner.mint_asset(
        AssetKind.MODEL,
        Cid.from_digest(hashlib.sha256(b"odd").digest()),
        b"l" * 32,
        AssetUse(0),
        0,
    )
    story.owner.revoke_asset(odd)
    story.read()
    shown = run("asset", "show", odd, "--datadir", story.datadir, "--json")
    assert (shown.exit_code, shown.data["uses"], shown.data["revoked"]) == (0, [], True)
    assert "revoked" in shown.stderr
