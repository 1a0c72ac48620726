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

from dfl_ledger.records import JobState, JobTerms, Kind, Leaf, Mode, Phase, ProofStep

_TYPES = (Path(__file__).parents[2] / "contracts" / "types" / "Types.sol").read_text(encoding="utf-8")


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


def _camel(name: str) -> str:
    """`round_budget_wei` as Solidity has it, where the unit is in the comment: `roundBudget`."""
    head, *tail = re.sub(r"_(wei|s)$", "", name).split("_")
    return head + "".join(word.capitalize() for word in tail)


@pytest.mark.parametrize("enum", [Mode, Phase, Kind])
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
        ("RewardDistributor", Leaf, ()),
        ("RewardDistributor", ProofStep, ()),
    ],
)
def test_structs_have_the_same_fields_in_the_same_order(
    contract: str, record: type, extra: tuple[str, ...]
) -> None:
    fields = [field.name for field in dataclasses.fields(record) if field.name not in extra]
    assert [_camel(name) for name in fields] == _struct_fields(contract, record.__name__)
