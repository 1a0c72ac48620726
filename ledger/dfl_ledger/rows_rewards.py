"""The rows of the reward protocol as readers see them: panels, audits, assets, and who lost what."""

from __future__ import annotations

from dataclasses import dataclass

from dfl_ledger.records import Address, AssetKind, AssetUse, JobId
from dfl_ledger.rows import Row


@dataclass(frozen=True, slots=True)
class SeatRow(Row):
    """A seat of a panel, and how far it came. Each `…_tx` is None for what has not happened."""

    seat: int
    evaluator: Address
    weight_wei: int
    committed_tx: str | None
    revealed_tx: str | None
    vector: bytes | None  # 8 bytes a score
    withheld_tx: str | None  # punished for showing no scores
    penalized_tx: str | None  # punished for a score far from the median


@dataclass(frozen=True, slots=True)
class PanelRow(Row):
    """A panel that was drawn: 0 scores a round, 1 + k is the jury of an appeal against its audit k."""

    job: JobId
    round: int
    panel: int
    subjects: int  # scores of a vector
    drawn_block: int
    tx: str
    seats: tuple[SeatRow, ...]


@dataclass(frozen=True, slots=True)
class UnsealedRow(Row):
    """The key of the validation shard that a round is scored on, as the chain has it."""

    position: int  # of the round among those with a model, from 0
    key: bytes  # 32 bytes
    previous: bytes  # the key before it, of the first the job's anchor
    late_s: int | None  # after its round was published, 0 if before; None: not known yet
    due_s: int  # it counts if it was not later than that

    @property
    def in_time(self) -> bool:
        return self.late_s is not None and self.late_s <= self.due_s


@dataclass(frozen=True, slots=True)
class AuditRow(Row):
    """An audit of which something is known: that it failed, or where the node's rows lie."""

    job: JobId
    round: int
    audit: int
    node: Address
    boxes: str | None
    appeal_until: int | None  # Unix seconds; None: has not failed
    appealed: bool
    upheld: bool | None  # None: not decided


@dataclass(frozen=True, slots=True)
class OpeningRow(Row):
    """A shard that its node opened to a jury."""

    node: Address
    boxes: str
    block: int


@dataclass(frozen=True, slots=True)
class OffenceRow(Row):
    """What a node lost a bond for."""

    job: JobId
    round: int
    node: Address
    kind: str
    tx: str
    block: int


@dataclass(frozen=True, slots=True)
class SlashRow(Row):
    """Stake that was taken from a node: part of it for who reported the offence, the rest burned."""

    node: Address
    reporter: Address
    slashed_wei: int
    reward_wei: int
    tx: str
    block: int


@dataclass(frozen=True, slots=True)
class OverturnedRow(Row):
    """A settlement that is void: shown to be wrong, or (`why` None) later than one that was."""

    job: JobId
    round: int
    settler: Address
    root: bytes
    challenger: Address
    why: str | None  # "score", "reward", "cumulative", "tree" or "withheld"
    tx: str
    block: int


@dataclass(frozen=True, slots=True)
class AssetRow(Row):
    """An asset as the registry's events tell it."""

    asset: int
    owner: Address
    kind: AssetKind
    manifest: str
    licence: bytes
    uses: AssetUse
    price_bps: int
    parents: tuple[int, ...]
    revoked: bool
    minted_block: int
