"""A chain of hand-made events that can be rewound, limited and switched off: a `Ledger` to read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, cast

from eth_utils.address import to_checksum_address

from dfl_ledger import vectors
from dfl_ledger.contracts import CONTRACTS, load
from dfl_ledger.errors import ChainUnreachable
from dfl_ledger.evidence import Evidence
from dfl_ledger.facts import Ballot, Piece, RoundFacts, Shares
from dfl_ledger.ledger import Ledger
from dfl_ledger.records import (
    REFUSED,
    Address,
    BlockRef,
    Cid,
    Event,
    JobId,
    JobTerms,
    Leaf,
    Mode,
    Payee,
    TxHash,
)
from dfl_ledger.terms import to_args

BUDGET_WEI = 10**18
EVALUATOR = 500  # the number of the one who scores every round
WHY = "norm 12.5 is more than 3 times the median"
_CONTRACT_OF = {entry.name: name for name in reversed(CONTRACTS) for entry in load(name).events.values()}


def address(number: int) -> Address:
    return Address(to_checksum_address(hashlib.sha256(b"account %d" % number).digest()[:20]))


def cid(name: str) -> Cid:
    return Cid.from_digest(hashlib.sha256(name.encode()).digest())


def hex32(name: str | Cid) -> str:
    return "0x" + (name if isinstance(name, Cid) else cid(name)).digest.hex()


@dataclass(frozen=True, slots=True)
class Block:
    hash: str
    events: tuple[Event, ...]


@dataclass
class FakeChain:
    """Block 0 is empty. `branch` goes into every hash, so that a re-mined block has another one."""

    chain_id: int = 31337
    branch: str = "main"
    blocks: list[Block] = field(default_factory=lambda: [Block("0x00", ())])
    max_range: int = 10**9  # blocks an `events` request may span
    down: bool = False
    requests: list[tuple[int, int]] = field(default_factory=list)
    shown_head: int | None = None  # a lagging endpoint
    answer: list[Event] | None = None  # a lying one: whatever it is asked

    @property
    def ledger(self) -> Ledger:
        return cast(Ledger, self)

    def mine(self, *events: tuple[str, dict[str, Any]]) -> int:
        """A block with these events; returns its number."""
        number = len(self.blocks)
        text = f"{self.branch} {number} {self.blocks[-1].hash} {events}"
        block_hash = "0x" + hashlib.sha256(text.encode()).hexdigest()
        made = tuple(
            Event(
                number, block_hash, index, _tx(number, index), _CONTRACT_OF.get(name, "Elsewhere"), name, args
            )
            for index, (name, args) in enumerate(events)
        )
        self.blocks.append(Block(block_hash, made))
        return number

    def mine_empty(self, count: int) -> None:
        for _ in range(count):
            self.mine()

    def rewind(self, blocks: int, branch: str) -> list[Block]:
        """Take blocks off the end; what is mined from now on is of another branch."""
        taken = self.blocks[-blocks:]
        del self.blocks[-blocks:]
        self.branch = branch
        return taken

    def replay(self, blocks: list[Block]) -> None:
        """Mine the same events again."""
        for block in blocks:
            self.mine(*((event.name, event.args) for event in block.events))

    def all_events(self) -> list[Event]:
        return [event for block in self.blocks for event in block.events]

    # -- Ledger ---------------------------------------------------------------------------------------
    def head(self) -> int:
        if self.down:
            raise ChainUnreachable("no answer")
        return len(self.blocks) - 1 if self.shown_head is None else self.shown_head

    def block(self, number: int | None = None) -> BlockRef:
        number = self.head() if number is None else number
        if number > self.head():
            raise ChainUnreachable(f"no block {number}")
        return BlockRef(number, self.blocks[number].hash, 1_000_000 + 12 * number)

    def events(self, from_block: int, to_block: int) -> list[Event]:
        if self.down or to_block - from_block + 1 > self.max_range:
            raise ChainUnreachable("range too wide")
        self.requests.append((from_block, to_block))
        if self.answer is not None:
            return self.answer
        return [event for block in self.blocks[from_block : to_block + 1] for event in block.events]


def _tx(block: int, index: int) -> TxHash:
    return TxHash(f"0x{block:060x}{index:04x}")


@dataclass
class JobStory:
    """Writes one job's events on a chain, as the contracts would emit them."""

    chain: FakeChain
    job: int = 1
    nodes: tuple[int, ...] = (1, 2, 3)
    round: int = 0
    model: str = "model 0"
    total_wei: int = 0
    leaves: tuple[Leaf, ...] = ()
    payees: tuple[Payee, ...] = ()

    def create(self, rounds: int = 3) -> None:
        terms = JobTerms(
            spec=cid("spec"),
            model=cid(self.model),
            mode=Mode.SYNC,
            rounds=rounds,
            quorum=2,
            min_nodes=3,
            open_window_s=100,
            commit_window_s=100,
            reveal_window_s=100,
            aggregate_window_s=100,
            target=0,
            settle_window_s=100,
            challenge_window_s=100,
            round_budget_wei=BUDGET_WEI,
            required_stake_wei=5 * 10**19,
            evaluators=1,
        )
        created = {
            "job": self.job,
            "requester": address(0),
            "spec": hex32(terms.spec),
            "terms": to_args(terms),
        }
        phase = {"job": self.job, "round": 1, "phase": 1, "deadline": 100}
        self.chain.mine(("JobCreated", created), ("PhaseChanged", phase))

    def open_round(self) -> None:
        self.round += 1
        opened = {"parent": hex32(self.model), "expected": len(self.nodes), "deadline": 200}
        self.chain.mine(
            ("RoundOpened", self._in_round(opened)),
            ("PhaseChanged", self._in_round({"phase": 2, "deadline": 200})),
        )

    def contribute(self) -> None:
        """Everybody commits in one block and reveals in the next."""
        new = [Payee(address(node), 0) for node in self.nodes if Payee(address(node), 0) not in self.payees]
        commits = self._added(*new)
        commits += [
            ("ContributionCommitted", self._in_round({"node": address(n), "commitment": hex32(f"salt {n}")}))
            for n in self.nodes
        ]
        self.chain.mine(*commits, ("PhaseChanged", self._in_round({"phase": 3, "deadline": 300})))
        reveals = [
            (
                "ContributionRevealed",
                self._in_round(
                    {
                        "node": address(node),
                        "kind": 0,
                        "index": index,
                        "update": hex32(self.update(node)),
                        "parent": hex32(self.model),
                        "samples": 640,
                    }
                ),
            )
            for index, node in enumerate(self.nodes)
        ]
        self.chain.mine(*reveals, ("PhaseChanged", self._in_round({"phase": 4, "deadline": 400})))

    def publish(self) -> None:
        self.model = f"model {self.job}.{self.round}"
        published = {"aggregator": address(self.nodes[0]), "model": hex32(self.model)}
        self.chain.mine(("ModelPublished", self._in_round(published)))

    def whole_round(self) -> None:
        self.open_round()
        self.contribute()
        self.publish()

    def facts(self, scores: tuple[int, ...] = (3, 1, 0)) -> RoundFacts:
        """Of the current round, once published; the last of its nodes is refused."""
        parent = f"model {self.job}.{self.round - 1}" if self.round > 1 else "model 0"
        vector = vectors.encode((*scores[: len(self.nodes) - 1], REFUSED, 1))
        judge = Payee(address(EVALUATOR), 0)
        return RoundFacts(
            job=JobId(self.job),
            round=self.round,
            parent=cid(parent),
            model=cid(self.model),
            shares=Shares(BUDGET_WEI),
            contributions=tuple(Piece(address(node), cid(self.update(node)), 640) for node in self.nodes),
            datasets=(),
            audits=0,
            ballots=(Ballot(judge.account, 10**20, vector),),
            payees=self.payees if judge in self.payees else (*self.payees, judge),
        )

    def evidence(self, scores: tuple[int, ...] = (3, 1, 0)) -> Evidence:
        """Of the current round, once published; the last of its nodes is refused."""
        last = len(self.nodes) - 1
        return Evidence.of(
            self.facts(scores),
            self.leaves,
            validation=cid("validation"),
            method="shapley",
            whys={last: WHY},
        )

    def settle(self, evidence: Evidence, claimable_at: int = 1000) -> Cid:
        """The panel's scores, and a settlement by them."""
        evidence_cid = Cid.from_digest(hashlib.sha256(evidence.encode()).digest())
        settlement = evidence.settlement(evidence_cid)
        self.leaves, self.total_wei = evidence.leaves, settlement.total_wei
        at = {"job": self.job, "round": evidence.round, "panel": 0}
        judge, seated = Payee(address(EVALUATOR), 0), {"seat": 0, "evaluator": address(EVALUATOR)}
        vector = evidence.ballots[0].vector or b""
        drawn = {"evaluators": [judge.account], "weights": [10**20], "subjects": len(vector) // 8}
        settled = {
            "settler": address(self.nodes[0]),
            "root": "0x" + settlement.root.hex(),
            "total": settlement.total_wei,
            "scoreRoot": "0x" + settlement.score_root.hex(),
            "weights": settlement.weights,
            "payees": len(evidence.leaves),
            "evidence": hex32(evidence_cid),
            "claimableAt": claimable_at,
        }
        self.chain.mine(
            ("PanelDrawn", at | drawn),
            ("ScoresCommitted", at | seated),
            *(self._added(judge) if judge not in self.payees else ()),
            ("ScoresRevealed", at | seated | {"vector": "0x" + vector.hex()}),
        )
        self.chain.mine(("Settled", {"job": self.job, "round": evidence.round} | settled))
        return evidence_cid

    def overturn(self, round_: int, why: int = 1) -> None:
        shown = {"challenger": address(77), "settler": address(self.nodes[0]), "why": why}
        self.chain.mine(("Overturned", {"job": self.job, "round": round_} | shown))

    def claim(self, node: int, amount_wei: int, round_: int) -> None:
        paid = {"round": round_, "account": address(node), "asset": 0, "amount": amount_wei}
        self.chain.mine(("Claimed", self._in_round(paid)))

    def end(self, phase: int = 5) -> None:
        self.chain.mine(("JobEnded", {"job": self.job, "phase": phase}))

    def update(self, node: int) -> str:
        return f"update {self.job}.{self.round}.{node}"

    def _added(self, *payees: Payee) -> list[tuple[str, dict[str, Any]]]:
        events: list[tuple[str, dict[str, Any]]] = []
        for payee in payees:
            told = {"index": len(self.payees), "account": payee.account, "asset": payee.asset}
            events.append(("PayeeAdded", {"job": self.job} | told))
            self.payees += (payee,)
        return events

    def _in_round(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"job": self.job, "round": self.round} | args


def register(chain: FakeChain, node: int, *, stake_wei: int = 10**20, boot: tuple[str, ...] = ()) -> None:
    args = {
        "node": address(node),
        "peerKey": hex32(f"key {node}"),
        "stake": stake_wei,
        "bootAddrs": list(boot),
    }
    chain.mine(("NodeRegistered", args))


def with_leaf(evidence: Evidence, index: int, **changes: Any) -> Evidence:
    """The same evidence with one leaf changed."""
    leaves = list(evidence.leaves)
    leaves[index] = replace(leaves[index], **changes)
    return replace(evidence, leaves=tuple(leaves))
