"""A chain of hand-made events that can be rewound, limited and switched off: a `Ledger` to read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, cast

from eth_utils.address import to_checksum_address

from dfl_ledger.errors import ChainUnreachable
from dfl_ledger.evidence import Evidence, EvidenceEntry, split
from dfl_ledger.ledger import Ledger
from dfl_ledger.records import Address, BlockRef, Cid, Event, JobId, Leaf, TxHash

BUDGET_WEI = 10**18


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
            Event(number, block_hash, index, TxHash(f"0x{number:060x}{index:04x}"), address(999), name, args)
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

    def create(self, rounds: int = 3) -> None:
        created = {
            "job": self.job,
            "requester": address(0),
            "spec": hex32("spec"),
            "model": hex32(self.model),
            "mode": 0,
            "rounds": rounds,
            "quorum": 2,
            "minNodes": 3,
            "target": 0,
            "roundBudget": BUDGET_WEI,
            "requiredStake": 5 * 10**19,
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
        commits = [
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

    def evidence(self, scores: tuple[int, ...] = (3, 1, 0), **changes: Any) -> Evidence:
        """Of the current round, once published; the last of its nodes is refused."""
        last = len(self.nodes) - 1
        entries = tuple(
            EvidenceEntry(
                node=address(node),
                index=index,
                cid=cid(self.update(node)),
                samples=640,
                accepted=index != last,
                why="" if index != last else "norm 12.5 is more than 3 times the median",
                score=scores[index] if index != last else 0,
            )
            for index, node in enumerate(self.nodes)
        )
        parent = f"model {self.job}.{self.round - 1}" if self.round > 1 else "model 0"
        values: dict[str, Any] = {
            "job": JobId(self.job),
            "round": self.round,
            "parent": cid(parent),
            "model": cid(self.model),
            "validation": cid("validation"),
            "method": "shapley",
            "round_budget_wei": BUDGET_WEI,
            "entries": entries,
            "leaves": split(BUDGET_WEI, entries, self.leaves),
        }
        return Evidence(**(values | changes))

    def settle(self, evidence: Evidence, claimable_at: int = 1000) -> Cid:
        evidence_cid = Cid.from_digest(hashlib.sha256(evidence.encode()).digest())
        settlement = evidence.settlement(evidence_cid)
        self.leaves, self.total_wei = evidence.leaves, settlement.total_wei
        settled = {
            "settler": address(self.nodes[0]),
            "root": "0x" + settlement.root.hex(),
            "total": settlement.total_wei,
            "evidence": hex32(evidence_cid),
            "claimableAt": claimable_at,
        }
        self.chain.mine(("Settled", self._in_round({"round": evidence.round} | settled)))
        return evidence_cid

    def claim(self, node: int, amount_wei: int, round_: int) -> None:
        paid = {"round": round_, "account": address(node), "asset": 0, "amount": amount_wei}
        self.chain.mine(("Claimed", self._in_round(paid)))

    def end(self, phase: int = 5) -> None:
        self.chain.mine(("JobEnded", {"job": self.job, "phase": phase}))

    def update(self, node: int) -> str:
        return f"update {self.job}.{self.round}.{node}"

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
