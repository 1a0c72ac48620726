"""How good a model of a job is: its loss on the requester's validation rows, each measured once.

Losses are compared as whole 1e-9, as scores are. The last of these digits may depend on the machine that
measured: whoever judges others by a comparison leaves a `TOLERANCE`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import structlog

from dfl_ledger.errors import BlobNotFound, CidMismatch, UpdateRefused
from dfl_ledger.records import Address, Cid
from dfl_node.modes.mode import Context
from dfl_node.value.shapley import UNIT, fixed

log = structlog.get_logger(__name__)

WATCH_S = 20.0
WATCHED = 64  # measurements kept for whoever looks
WRECKED = fixed(inf)  # the loss of what is no model
TOLERANCE = 1000  # 1e-6 of loss: beyond what float32 sums in another order can make of the same model


@dataclass(frozen=True, slots=True)
class Measured:
    loss: int  # in 1e-9; WRECKED unless it is a sound model
    why: str = ""  # it is not a sound model; empty = it is
    missing: bool = False  # because nobody delivered it: another time it may turn out to be one

    @property
    def sound(self) -> bool:
        return not self.why


class Measurer:
    """Measures models of one job and remembers."""

    def __init__(self, context: Context, rows: Callable[[], Awaitable[bytes]] | None = None) -> None:
        """`rows` gives what is measured on, if not the job's own validation file."""
        self._context = context
        self._rows = rows or context.validation
        self._known: dict[Cid, Measured] = {}
        self._watched: deque[dict[str, Any]] = deque(maxlen=WATCHED)

    async def measure(
        self, model: Cid, *, patience_s: float, data: bytes = b"", maker: Address | None = None
    ) -> Measured:
        """Fetch a model, from its maker first, unless its `data` is here, and measure it.

        A hostile or missing file is an answer. Raises DflError when nothing can be measured: without the
        validation rows, or a trainer.
        """
        found = self._known.get(model)
        if found is None:
            found = await self._measure(model, patience_s, data, maker)
            if not found.missing:
                self._known[model] = found
        return found

    async def watch(self, round_: int, model: Cid) -> None:
        """Measure what a requester wants to see. Raises BlobNotFound as long as it cannot be had."""
        found = await self.measure(model, patience_s=WATCH_S)
        if found.missing:
            raise BlobNotFound(f"model {model}", why=found.why)
        loss = found.loss / UNIT if found.sound else None
        self._watched.append({"round": round_, "model": str(model), "loss": loss, "why": found.why})
        log.info("measured", job=self._context.job, round=round_, model=str(model), loss=loss, why=found.why)

    def activity(self) -> dict[str, Any]:
        """What was watched last, oldest first, as plain JSON values."""
        return {"watched": list(self._watched)} if self._watched else {}

    async def _measure(self, model: Cid, patience_s: float, data: bytes, maker: Address | None) -> Measured:
        context, parts = self._context, self._context.parts
        validation = await self._rows()
        try:
            data = data or await parts.store.get(
                model,
                max_bytes=context.spec.training.max_update_bytes,
                timeout_s=patience_s,
                providers=tuple(p.peer_id for p in parts.channel.peers() if p.address == maker),
            )
            loss = fixed(await parts.trainer.loss(context.model, data, validation, context.rule))
        except UpdateRefused as bad:
            return Measured(WRECKED, bad.why or bad.what)
        except (BlobNotFound, CidMismatch) as gone:
            return Measured(WRECKED, gone.why or gone.what, missing=True)
        return Measured(loss) if loss < WRECKED else Measured(WRECKED, "its validation loss is not finite")


def shown(loss: int) -> str:
    """A loss for a message."""
    return f"{loss / UNIT:.6f}"
