"""The real parts of one node, or their twins: whatever passes the four conformance suites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dfl_ledger.indexer import Indexer
from dfl_ledger.ledger import Ledger
from dfl_ledger.query import LedgerRows
from dfl_node.holders import Holders
from dfl_node.identity import NodeKey
from dfl_node.journal import Journal
from dfl_node.modes.pipeline.lines import Lines
from dfl_node.net.channel import Channel
from dfl_node.store.blob_store import BlobStore
from dfl_node.train.trainer import DataConfig, Trainer


@dataclass(frozen=True, slots=True)
class Parts:
    ledger: Ledger
    index: Indexer  # writes the ledger's rows
    rows: LedgerRows  # reads them
    store: BlobStore
    channel: Channel
    holders: Holders
    trainer: Trainer
    journal: Journal
    data: Mapping[str, DataConfig]  # application -> the rows this node holds
    trains: bool  # the role `train`
    lines: Lines  # of pipelined runs
    trainer_memory_bytes: int  # that the trainer's process may take
    datasets: dict[str, tuple[int, ...]] = field(default_factory=dict)  # application -> what its rows are
    share_rows: bool = False  # its owner lets rows leave this node, as pipelines and audits need it
    node_key: NodeKey | None = None  # opens the rows of those whom this node audits
