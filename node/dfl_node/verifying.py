"""A settlement gone through again by somebody who was not there: files, model, scores, split, tree, payouts.

`verify_round` works on the ledger's rows and on files by CID, with a trainer of its own and nothing of a
running node. What a mode thinks its pieces are worth is recomputed through `ModePart`, as the settler did it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol, cast

import trio

from dfl_ledger import audit, evidence
from dfl_ledger.errors import BlobNotFound, DflError, VerificationFailed
from dfl_ledger.evidence import Evidence
from dfl_ledger.merkle import SumTree
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import Address, Cid, JobId, Leaf, Settlement
from dfl_ledger.rows import SettlementRow
from dfl_node import jobspec
from dfl_node.bases import keep_base
from dfl_node.jobspec import JobSpec
from dfl_node.modes import pieces
from dfl_node.modes.measuring import TOLERANCE
from dfl_node.modes.mode import Context, ModePart, open_mode
from dfl_node.modes.pieces import Revealed
from dfl_node.parts import Parts
from dfl_node.rounds import vocabulary as rounds
from dfl_node.train.trainer import Trainer

FETCH_S = 60.0
_NOBODY = Address("0x" + "00" * 20)


class Files(Protocol):
    """What is needed of a `BlobStore`."""

    async def put(self, data: bytes, *, pin: bool = True) -> Cid: ...

    async def get(
        self, cid: Cid, *, max_bytes: int, timeout_s: float = 30.0, providers: tuple[str, ...] = ()
    ) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at and holds."""

    round: int
    what: str
    detail: str


class Mismatch(VerificationFailed):
    """Something does not hold; the checks before it do."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """Checks rounds of one job. `said` hears of each check as it is done."""

    job: JobId
    spec: JobSpec
    rows: LedgerRows
    files: Files
    mode: ModePart
    said: Callable[[Check], None]

    async def verify_round(self, round_: int) -> None:
        """Raises Mismatch with the first thing that does not hold, and other DflErrors for what could not be
        looked at: a file that is not to be had, a round without a settlement."""
        settled = await _in_thread(audit.settlement, self.rows, self.job, round_)
        if settled is None:
            raise VerificationFailed(
                f"job {self.job} round {round_} has no settlement",
                why="nothing was paid for it",
                help_command=f"dfl-node job status {self.job}",
            )
        found = await self._evidence(settled)
        previous = await self._previous_leaves(round_)
        self._check_tree(found, settled, previous)
        await self._check_rows(found, settled)
        await self._check_work(found)
        await self._check_payouts(found)

    # -- what was published ---------------------------------------------------------------------------
    async def _evidence(self, settled: SettlementRow) -> Evidence:
        cid = Cid.parse(settled.evidence)
        data = await self.files.get(cid, max_bytes=evidence.MAX_EVIDENCE_BYTES, timeout_s=FETCH_S)
        found = Evidence.decode(data)
        self._ok(settled.round, "evidence", f"{len(data)} bytes, as {cid} names them")
        return found

    async def _previous_leaves(self, round_: int) -> tuple[Leaf, ...]:
        """Those of the settlement before: cumulative rewards go on from there."""
        last = await _in_thread(self.rows.settled_before, self.job, round_)
        if last is None:
            return ()
        data = await self.files.get(last.evidence, max_bytes=evidence.MAX_EVIDENCE_BYTES, timeout_s=FETCH_S)
        found = Evidence.decode(data)
        found.check(last)
        return found.leaves

    def _check_tree(self, found: Evidence, settled: SettlementRow, previous: tuple[Leaf, ...]) -> None:
        on_chain = Settlement(
            self.job, settled.round, settled.root, settled.total_wei, Cid.parse(settled.evidence)
        )
        found.check(on_chain, previous)
        tree = SumTree(found.leaves)
        self._ok(settled.round, "sum tree", f"{len(tree.leaves)} leaves give root 0x{tree.root.hex()}")
        paid_wei = sum(leaf.reward_wei for leaf in found.leaves)
        self._ok(settled.round, "split", f"{paid_wei} of {found.round_budget_wei} wei follow from the scores")

    async def _check_rows(self, found: Evidence, settled: SettlementRow) -> None:
        """The evidence speaks of what the chain has."""
        revealed = await _in_thread(self.rows.revealed, self.job, found.round)
        stated = [(e.index, e.node, str(e.cid), e.samples) for e in found.entries]
        on_chain = [(i, c.node, c.cid, c.samples) for i, c in enumerate(revealed)]
        for own, chain in zip(stated, on_chain, strict=False):
            self._require(
                own == chain, found.round, "contributions", f"evidence has {own}, the chain {chain}"
            )
        self._require(
            len(stated) == len(on_chain),
            found.round,
            "contributions",
            f"evidence has {len(stated)}, the chain {len(on_chain)}",
        )
        models = await _in_thread(self.rows.models, self.job, found.round)
        self._require(
            (found.parent, found.model) == models,
            found.round,
            "models",
            f"evidence has {found.parent} and {found.model}, the chain {models[0]} and {models[1]}",
        )
        self._require(
            found.round_budget_wei == self.spec.reward.round_budget_wei,
            found.round,
            "budget",
            f"evidence has {found.round_budget_wei} wei, the job's spec {self.spec.reward.round_budget_wei}",
        )
        for row, entry in zip(revealed, found.entries, strict=True):
            same = row.accepted is None or (row.accepted, row.why) == (entry.accepted, entry.why)
            self._require(same, found.round, "ledger", f"the ledger judges {row.id} otherwise")
        self._require(
            not settled.leaves or settled.leaves == found.leaves,
            found.round,
            "ledger",
            "the ledger has other leaves",
        )
        self._ok(found.round, "chain", f"{len(stated)} contributions, both models and the budget are its own")

    # -- the work again -------------------------------------------------------------------------------
    async def _check_work(self, found: Evidence) -> None:
        rows = await _in_thread(self.rows.revealed, self.job, found.round)
        revealed = await pieces.fetch(
            cast(Parts, SimpleNamespace(store=self.files, channel=_Nobody())),
            rows,
            objection=partial(self.mode.objection, found.round),
            max_bytes=self.mode.max_piece_bytes,
            patience_s=FETCH_S,
        )
        revealed = self._as_judged(found, revealed)
        model, verdicts = await self.mode.combine(found.round, found.parent, revealed)
        self._require(
            model == found.model, found.round, "model", f"published is {found.model}, recomputed {model}"
        )
        self._ok(found.round, "model", f"{len(rows)} pieces give {model}")
        for entry, verdict in zip(found.entries, verdicts, strict=True):
            self._require(
                entry.accepted == verdict.accepted,
                found.round,
                "verdicts",
                f"{entry.cid} was judged otherwise: {verdict.why or 'it is sound'}",
            )
        scores, method = await self.mode.worth(found.round, found.parent, revealed.accepted(verdicts))
        self._require(method == found.method, found.round, "scores", f"by {found.method}, here {method}")
        apart = 0
        for entry, score in zip(found.entries, scores, strict=True):
            wanted = score if entry.accepted else 0
            apart = max(apart, abs(wanted - entry.score))
            self._require(
                abs(wanted - entry.score) <= TOLERANCE,
                found.round,
                "scores",
                f"{entry.node} got {entry.score}e-9, recomputed {wanted}e-9",
            )
        how = "the same" if not apart else f"within {apart}e-9, as another machine's float32 may be"
        self._ok(found.round, "scores", f"{len(scores)} by {method}: {how}")

    def _as_judged(self, found: Evidence, revealed: Revealed) -> Revealed:
        """Without what the settler refused: that a piece did not arrive there cannot be seen here.

        Raises BlobNotFound when a piece that counted is not to be had, Mismatch when it may not count.
        """
        refused = []
        for entry, why in zip(found.entries, revealed.refused, strict=True):
            if not entry.accepted:
                refused.append(why or entry.why or "refused")
                continue
            if why and not revealed.all_here and "nobody delivered" in why:
                raise BlobNotFound(f"piece {entry.cid} of job {self.job} round {found.round}", why=why)
            self._require(not why, found.round, "verdicts", f"{entry.cid} was accepted: {why}")
            refused.append("")
        return replace(revealed, refused=tuple(refused))

    # -- the money ------------------------------------------------------------------------------------
    async def _check_payouts(self, found: Evidence) -> None:
        claims = await _in_thread(audit.payments, self.rows, self.job)
        wrong = audit.payout_mismatch(claims, found.round, found.leaves)
        self._require(not wrong, found.round, "payouts", wrong)
        own = [claim for claim in claims if claim.round == found.round]
        paid_wei = sum(claim.amount_wei for claim in own)
        self._ok(found.round, "payouts", f"{len(own)} claims of {paid_wei} wei pay what their leaves say")

    def _ok(self, round_: int, what: str, detail: str) -> None:
        self.said(Check(round_, what, detail))

    def _require(self, holds: bool, round_: int, what: str, why: str) -> None:
        if not holds:
            raise Mismatch(f"job {self.job} round {round_} fails the check of its {what}", why=why)


async def open_verifier(
    job: JobId, rows: LedgerRows, files: Files, trainer: Trainer, said: Callable[[Check], None]
) -> Verifier:
    """Raises DflError when the job's spec or base cannot be had."""
    row = await _in_thread(rows.job, job)
    if row is None:
        raise DflError(f"there is no job {job}", why="the ledger has none", help_command="dfl-node job list")
    data = await files.get(Cid.parse(row.spec), max_bytes=jobspec.MAX_SPEC_BYTES, timeout_s=FETCH_S)
    spec = jobspec.decode(data)
    parts: Any = SimpleNamespace(
        rows=rows,
        store=files,
        trainer=trainer,
        channel=_Nobody(),
        ledger=SimpleNamespace(address=_NOBODY),
    )
    await keep_base(parts, spec)
    context = Context(job, spec, parts, time.time, lambda: rounds.State(me=_NOBODY, trains=False))
    return Verifier(job, spec, rows, files, open_mode(context), said)


class _Nobody:
    """A channel without peers: whose files are wanted, is the business of whoever fetches them."""

    def peers(self) -> tuple[()]:
        return ()


async def _in_thread(call: Callable[..., Any], *args: object) -> Any:
    return await trio.to_thread.run_sync(call, *args)
