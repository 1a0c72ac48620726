"""A scored round played by hand on any chain, with real files: two trainers, one of them with a data set of
somebody else's, two evaluators, and whoever wants to settle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio

from dfl_ledger import vectors
from dfl_ledger.evidence import Evidence
from dfl_ledger.indexer import Indexer
from dfl_ledger.ledger import Ledger
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import (
    AssetKind,
    AssetUse,
    Cid,
    Contribution,
    JobId,
    Kind,
    Leaf,
    Settlement,
)
from dfl_node import jobspec
from dfl_node.datadir import ledger_path
from dfl_node.modes import pieces
from dfl_node.modes.mode import ModePart, Worths, aggregation, training_config
from dfl_node.specrules import model_config
from dfl_node.store.blocks import BlockFiles
from dfl_node.store.local import LocalStore
from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.trainer import Assignment, DataConfig
from dfl_node.verifying import Check, Verifier, open_verifier
from tests.conformance.ledger_story import ETHER, World, state, turns

SPEC = """
name = "by hand"
app = "digits"
[model]
name = "mlp"
[training]
rounds = 2
local_steps = 5
batch_size = 8
lr = 0.1
max_update_bytes = 4096
[round]
min_nodes = 2
quorum = 2
open_s = 200
commit_s = 200
reveal_s = 200
aggregate_s = 400
settle_s = 10000
challenge_s = 1000
[reward]
round_budget = 100
valuation = "shapley"
evaluators = 2
score_s = 300
bond = 6
required_stake = 10
shares = { data = 20.0, evaluators = 5.0 }
"""
SAMPLES = 40


class ScoredRound:
    """The first round of a job. Each step is a method, to be called in the order in which they stand."""

    def __init__(self, world: World, datadir: Path) -> None:
        datadir.mkdir(mode=0o700, exist_ok=True)
        self.world = world
        self.requester, self.owner = world.wallet(), world.wallet()
        start = self.requester.head()
        self.nodes = [self._staked(10) for _ in range(2)]
        self.judges = [self._staked(stake) for stake in (20, 30)]
        for judge in self.judges:
            judge.enlist()
        self.datadir = datadir
        self._blocks = BlockFiles(datadir / "store")
        self.files = LocalStore(self._blocks)
        self.trainer = MemoryTrainer()
        self.index = Indexer(ledger_path(datadir), self.requester, deployment_key="t", start_block=start)
        self.rows = LedgerRows(ledger_path(datadir))
        self.spec = jobspec.parse(SPEC)
        self.asset = 0
        self.job = JobId(0)
        self.vectors: dict[int, bytes] = {}

    def close(self) -> None:
        for judge in self.judges:
            if judge.is_evaluator(judge.address):
                judge.delist()
        self.rows.close()
        self.index.close()
        self._blocks.close()

    def _staked(self, stake_eth: int) -> Ledger:
        ledger = self.world.wallet()
        ledger.register(os.urandom(32), stake_eth * ETHER, [])
        return ledger

    def read(self) -> None:
        while self.index.step():
            pass

    def put(self, data: bytes) -> Cid:
        return trio.run(self.files.put, data)

    # -- the steps ------------------------------------------------------------------------------------
    def submit(self) -> None:
        """The owner lends its data set to the first trainer, who declares it."""
        self.asset = self.owner.mint_asset(
            AssetKind.DATASET, self.put(os.urandom(32)), b"l" * 32, AssetUse.TRAIN, 2000
        )
        self.owner.allow_asset(self.nodes[0].address, self.asset)
        validation = self.put(trio.run(self.trainer.validation_rows, "digits"))
        self.spec = self.spec.with_validation(validation)
        model = self.put(trio.run(self.trainer.init_model, model_config(self.spec), 1))
        terms = self.spec.terms(self.put(self.spec.encode()), model)
        self.job = self.requester.create_job(terms)
        self.nodes[0].join(self.job, datasets=[self.asset])
        self.nodes[1].join(self.job)
        self.read()

    def train(self, forged: bytes = b"") -> None:
        """Both deliver, and the one whose turn it is publishes what the pieces give, or what is forged."""
        made = []
        for seed, node in enumerate(self.nodes):
            parent = state(node, self.job).model
            update = trio.run(self._trained, trio.run(self._get, parent), seed)
            contribution = Contribution(
                self.job, 1, node.address, Kind.UPDATE, self.put(update), parent, SAMPLES
            )
            made.append((node, contribution))
        for node, contribution in made:
            node.commit(contribution, node.address.encode()[-32:])
        for node, contribution in made:
            node.reveal(contribution, node.address.encode()[-32:])
        self.read()
        model = self.put(forged) if forged else trio.run(self._combined)[0]
        turns(self.nodes, self.job)[0][1].publish_model(self.job, 1, model)
        self.read()

    def judge(self, off: dict[int, int] | None = None, *, data_off: int = 0) -> None:
        """Both evaluators measure, and bind themselves to it. `off`: what a seat adds to the first score;
        `data_off`: what both add to the data set's."""
        worths, data_worth = self.measured().pieces, self.data_worth()
        for number, seat in enumerate(self.requester.seats(self.job, 1)):
            scores = [worths[0] + (off or {}).get(number, 0), *worths[1:], data_worth + data_off, 1]
            self.vectors[number] = vectors.encode(scores)
            sealed = vectors.commitment(self.job, 1, 0, seat.evaluator, self.vectors[number], b"s" * 32)
            self._judge(seat.evaluator).commit_scores(self.job, 1, 0, number, sealed)
        self.read()

    def show(self, seats: Sequence[int] = (0, 1)) -> None:
        """These evaluators show their scores; if some do not, their time passes."""
        for number in seats:
            seat = self.requester.seats(self.job, 1)[number]
            self._judge(seat.evaluator).reveal_scores(self.job, 1, 0, number, self.vectors[number], b"s" * 32)
        if len(seats) < 2:
            self.world.reach(self.requester.panel(self.job, 1).reveal_until)
            self.requester.punish_seat(self.job, 1, 0, 1 - seats[0])
        self.read()

    def evidence(self, whys: dict[int, str] | None = None) -> Evidence:
        """What has to be settled."""
        facts = self.rows.round_facts(self.job, 1)
        return Evidence.of(facts, (), validation=self.spec.validation, method="shapley", whys=whys)

    def settle(self, evidence: Evidence, *, publish: bool = True, **changes: object) -> Settlement:
        """By the first trainer. `changes` are to what goes on chain; not published, nobody can fetch it."""
        cid = self.put(evidence.encode()) if publish else Cid.of(os.urandom(32))
        settlement = replace(evidence.settlement(cid), **changes)  # type: ignore[arg-type]
        self.nodes[0].settle(settlement)
        self.read()
        return settlement

    def claim(self, evidence: Evidence) -> None:
        """The requester sends it for everybody, once nobody can overturn it any more."""
        settled = self.requester.settlement(self.job, 1)
        assert settled is not None
        self.world.reach(settled.claimable_at)
        tree = evidence.reward_tree
        for place, leaf in enumerate(tree.leaves):
            if leaf.reward_wei:
                self.requester.claim(self.job, 1, leaf, tree.proof(place))
        self.read()

    def settled(self) -> Evidence:
        """All of it up to an honest settlement, checked by the index."""
        self.submit()
        self.train()
        self.judge()
        self.show()
        evidence = self.evidence()
        settlement = self.settle(evidence)
        self.index.add_evidence(evidence, settlement.evidence)
        return evidence

    # -- how ------------------------------------------------------------------------------------------
    def verifier(self, said: list[str], *, detailed: bool = False) -> Verifier:
        """As anybody opens it. `said` gets the name of each check that holds."""

        def hear(check: Check) -> None:
            said.append(f"{check.what}: {check.detail}" if detailed else check.what)

        return trio.run(open_verifier, self.job, self.rows, self.files, self.trainer, hear)

    def _judge(self, address: str) -> Ledger:
        return next(judge for judge in self.judges if judge.address == address)

    async def _get(self, cid: Cid) -> bytes:
        return await self.files.get(cid, max_bytes=1 << 20)

    async def _trained(self, parent: bytes, seed: int) -> bytes:
        assignment = Assignment(
            job=self.job,
            round=1,
            parent=parent,
            model=model_config(self.spec),
            training=training_config(self.spec),
            data=DataConfig("digits", None, (1, 1, 1), None),
            node_seed=seed,
            rule=aggregation(self.spec),
        )
        return (await self.trainer.train(assignment)).delta

    def measured(self) -> Worths:
        """What the pieces and the data set are worth: as an evaluator finds it."""
        return trio.run(self._measured)

    def data_worth(self) -> int:
        """Of the data set."""
        return self.measured().datasets[self.asset]

    async def _measured(self) -> Worths:
        _, parent, accepted, mode = await self._combined()
        return await mode.worth(1, parent, accepted, self.rows.datasets_by_node(self.job))

    async def _combined(self) -> tuple[Cid, Cid, pieces.Revealed, ModePart]:
        """The model of the pieces, kept; its parent, what it was made of, and how."""
        verifier = await open_verifier(self.job, self.rows, self.files, self.trainer, lambda check: None)
        rows = self.rows.revealed(self.job, 1)
        data = tuple([await self._get(Cid.parse(row.cid)) for row in rows])
        revealed = pieces.Revealed(rows, data, ("",) * len(rows), all_here=True)
        parent = Cid.parse(rows[0].parent)
        model, verdicts = await verifier.mode.combine(1, parent, revealed)
        return model, parent, revealed.accepted(verdicts), verifier.mode


def with_leaf(evidence: Evidence, place: int, **changes: int) -> Evidence:
    """The same evidence with one line changed."""
    leaves: list[Leaf] = list(evidence.leaves)
    leaves[place] = replace(leaves[place], **changes)  # type: ignore[arg-type]
    return replace(evidence, leaves=tuple(leaves))
