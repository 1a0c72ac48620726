"""How fast this node is, on work that every member of a job does alike.

What a stage in a run takes says little about another: small layers are all overhead, large ones all
arithmetic. So each node measures itself on the same piece, the first of the job's model, before its first
run.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from dfl_ledger.errors import DflError
from dfl_ledger.records import Cid
from dfl_node.modes.mode import Context
from dfl_node.modes.pipeline.setting import pipeline_of, stage_config
from dfl_node.train.stage import Array, Feed, SegmentCost, Stage, array_bytes

log = structlog.get_logger(__name__)

PATIENCE_S = 15.0
REPEATS = 3  # micro-batches; of several, the first does not count: it warms caches


async def measure(context: Context, parent: Cid, costs: Sequence[SegmentCost]) -> float:
    """FLOP/s of this node's trainer, 0 if it could not be measured: too little memory, say."""
    trainer, own = context.parts.trainer, pipeline_of(context)
    config = stage_config(context, [cost.name for cost in costs[1 : own.stages]], 0)
    speed = 0.0
    try:
        with trio.move_on_after(PATIENCE_S):
            model = await context.fetch_model(parent)
            feed = await trainer.open_feed(
                context.parts.data[context.spec.app],
                context.model,
                context.training,
                micro_batches=own.micro_batches,
                seed=(context.spec.training.seed,),
            )
            try:
                stage = await trainer.open_stage(config, parent=model, snapshot=None)
                try:
                    took_s = await _time(stage, feed, own.stages, min(REPEATS, own.micro_batches))
                    speed = costs[0].flops * config.rows / max(took_s, 1e-6)
                finally:
                    await _close(stage)
            finally:
                await _close(feed)
    except DflError as failure:
        log.info("speed not measured", why=str(failure))
    return speed


async def _time(stage: Stage, feed: Feed, stages: int, repeats: int) -> float:
    """Seconds of the fastest micro-batch, forward and backward."""
    times = []
    for micro in range(repeats):
        x, labels = await feed.batch(0, micro)
        began = trio.current_time()
        if stages == 1:
            await stage.last(micro, x, labels)
        else:
            y = await stage.forward(micro, x)
            await stage.backward(micro, Array(y.shape, y.dtype, bytes(array_bytes(y.shape, y.dtype))))
        times.append(trio.current_time() - began)
    return min(times)


async def _close(opened: Stage | Feed) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
        await opened.aclose()
