"""From costs and offers to cuts: the work is shared out evenly, unless that passes too much between nodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dfl_ledger.records import Address
from dfl_node.modes.pipeline.messages import Offer
from dfl_node.modes.pipeline.seating import Seating
from dfl_node.train.stage import SegmentCost, StageConfig
from dfl_node.train.trainer import ModelConfig, TrainingConfig

ME, *OTHERS = (Address("0x" + digit * 40) for digit in "1234")
# The convolutional network on digits: a cut before "conv2" is the most even, one before "fc2" passes least.
COSTS = (
    SegmentCost("", 1_248, 72_128, 1_411_200, passes_bytes=9_408),
    SegmentCost("conv2", 28_896, 42_336, 8_467_200, passes_bytes=4_704),
    SegmentCost("fc1", 301_312, 4_960, 451_584, passes_bytes=256),
    SegmentCost("fc2", 2_600, 296, 3_840, passes_bytes=40),
)
TRAINING = TrainingConfig(10, 64, 0.1, 0.9, "sgd", 1, 1 << 20)


def seating(stages: int) -> Seating:
    def stage_config(cuts: tuple[str, ...], index: int) -> StageConfig:
        return StageConfig(ModelConfig("cnn", {}), TRAINING, cuts, index, 4, 16)

    setting: Any = SimpleNamespace(
        me=ME,
        pipeline=SimpleNamespace(stages=stages),
        context=SimpleNamespace(spec=SimpleNamespace(target=stages + 1)),
        stage_config=stage_config,
    )
    return Seating(setting, COSTS)


@pytest.mark.parametrize(("speed", "cuts"), [(5e8, ("conv2",)), (5e9, ("fc2",))], ids=["slow", "fast"])
def test_nodes_that_compute_faster_than_they_send_are_cut_where_little_passes(
    speed: float, cuts: tuple[str, ...]
) -> None:
    offers = {node: Offer(0, 1 << 30, speed, None, None, ()) for node in (ME, *OTHERS)}
    found, holders = seating(2).seat(offers, None, None, excluded=frozenset(), resting=None)
    assert found == cuts
    assert set(holders) < set(OTHERS)
