"""What is asked of the asset registry: refused here if the registry would, and the same after a journey."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from eth_hash.auto import keccak

from dfl_ledger.errors import UsageError
from dfl_ledger.records import AssetKind, AssetUse, Cid
from dfl_node.assets import NewAsset, read_number, read_price, use_names

ASSET = NewAsset(
    AssetKind.MODEL, Cid.of(b"about"), "Apache-2.0", AssetUse.TRAIN | AssetUse.DERIVE, 250, (1, 7)
)


def test_it_comes_whole_through_json() -> None:
    assert NewAsset.from_json(ASSET.to_json()) == ASSET
    assert ASSET.to_json()["uses"] == ["train", "derive"]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "castle"},
        {"kind": 1},
        {"manifest": "nonsense"},
        {"licence": ""},
        {"licence": "no such thing"},
        {"uses": []},
        {"uses": ["anything"]},
        {"uses": [1]},
        {"uses": 5},
        {"price_bps": 10_001},
        {"price_bps": -1},
        {"price_bps": True},
        {"price_bps": 2.5},
        {"parents": [0]},
        {"parents": ["1"]},
        {"parents": [2**63]},
        {"parents": list(range(1, 18))},
        {"parents": None},
        {"more": 1},
    ],
    ids=str,
)
def test_what_is_wrong_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        NewAsset.from_json(ASSET.to_json() | change)


@pytest.mark.parametrize("asked", [None, [], "x", {}])
def test_what_is_no_asset_is_refused(asked: object) -> None:
    with pytest.raises(UsageError, match="not an asset"):
        NewAsset.from_json(asked)


def test_a_licence_is_kept_as_one_word() -> None:
    assert ASSET.licence_word == keccak(b"Apache-2.0")
    text = Cid.of(b"the whole licence")
    assert replace(ASSET, licence=str(text)).licence_word == text.digest


def test_numbers_and_prices_have_bounds() -> None:
    assert (read_price(0), read_price(10_000), read_number(1)) == (0, 10_000, 1)
    for wrong in (0, -1, 2**63, True, "1", None):
        with pytest.raises(UsageError):
            read_number(wrong)


def test_uses_without_a_name_are_left_out() -> None:
    assert use_names(AssetUse(0)) == []
    assert use_names(AssetUse(0b10001)) == ["train"]
