"""The Python records mirror the Solidity types: same members, same order."""

from __future__ import annotations

import dataclasses
import json
import re
from enum import IntEnum
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.records import (
    AssetKind,
    Audit,
    ClaimRequest,
    Fault,
    JobState,
    JobTerms,
    Kind,
    Leaf,
    Mode,
    Opening,
    PanelPhase,
    PanelState,
    Payee,
    Phase,
    ProofStep,
    Publication,
    ScoreLeaf,
    Seat,
    SettlementState,
    Tree,
    Word,
)

_FOLDER = Path(__file__).parents[2] / "contracts" / "types"
_TYPES = "".join(path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.sol")))


def _struct_fields(contract: str, type_name: str) -> list[str]:
    """Field names of a struct, wherever the contract's ABI mentions it."""
    text = resources.files("dfl_ledger").joinpath("abi", f"{contract}.json").read_text(encoding="utf-8")

    def search(node: Any) -> list[str] | None:
        if isinstance(node, dict):
            if node.get("internalType", "").removesuffix("[]") == f"struct {type_name}":
                return [component["name"] for component in node["components"]]
            node = list(node.values())
        if isinstance(node, list):
            return next((found for child in node if (found := search(child))), None)
        return None

    fields = search(json.loads(text)["abi"])
    assert fields is not None, f"{contract}'s ABI has no struct {type_name}"
    return fields


# Where ours says more than Solidity's.
_RENAMED = {"SettlementState": "Settlement", "PanelState.phase": "state"}


def _camel(name: str) -> str:
    """`round_budget_wei` as Solidity has it, where the unit is in the comment: `roundBudget`."""
    head, *tail = re.sub(r"_(wei|s)$", "", name).split("_")
    return head + "".join(word.capitalize() for word in tail)


@pytest.mark.parametrize("enum", [Mode, Phase, Kind, AssetKind, PanelPhase, Tree, Fault])
def test_enums_have_the_same_members_in_the_same_order(enum: type[IntEnum]) -> None:
    declared = re.search(rf"enum {enum.__name__} {{([^}}]*)}}", _TYPES)
    assert declared is not None
    names = [name.strip().upper() for name in declared.group(1).split(",")]
    assert names == [member.name for member in enum]
    assert [member.value for member in enum] == list(range(len(names)))


@pytest.mark.parametrize(
    ("contract", "record", "extra"),
    [
        ("TrainingJobs", JobTerms, ()),
        ("TrainingJobs", JobState, ("job",)),
        ("TrainingJobs", Publication, ()),
        ("TrainingJobs", Payee, ()),
        ("RewardDistributor", Leaf, ()),
        ("RewardDistributor", ProofStep, ()),
        ("RewardDistributor", ScoreLeaf, ()),
        ("RewardDistributor", Opening, ()),
        ("RewardDistributor", ClaimRequest, ()),
        ("RewardDistributor", SettlementState, ("job", "round")),
        ("ScoreBoard", PanelState, ()),
        ("ScoreBoard", Seat, ()),
        ("ScoreBoard", Word, ()),
        ("ScoreBoard", Audit, ()),
    ],
)
def test_structs_have_the_same_fields_in_the_same_order(
    contract: str, record: type, extra: tuple[str, ...]
) -> None:
    fields = [_camel(field.name) for field in dataclasses.fields(record) if field.name not in extra]
    name = _RENAMED.get(record.__name__, record.__name__)
    expected = [_RENAMED.get(f"{record.__name__}.{field}", field) for field in fields]
    assert expected == _struct_fields(contract, name)
