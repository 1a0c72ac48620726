"""How a node joins a job: where the job pays for data, with the data sets that it trains on."""

from __future__ import annotations

from typing import Any

import structlog

from dfl_ledger.errors import Reverted
from dfl_ledger.records import JobId
from dfl_node import declaring
from dfl_node.jobspec import JobSpec
from dfl_node.parts import Parts

log = structlog.get_logger(__name__)

# What the contract says of data sets, not of who joins: what we saw has changed since, or the job is full.
UNDECLARABLE = frozenset({"AssetUnusable", "ShareTooLow", "MayNotUse", "TooManyDatasets"})


class Joiner:
    """Joins one job, once or again after a round was missed."""

    def __init__(self, job: JobId, spec: JobSpec, parts: Parts) -> None:
        self._job, self._spec, self._parts = job, spec, parts
        self.left_out: dict[int, str] = {}  # data sets of ours that the job does not take, and why

    def join(self, shard: bytes | None = None) -> tuple[int, ...]:
        """What was declared. A data set that the job does not take keeps nobody from training. Blocks.

        `shard` is a commitment to our rows, where the job asks for one."""
        ledger, datasets = self._parts.ledger, self._offered()
        try:
            ledger.join(self._job, datasets, shard)
        except Reverted as no:
            if no.error == "AlreadyDeclared":  # and the rows do not tell yet
                datasets, shard = (), None
            elif datasets and no.error in UNDECLARABLE:
                self.left_out = self.left_out | dict.fromkeys(datasets, no.why)
                datasets = ()
            else:
                raise
            ledger.join(self._job, datasets, shard)
        for asset, why in self.left_out.items():
            log.warning("joined without a data set", job=self._job, asset=asset, why=why)
        return datasets

    def activity(self) -> dict[str, Any]:
        """As plain JSON values; nothing where every data set of ours is declared, or none is wanted."""
        return (
            {"left_out": {str(asset): why for asset, why in self.left_out.items()}} if self.left_out else {}
        )

    def _offered(self) -> tuple[int, ...]:
        """Those that the job takes. They are declared once, and that holds for later joins."""
        data_bps, ledger = self._spec.reward.shares.data_bps, self._parts.ledger
        own = self._parts.datasets.get(self._spec.app, ())
        if not data_bps or not own or ledger.address in self._parts.rows.datasets_by_node(self._job):
            return ()
        whys = {asset: declaring.refusal(ledger, asset, data_bps) for asset in own}
        self.left_out = {asset: str(why) for asset, why in whys.items() if why is not None}
        return tuple(asset for asset, why in whys.items() if why is None)
