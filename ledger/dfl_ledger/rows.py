"""The rows of the ledger as readers see them, and their plain JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, Flag
from typing import Any

from dfl_ledger.records import Address, Cid, JobId, Kind, Leaf, Mode, Phase, ProofStep, Settlement

SCORES_PER_UNIT = 10**9  # of validation loss; divided, not multiplied: 1e-9 is no float
_KIND_NAMES = {int(kind): kind.name.lower() for kind in Kind}


def to_json(value: Any) -> Any:
    """A row as plain JSON values; ints named `…_wei` become decimal strings."""
    if is_dataclass(value):
        return {f.name: _member(f.name, getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Flag):  # those that have a name: a chain may hold other bits
        return [flag.name.lower() for flag in type(value) if flag.name and flag in value]
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Cid) else value


def _member(name: str, value: Any) -> Any:
    big = isinstance(value, int) and (name.endswith("_wei") or name in ("asset", "weights"))
    return str(value) if big else to_json(value)


class Row:
    """What every row has."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = to_json(self)
        return found


@dataclass(frozen=True, slots=True)
class ContributionRow(Row):
    """One revealed contribution. The last four but tx and block are None until its evidence was checked."""

    id: str  # JOB.ROUND.INDEX
    node: Address
    job: JobId
    round: int
    kind: str  # "update", "hop", "stage" or "feed"
    cid: str
    parent: str
    samples: int
    score: float | None  # in validation loss
    reward_wei: int | None
    accepted: bool | None
    why: str | None
    tx: str
    block: int

    @property
    def index(self) -> int:
        """Its place among the round's reveals, from 0."""
        return int(self.id.rpartition(".")[2])


@dataclass(frozen=True, slots=True)
class RoundRow(Row):
    """One round. Times are block numbers, None for what has not happened."""

    round: int
    state: str  # "open", "published", "settled" or "void"
    parent: str | None
    model: str | None
    aggregator: Address | None
    expected: int
    commits: int
    contributions: int
    opened_block: int | None
    published_block: int | None
    voided_block: int | None
    settled_block: int | None
    evidence: str | None
    claimable_at: int | None  # Unix seconds
    paid_wei: int | None  # what the settlement added to the job's total


@dataclass(frozen=True, slots=True)
class JobRow(Row):
    """One job. `rounds` is filled by `LedgerRows.job` alone."""

    job: JobId
    requester: Address
    spec: str
    model: str  # the newest accepted
    mode: str  # "sync", "async", "pipeline" or "chained"
    phase: str  # "open", "commit" ...
    round: int
    completed: int
    target_rounds: int  # rounds to complete
    quorum: int
    min_nodes: int
    round_budget_wei: int
    required_stake_wei: int
    settled_wei: int  # moved from escrow to those who earned it
    refunded_wei: int
    cancel_requested: bool
    deadline: int  # Unix seconds: when the phase may be ended
    contributions: int
    created_block: int
    ended_block: int | None
    tx: str
    rounds: tuple[RoundRow, ...] = ()


@dataclass(frozen=True, slots=True)
class SettlementRow(Row):
    """One settlement and, once its evidence was checked, its leaves."""

    job: JobId
    round: int
    settler: Address
    root: bytes
    total_wei: int
    evidence: str
    claimable_at: int  # Unix seconds
    tx: str
    block: int
    leaves: tuple[Leaf, ...]
    score_root: bytes
    weights: int  # packed, see rewards.py
    payees: int  # lines of its reward tree

    def settlement(self) -> Settlement:
        """What its settler put on chain."""
        return Settlement(
            self.job,
            self.round,
            self.root,
            self.total_wei,
            Cid.parse(self.evidence),
            self.score_root,
            self.weights,
        )


@dataclass(frozen=True, slots=True)
class ClaimRow(Row):
    """One payment."""

    job: JobId
    round: int
    account: Address
    asset: int
    amount_wei: int
    tx: str
    block: int


@dataclass(frozen=True, slots=True)
class Claimable(Row):
    """Money that `Ledger.claim(job, round, leaf, proof)` would pay."""

    job: JobId
    round: int
    leaf: Leaf
    proof: tuple[ProofStep, ...]
    amount_wei: int


@dataclass(frozen=True, slots=True)
class Earnings(Row):
    """What an account earned so far, over all jobs and assets."""

    account: Address
    earned_wei: int  # settled, whether or not it can be claimed yet
    claimed_wei: int
    claimable: tuple[Claimable, ...]  # settled and not claimed; the challenge window may still be open


@dataclass(frozen=True, slots=True)
class NodeRow(Row):
    """A node as the registry's events tell it."""

    node: Address
    peer_key: bytes  # 32 bytes, Ed25519
    stake_wei: int
    unbond_at: int  # Unix seconds, 0 while bonded
    boot_addrs: tuple[str, ...]
    state: str  # "bonded", "unbonding" or "withdrawn"
    registered_block: int


@dataclass(frozen=True, slots=True)
class IndexState(Row):
    chain_id: int
    deployment_key: str
    start_block: int
    indexed_block: int  # start_block - 1 before the first
    head_block: int  # of the chain when it was last read; start_block - 1 before
    behind_blocks: int  # by which the ledger was behind then
    behind_s: int  # between the times of those two blocks
    indexed_time: int  # Unix seconds: of the newest indexed block, 0 before the first
    missing_evidence: int  # settlements whose scores are not filled in


# -- from the columns that query.py selects ---------------------------------------------------------------
def read_contribution(row: tuple[Any, ...]) -> ContributionRow:
    job, round_, index, node, kind, cid, parent, samples, score, reward, accepted, why, tx, block = row
    return ContributionRow(
        id=f"{job}.{round_}.{index}",
        node=node,
        job=job,
        round=round_,
        kind=_KIND_NAMES[kind],
        cid=cid,
        parent=parent,
        samples=int(samples),
        score=None if score is None else int(score) / SCORES_PER_UNIT,
        reward_wei=None if reward is None else int(reward),
        accepted=None if accepted is None else bool(accepted),
        why=why,
        tx=tx,
        block=block,
    )


def read_job(row: tuple[Any, ...], rounds: tuple[RoundRow, ...] = ()) -> JobRow:
    job, requester, spec, model, mode, phase, round_, completed, target, quorum, min_nodes = row[:11]
    budget, stake, refunded, cancel, deadline, created, ended, tx, settled, contributions = row[11:]
    return JobRow(
        job=job,
        requester=requester,
        spec=spec,
        model=model,
        mode=Mode(mode).name.lower(),
        phase=Phase(phase).name.lower(),
        round=round_,
        completed=completed,
        target_rounds=target,
        quorum=quorum,
        min_nodes=min_nodes,
        round_budget_wei=int(budget),
        required_stake_wei=int(stake),
        settled_wei=int(settled or 0),
        refunded_wei=int(refunded),
        cancel_requested=bool(cancel),
        deadline=deadline,
        contributions=contributions or 0,
        created_block=created,
        ended_block=ended,
        tx=tx,
        rounds=rounds,
    )


def read_rounds(rows: list[tuple[Any, ...]]) -> tuple[RoundRow, ...]:
    """In rising order: a settlement's total covers the rounds before it too."""
    rounds, before_wei = [], 0
    for row in rows:
        round_, parent, model, aggregator, expected, commits, contributions = row[:7]
        opened, published, voided, settled, evidence, claimable_at, total = row[7:]
        paid_wei = None
        if total is not None:
            paid_wei, before_wei = int(total) - before_wei, int(total)
        if voided is not None:
            state = "void"
        elif settled is not None:
            state = "settled"
        else:
            state = "open" if published is None else "published"
        rounds.append(
            RoundRow(
                round=round_,
                state=state,
                parent=parent,
                model=model,
                aggregator=aggregator,
                expected=expected,
                commits=commits,
                contributions=contributions,
                opened_block=opened,
                published_block=published,
                voided_block=voided,
                settled_block=settled,
                evidence=evidence,
                claimable_at=claimable_at,
                paid_wei=paid_wei,
            )
        )
    return tuple(rounds)


def read_node(row: tuple[Any, ...]) -> NodeRow:
    node, peer_key, stake, unbond_at, addrs, state, block = row
    key = bytes.fromhex(peer_key.removeprefix("0x"))
    return NodeRow(node, key, int(stake), unbond_at, tuple(json.loads(addrs)), state, block)


SETTLEMENT_COLUMNS = (
    "job, round, settler, root, total_wei, evidence, claimable_at, tx, block, score_root, weights, payees"
)


def read_settlement(row: tuple[Any, ...], leaves: tuple[Leaf, ...]) -> SettlementRow:
    job, round_, settler, root, total, evidence, claimable_at, tx, block, score_root, weights, payees = row
    return SettlementRow(
        job=job,
        round=round_,
        settler=settler,
        root=bytes.fromhex(root.removeprefix("0x")),
        total_wei=int(total),
        evidence=evidence,
        claimable_at=claimable_at,
        tx=tx,
        block=block,
        leaves=leaves,
        score_root=bytes.fromhex(score_root.removeprefix("0x")),
        weights=int(weights),
        payees=payees,
    )
