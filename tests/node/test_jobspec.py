"""The job spec: what is not a spec is refused with the name of the field, and one spec has one CID."""

from __future__ import annotations

import copy
import math
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dfl_ledger import codec
from dfl_ledger.errors import DflError, SpecInvalid, UsageError
from dfl_ledger.records import Cid, Mode
from dfl_node import jobspec
from dfl_node.jobspec import JobSpec
from dfl_node.specfields import Table, vnx
from dfl_node.specrewards import FROM_APP

VALIDATION = str(Cid.of(b"rows", 0x70))
SPEC: dict[str, Any] = {
    "name": "digits with 3 nodes",
    "app": "digits",
    "mode": "sync",
    "model": {
        "name": "cnn",
        "args": {"width": 8},
        "base": VALIDATION,
        "freeze": ["conv1.*"],
        "personal": ["fc2.*"],
        "lora": {"rank": 2, "alpha": 4.0, "targets": ["fc1"]},
    },
    "training": {
        "rounds": 5,
        "local_steps": 20,
        "batch_size": 32,
        "lr": 0.05,
        "momentum": 0.9,
        "optimizer": "sgd",
        "strategy": "fedavg",
        "strategy_args": {},
        "aggregator": "trimmed-mean",
        "aggregator_args": {"f": 1},
        "time_budget_s": 5.5,
        "seed": 7,
        "max_update_bytes": 1 << 20,
    },
    "round": {
        "min_nodes": 3,
        "quorum": 2,
        "open_s": 60,
        "commit_s": 30,
        "reveal_s": 20,
        "aggregate_s": 40,
        "settle_s": 600,
        "challenge_s": 10,
        "sample": 0,
    },
    "reward": {
        "round_budget": "10.5",
        "required_stake": "100",
        "valuation": "leave-one-out",
        "validation": VALIDATION,
        "evaluators": 5,
        "score_s": 45,
        "bond": "1.5",
        "shares": {"data": 12.5, "model": 2, "algorithm": 0.01, "evaluators": 7.25},
        "model_asset": 3,
        "algorithm_asset": 4,
        "audits": 0,
        "sealed": False,
    },
}
REQUIRED = (
    "name",
    "app",
    "model",
    "model.name",
    "training",
    "training.rounds",
    "training.local_steps",
    "training.batch_size",
    "training.lr",
    "round",
    "round.min_nodes",
    "reward",
    "reward.round_budget",
)
OPTIONAL = (
    "mode",
    "model.args",
    "model.base",
    "model.freeze",
    "model.personal",
    "model.lora",
    "training.momentum",
    "training.optimizer",
    "training.strategy",
    "training.strategy_args",
    "training.aggregator",
    "training.aggregator_args",
    "training.time_budget_s",
    "training.seed",
    "training.max_update_bytes",
    "round.quorum",
    "round.open_s",
    "round.commit_s",
    "round.reveal_s",
    "round.aggregate_s",
    "round.settle_s",
    "round.challenge_s",
    "round.sample",
    "reward.required_stake",
    "reward.valuation",
    "reward.validation",
    "reward.evaluators",
    "reward.score_s",
    "reward.bond",
    "reward.audits",
    "reward.sealed",
)
TOGETHER = ("reward.shares", "reward.model_asset", "reward.algorithm_asset")  # an asset and its share
HUGE = 10**400
TOO_LONG_TO_PRINT = 1 << 20_000  # more digits than Python turns into text
MAX_WINDOW_S = 30 * 24 * 3600 - 1

NO_INT = ("3", 3.0, True, [], {})
NO_NAME = ("", "x" * 65, "a/b", "a\nb", "a\x00", 7, True, ["a"], {})
NO_WINDOW = (*NO_INT, 0, -1, MAX_WINDOW_S + 1, HUGE, TOO_LONG_TO_PRINT)
NO_VNX = (
    0.5,
    True,
    "",
    "-1",
    -1,
    "1e3",
    "nan",
    "inf",
    " 1",
    "1_000",
    "0x10",
    "١",
    "1.",
    ".5",
    "0.0000000000000000001",  # a tenth of a wei
    "0." + "0" * 80 + "1",
    "1234567890.1234567890123456789",
    2**96,
    "79228162514.264337593543950336",  # 2^96 wei
    HUGE,
    TOO_LONG_TO_PRINT,
    [],
)
BAD: dict[str, tuple[Any, ...]] = {
    "name": NO_NAME,
    "app": NO_NAME,
    "mode": ("gossip", "SYNC", "", 0, None, []),
    "model": ("cnn", 3, []),
    "model.name": NO_NAME,
    "model.args": (3, "x", [], {str(n): n for n in range(33)}),
    "model.base": ("", "Qm", 7, [], {}),
    "model.freeze": ("conv*", 7, [""], [7], ["x" * 257], ["x"] * 33, {}),
    "model.personal": ("conv*", 7, [""], [7], ["x" * 257], ["x"] * 33, {}),
    "model.lora": (3, [], "x"),
    "training": ("fast", []),
    "training.rounds": (*NO_INT, 0, -1, 10_001, HUGE, TOO_LONG_TO_PRINT),
    "training.local_steps": (*NO_INT, 0, 100_001),
    "training.batch_size": (*NO_INT, 0, 65_537),
    "training.lr": ("1", True, 0, 0.0, -0.1, 100.1, math.nan, math.inf, -math.inf, HUGE, TOO_LONG_TO_PRINT),
    "training.momentum": ("1", True, -0.1, 1.0, math.nan, HUGE),
    "training.optimizer": ("SGD", "", 1, ["sgd"], {"sgd": 1}),
    "training.strategy": ("fedmagic", "", 0),
    "training.strategy_args": (3, "x", [], {str(n): n for n in range(33)}),
    "training.aggregator": ("mode", "", 0),
    "training.aggregator_args": (3, "x", [], {str(n): n for n in range(33)}),
    "training.time_budget_s": ("1", True, -0.1, math.nan, MAX_WINDOW_S + 1, HUGE),
    "training.seed": (*NO_INT, -1, 2**31),
    "training.max_update_bytes": (*NO_INT, 0, (1 << 30) + 1),
    "round": (3, []),
    "round.min_nodes": (*NO_INT, 0, 10_001),
    "round.quorum": (*NO_INT, 0, 4, 10_001),
    "round.sample": (*NO_INT, -1, 1, 4, 10_001),
    "round.open_s": NO_WINDOW,
    "round.commit_s": NO_WINDOW,
    "round.reveal_s": NO_WINDOW,
    "round.aggregate_s": NO_WINDOW,
    "round.settle_s": (*NO_WINDOW, 1),
    "round.challenge_s": NO_WINDOW,
    "reward": (3, []),
    "reward.round_budget": (*NO_VNX, 0, "0", "0.0"),
    "reward.required_stake": NO_VNX,
    "reward.valuation": ("banzhaf", "", 0),
    "reward.validation": ("", "ap", "Qm", VALIDATION[:-1], VALIDATION.upper(), 7, []),
    "reward.evaluators": (*NO_INT, -1, 17),
    "reward.score_s": NO_WINDOW,
    "reward.bond": (*NO_VNX, "0.1"),
    "reward.shares": (3, []),
    "reward.shares.data": ("1", True, -1, 100.1, 0.001, math.nan, HUGE),
    "reward.shares.evaluators": (0,),
    "reward.model_asset": (*NO_INT, -1, 0, 2**63),
    "reward.algorithm_asset": (*NO_INT, -1, 0, 2**63),
    "reward.audits": (*NO_INT, -1, 9),
    "reward.sealed": (0, 1, "true", []),
}


def with_field(path: str, change: Callable[[dict[str, Any], str], Any]) -> dict[str, Any]:
    values = copy.deepcopy(SPEC)
    *tables, last = path.split(".")
    table = values
    for name in tables:
        table = table[name]
    change(table, last)
    return values


def replaced(path: str, value: Any) -> dict[str, Any]:
    return with_field(path, lambda table, name: table.update({name: value}))


def read(values: dict[str, Any]) -> JobSpec:
    """As `parse` does once the TOML is read."""
    return jobspec._read(Table(values, ""), money=vnx, money_suffix="")


def to_toml(values: dict[str, Any], path: str = "") -> str:
    def plain(value: Any) -> str:
        match value:
            case bool():
                return str(value).lower()
            case str():
                return '"' + value + '"'
            case _:
                return str(value)

    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    lines = [f"{name} = {plain(value)}" for name, value in values.items() if name not in tables]
    for name, table in tables.items():
        lines += [f"[{path}{name}]", to_toml(table, f"{path}{name}.")]
    return "\n".join(lines)


TOML = to_toml(SPEC)


def encoded(values: object) -> bytes:
    return codec.encode(values)


def wire() -> dict[str, Any]:
    found: dict[str, Any] = codec.decode(jobspec.parse(TOML).encode(), max_bytes=1 << 16)
    return found


def test_the_table_of_this_test_names_every_field() -> None:
    spec = wire()
    fields = {name for name in spec if name != "version"}
    for table in ("model", "training", "round", "reward"):
        fields |= {f"{table}.{name.removesuffix('_wei')}" for name in spec[table]}
    fields -= {"reward.seal_anchor"}  # no person writes it
    assert fields == set(REQUIRED) | set(OPTIONAL) | set(TOGETHER)
    assert fields == {name for name in BAD if name.count(".") < 2}


def test_toml_is_read_as_it_is_written() -> None:
    assert tomllib.loads(TOML) == SPEC
    spec = jobspec.parse(TOML)
    assert spec == read(SPEC)
    assert (spec.name, spec.app, spec.mode) == ("digits with 3 nodes", "digits", Mode.SYNC)
    assert spec.reward.round_budget_wei == 105 * 10**17
    assert spec.budget_wei == 5 * 105 * 10**17
    assert str(spec.validation) == VALIDATION


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_field_is_named(path: str) -> None:
    with pytest.raises(SpecInvalid, match="is missing") as refusal:
        read(with_field(path, lambda table, name: table.pop(name)))
    assert refusal.value.field == path


@pytest.mark.parametrize("path", OPTIONAL)
def test_a_field_with_a_default_may_be_left_out(path: str) -> None:
    spec = read(with_field(path, lambda table, name: table.pop(name)))
    assert spec.round.quorum == 2
    assert spec.round.quorum <= spec.round.min_nodes


@pytest.mark.parametrize("path", ["speed", "model.size", "training.epochs", "round.quorums", "reward.tip"])
def test_an_unknown_field_is_named(path: str) -> None:
    with pytest.raises(SpecInvalid, match="is not a field") as refusal:
        read(replaced(path, 1))
    assert refusal.value.field == path
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(
    ("path", "value"),
    [(path, value) for path, values in BAD.items() for value in values],
    ids=lambda part: part if isinstance(part, str) and len(part) < 30 else type(part).__name__,
)
def test_a_value_of_the_wrong_type_or_range_is_refused_with_the_fields_name(path: str, value: Any) -> None:
    with pytest.raises(SpecInvalid) as refusal:
        read(replaced(path, value))
    assert refusal.value.field == path
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "value",
    [None, [1], {"a": 1}, math.nan, math.inf, 2**63, -(2**63) - 1, TOO_LONG_TO_PRINT, "x" * 257],
    ids=["none", "list", "table", "nan", "inf", "big", "small", "huge", "long"],
)
def test_a_models_argument_that_cannot_be_published_is_refused_before_anything_is(value: Any) -> None:
    with pytest.raises(SpecInvalid) as refusal:
        read(replaced("model.args", {"width": value}))
    assert refusal.value.field == "model.args.width"


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_a_models_argument_without_a_sensible_name_is_refused(name: str) -> None:
    with pytest.raises(SpecInvalid, match="1 to 64 characters"):
        read(replaced("model.args", {name: 1}))


def test_a_quorum_above_the_least_number_of_nodes_is_refused() -> None:
    with pytest.raises(SpecInvalid, match=r"is 3, above round\.min_nodes = 2") as refusal:
        read(with_field("round", lambda table, name: table[name].update(min_nodes=2, quorum=3)))
    assert refusal.value.field == "round.quorum"


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 9, 10_000])
def test_the_quorum_that_is_left_out_is_the_majority(nodes: int) -> None:
    values = with_field("round", lambda table, name: table[name].update(min_nodes=nodes))
    del values["round"]["quorum"]
    spec = read(values)
    assert spec.round.quorum * 2 > nodes >= spec.round.quorum


@pytest.mark.parametrize(
    ("amount", "wei"),
    [
        (1, 10**18),
        ("1", 10**18),
        ("0.000000000000000001", 1),
        ("1.5", 15 * 10**17),
        ("0.10", 10**17),
        # 29 digits, one more than Python's Decimal keeps unless told otherwise
        ("79228162514.264337593543950335", 2**96 - 1),
    ],
)
def test_an_amount_is_exact_to_the_wei(amount: int | str, wei: int) -> None:
    values = replaced("reward.round_budget", amount)
    del values["reward"]["bond"], values["reward"]["required_stake"]  # both follow from the budget
    reward = read(values).reward
    assert reward.round_budget_wei == wei
    assert reward.required_stake_wei == reward.bond_wei
    assert 0 <= reward.bond_wei * 5 * 10_000 - 2 * wei * 725 < 5 * 10_000


# -- the published form -----------------------------------------------------------------------------------
def test_what_is_decoded_is_what_was_encoded_and_the_bytes_are_the_same_again() -> None:
    spec = jobspec.parse(TOML)
    data = spec.encode()
    assert jobspec.decode(data) == spec
    assert jobspec.decode(data).encode() == data


def test_the_order_of_fields_in_the_toml_does_not_change_the_cid() -> None:
    backwards = {name: value for name, value in reversed(SPEC.items()) if not isinstance(value, dict)}
    backwards |= {
        name: dict(reversed(value.items())) for name, value in SPEC.items() if isinstance(value, dict)
    }
    assert jobspec.parse(to_toml(backwards)).encode() == jobspec.parse(TOML).encode()


def test_a_spec_without_its_validation_rows_cannot_be_published() -> None:
    spec = read(replaced("reward.validation", "app"))
    with pytest.raises(SpecInvalid) as refusal:
        spec.encode()
    assert refusal.value.field == "reward.validation"
    cid = Cid.parse(VALIDATION)
    assert jobspec.decode(spec.with_validation(cid).encode()).validation == cid


def test_what_goes_on_chain_is_what_the_spec_says() -> None:
    spec, cid, model = jobspec.parse(TOML), Cid.of(b"spec", 0x70), Cid.of(b"model", 0x70)
    terms = spec.terms(cid, model)
    assert (terms.spec, terms.model, terms.mode, terms.rounds) == (cid, model, Mode.SYNC, 5)
    assert (terms.quorum, terms.min_nodes) == (2, 3)
    windows = (
        terms.open_window_s,
        terms.commit_window_s,
        terms.reveal_window_s,
        terms.aggregate_window_s,
        terms.settle_window_s,
        terms.challenge_window_s,
    )
    assert windows == (60, 30, 20, 40, 600, 10)
    assert (terms.round_budget_wei, terms.required_stake_wei) == (105 * 10**17, 100 * 10**18)


def _remove(path: str) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        *tables, last = path.split(".")
        for name in tables:
            spec = spec[name]
        del spec[last]

    return change


def _put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        *tables, last = path.split(".")
        for name in tables:
            spec = spec[name]
        spec[last] = value

    return change


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("version", _remove("version")),
        ("version", _put("version", 2)),
        ("version", _put("version", True)),
        ("name", _remove("name")),
        ("extra", _put("extra", 1)),
        ("training.lr", _put("training.lr", 0)),
        ("model.args.x", _put("model.args.x", b"bytes")),
        ("model.args.x", _put("model.args.x", 2**64 - 1)),
        ("round.quorum", _put("round.quorum", 4)),
        ("reward.round_budget_wei", _put("reward.round_budget_wei", 5)),
        ("reward.round_budget_wei", _put("reward.round_budget_wei", "0")),
        ("reward.round_budget_wei", _put("reward.round_budget_wei", "007")),
        ("reward.round_budget_wei", _put("reward.round_budget_wei", str(2**96))),
        ("reward.round_budget", _put("reward.round_budget", "1")),
        ("reward.validation", _put("reward.validation", "app")),
        ("reward.validation", _put("reward.validation", Cid.parse(VALIDATION))),
        ("reward.validation", _remove("reward.validation")),
    ],
)
def test_a_hostile_published_spec_is_refused_with_the_fields_name(
    field: str, change: Callable[[dict[str, Any]], None]
) -> None:
    spec = wire()
    change(spec)
    with pytest.raises(SpecInvalid) as refusal:
        jobspec.decode(encoded(spec))
    assert refusal.value.field == field


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xff" * 64,
        b"\x9f" * 1000,
        b"\x81" * 5000,
        b"\xa1\x61a\x01\x61a\x02",
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x80\x04\x95pickle",
        bytes(jobspec.MAX_SPEC_BYTES + 1),
    ],
    ids=["nothing", "zero", "ff", "lists", "deep", "duplicate", "bomb", "pickle", "long"],
)
def test_hostile_bytes_are_refused_before_they_are_read_as_a_spec(data: bytes) -> None:
    with pytest.raises(SpecInvalid) as refusal:
        jobspec.decode(data)
    assert refusal.value.field == "(all)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "a = " + "[" * 20_000,
        "a = " + "{b=" * 10_000,
        "a = " + "9" * 5000,
        'name = "\udc80"',
        "x" * (jobspec.MAX_SPEC_BYTES + 1),
        TOML.replace('name = "digits with 3 nodes"', "name = 1979-05-27"),
        TOML + "\n[training]\nrounds = 1",
    ],
    ids=["nothing", "word", "arrays", "tables", "number", "surrogate", "long", "date", "twice"],
)
def test_text_that_is_no_spec_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        jobspec.parse(text)
    assert refusal.value.exit_code == 2


# -- anything at all ---------------------------------------------------------------------------------------
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PATHS = st.sampled_from([*REQUIRED, *OPTIONAL])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
@example(b"\xd8\x2a\x40")
def test_no_bytes_raise_anything_but_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(DflError):
        jobspec.decode(data)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
@example("a = 0x" + "f" * 5000)
@example("a = 1e400")
def test_no_text_raises_anything_but_an_error_of_ours(text: str) -> None:
    with pytest.raises(DflError):
        jobspec.parse(text)


@settings(max_examples=300, deadline=None)
@given(PATHS, JSON)
def test_a_published_spec_with_any_value_in_any_field_is_refused_or_survives_the_round_trip(
    path: str, value: object
) -> None:
    spec = wire()
    wei = {"reward.round_budget", "reward.required_stake", "reward.bond"}
    _put(path + "_wei" if path in wei else path, value)(spec)
    try:
        decoded = jobspec.decode(encoded(spec))
    except DflError:
        return
    assert jobspec.decode(decoded.encode()) == decoded


@settings(max_examples=300, deadline=None)
@given(PATHS, JSON | st.integers() | st.floats())
def test_a_toml_spec_with_any_value_in_any_field_is_refused_or_can_be_published(
    path: str, value: object
) -> None:
    try:
        spec = read(replaced(path, value))
    except DflError:
        return
    if spec.reward.validation != FROM_APP:
        assert jobspec.decode(spec.encode()) == spec
