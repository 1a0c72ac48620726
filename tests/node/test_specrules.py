"""Which fields of a job spec fit together: what does not is refused before money is escrowed, by its name."""

from __future__ import annotations

from typing import Any

import pytest

from dfl_ledger.errors import SpecInvalid
from dfl_ledger.records import Cid, Mode
from dfl_node import jobspec
from dfl_node.jobspec import BufferSpec, JobSpec, PipelineSpec

BASE = str(Cid.of(b"a base", 0x70))


def toml(mode: str = "sync", of_mode: str = "", **fields: str) -> str:
    """A sound spec; `fields` such as round__quorum="3" are put into their tables."""
    tables: dict[str, dict[str, str]] = {
        "model": {"name": '"cnn"'},
        "training": {"rounds": "2", "local_steps": "5", "batch_size": "32", "lr": "0.1"},
        "round": {"min_nodes": "4"},
        "reward": {"round_budget": "10"},
    }
    for name, value in fields.items():
        table, _, field = name.partition("__")
        tables[table][field] = value
    text = f'name = "spec"\napp = "digits"\nmode = "{mode}"\n{of_mode}\n'
    for table, values in tables.items():
        text += f"[{table}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
    return text


def parsed(*arguments: str, **fields: str) -> JobSpec:
    return jobspec.parse(toml(*arguments, **fields))


def refusal(*arguments: str, **fields: str) -> SpecInvalid:
    with pytest.raises(SpecInvalid) as caught:
        parsed(*arguments, **fields)
    return caught.value


@pytest.mark.parametrize(("mode", "target"), [("sync", 0), ("async", 3), ("pipeline", 3), ("chained", 0)])
def test_every_mode_has_sound_defaults(mode: str, target: int) -> None:
    spec = parsed(mode)
    assert spec.mode is Mode[mode.upper()]
    assert spec.target == target
    assert spec.target == 0 or spec.round.quorum <= spec.target <= spec.round.min_nodes


@pytest.mark.parametrize("mode", ["sync", "async", "pipeline", "chained"])
def test_a_published_spec_reads_as_it_was_written(mode: str) -> None:
    lora = "{ rank = 2, alpha = 4.0, targets = ['fc*'] }"
    spec = parsed(mode, model__base=f'"{BASE}"', model__freeze='["conv1.*"]', model__lora=lora)
    spec = spec.with_validation(Cid.of(b"rows", 0x70))
    assert jobspec.decode(spec.encode()) == spec


def test_a_buffer_takes_more_than_half_of_the_members_and_bears_one_that_does_not_reveal() -> None:
    assert parsed("async").buffer == BufferSpec(size=3, max_lag=16)
    assert parsed("async").round.quorum == 2
    assert parsed("async", "[async]\nsize = 4\nmax_lag = 2").buffer == BufferSpec(4, 2)


def test_a_pipeline_needs_every_stage_and_pays_who_feeds_it() -> None:
    spec = parsed("pipeline", "[pipeline]\nstages = 3")
    assert (spec.round.quorum, spec.target) == (3, 4)
    assert spec.pipeline == PipelineSpec(stages=3, micro_batches=4, snapshot_steps=20)


def test_with_no_node_to_spare_who_feeds_a_pipeline_holds_a_stage_too() -> None:
    assert parsed("pipeline", "[pipeline]\nstages = 2", round__min_nodes="2").target == 2


@pytest.mark.parametrize(
    ("field", "arguments", "fields"),
    [
        ("round.min_nodes", ("sync",), {"round__min_nodes": "0"}),
        ("round.quorum", ("sync",), {"round__quorum": "5"}),
        ("round.quorum", ("pipeline", "[pipeline]\nstages = 3"), {"round__quorum": "2"}),
        ("round.sample", ("sync",), {"round__sample": "2"}),  # below the quorum of 3
        ("round.sample", ("sync",), {"round__sample": "5"}),
        ("round.sample", ("chained",), {"round__sample": "3"}),
        ("async", ("sync", "[async]\nsize = 2"), {}),
        ("pipeline", ("chained", "[pipeline]\nstages = 2"), {}),
        ("async.size", ("async", "[async]\nsize = 5"), {}),
        ("async.size", ("async", "[async]\nsize = 1"), {"round__quorum": "2"}),
        ("pipeline.stages", ("pipeline", "[pipeline]\nstages = 60"), {"round__min_nodes": "64"}),
        ("pipeline.stages", ("pipeline", "[pipeline]\nstages = 0"), {}),
        ("pipeline.stages", ("pipeline", "[pipeline]\nstages = 3"), {"round__min_nodes": "2"}),
        ("pipeline.micro_batches", ("pipeline", "[pipeline]\nmicro_batches = 5"), {}),
        ("pipeline.depth", ("pipeline", "[pipeline]\ndepth = 5"), {}),
        ("model.name", ("sync",), {"model__name": '"perceptron"'}),
        ("model.base", ("sync",), {"model__base": '"not-a-cid"'}),
        ("model.freeze", ("sync",), {"model__freeze": '"conv*"'}),
        ("model.personal", ("pipeline",), {"model__personal": '["fc2.*"]'}),
        ("model.lora.rank", ("sync",), {"model__lora": "{ rank = 0 }"}),
        ("training.strategy", ("sync",), {"training__strategy": '"fedmagic"'}),
        ("training.strategy", ("async",), {"training__strategy": '"scaffold"'}),
        ("training.strategy", ("chained",), {"training__strategy": '"fedadam"'}),
        ("training.aggregator", ("pipeline",), {"training__aggregator": '"median"'}),
        ("training.aggregator", ("sync",), {"training__aggregator": '"mode"'}),
        ("reward.valuation", ("chained",), {"reward__valuation": '"shapley"'}),
        ("reward.valuation", ("sync",), {"reward__valuation": '"hop-gain"'}),
        ("training.time_budget_s", ("sync",), {"training__time_budget_s": "-1"}),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(
    field: str, arguments: tuple[str, ...], fields: dict[str, Any]
) -> None:
    assert refusal(*arguments, **fields).field == field


def test_a_refusal_says_how_far_a_model_can_be_cut() -> None:
    why = refusal("pipeline", "[pipeline]\nstages = 60", round__min_nodes="64").why
    assert "can be cut into" in why
