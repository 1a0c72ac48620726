"""The evidence of a settlement: every contribution of a round, its score, and what follows for money.

Whoever settles publishes the evidence as a file and puts its CID and the root of its leaves on chain;
everybody else derives the same leaves from the same evidence, or refuses it. How a round's budget is split:

    weight(entry)  = max(score, 0) if accepted, else 0; if no accepted entry has a weight above 0, each has 1
    reward(entry)  = round_budget_wei * weight // sum of weights           (integers, rounded down)
    cumulative     = what the account's leaf of the last settled round held + reward

The remainder of the division, and the whole budget when nothing was accepted, stay in escrow and go back to
the requester. An account of earlier rounds with nothing in this one keeps its leaf with reward 0, so that the
newest leaf always pays everything before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

from eth_hash.auto import keccak

from dfl_ledger import codec
from dfl_ledger.errors import VerificationFailed
from dfl_ledger.merkle import SumTree, leaf_key
from dfl_ledger.records import Address, Cid, JobId, Leaf, Settlement

EVIDENCE_VERSION = 1
MAX_EVIDENCE_BYTES = 8 * 2**20
MAX_WHY_CHARS = 300
_MAX_METHOD_CHARS = 64
_UINT32 = (0, 2**32 - 1)
_UINT64 = (0, 2**64 - 1)
_UINT96 = (0, 2**96 - 1)
_UINT128 = (0, 2**128 - 1)
_UINT256 = (0, 2**256 - 1)
_INT128 = (-(2**127), 2**127 - 1)
_ENTRY_FIELDS = frozenset({"node", "index", "cid", "samples", "accepted", "why", "score"})
_LEAF_FIELDS = frozenset({"account", "asset", "score", "reward_wei", "cumulative_wei"})
_FIELDS = frozenset(
    {
        "version",
        "job",
        "round",
        "parent",
        "model",
        "validation",
        "method",
        "round_budget_wei",
        "entries",
        "leaves",
    }
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EvidenceEntry:
    """One revealed contribution and what became of it.

    `why` is made fit to publish: it may quote a contributor's file, which must not be able to prevent a
    settlement by a long text or by characters without UTF-8.
    """

    node: Address
    index: int  # the order of reveal, as on chain
    cid: Cid
    samples: int
    accepted: bool
    why: str  # the refusal's reason, empty when accepted
    score: int  # fixed point, 1e-9 of validation loss; 0 when refused

    def __post_init__(self) -> None:
        printable = self.why.encode("utf-8", "replace").decode()
        object.__setattr__(self, "why", printable[:MAX_WHY_CHARS])


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything needed to recompute a round's settlement. Raises ValueError for values that cannot stand.

    Entries are in rising order of index, leaves in the order of the sum tree.
    """

    job: JobId
    round: int
    parent: Cid  # the model that the updates started from
    model: Cid  # the model they were aggregated into
    validation: Cid | None  # the rows they were scored on
    method: str  # "shapley", "leave-one-out" ...
    round_budget_wei: int
    entries: tuple[EvidenceEntry, ...]
    leaves: tuple[Leaf, ...]
    version: int = EVIDENCE_VERSION

    def __post_init__(self) -> None:
        _check_form(self)

    def encode(self) -> bytes:
        """Canonical DAG-CBOR. Raises ValueError beyond MAX_EVIDENCE_BYTES."""
        encoded = codec.encode(
            {
                "version": self.version,
                "job": self.job,
                "round": self.round,
                "parent": self.parent,
                "model": self.model,
                "validation": self.validation,
                "method": self.method,
                "round_budget_wei": codec.decimal(self.round_budget_wei),
                "entries": [_entry_to_map(entry) for entry in self.entries],
                "leaves": [_leaf_to_map(leaf) for leaf in self.leaves],
            }
        )
        if len(encoded) > MAX_EVIDENCE_BYTES:
            raise ValueError(f"evidence of {len(encoded)} bytes, at most {MAX_EVIDENCE_BYTES} can be read")
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Evidence:
        """From a file of anybody. Raises VerificationFailed unless every field is there and possible."""
        values = codec.decode(data, max_bytes=MAX_EVIDENCE_BYTES)
        try:
            return _evidence_from_map(values)
        except ValueError as bad:
            raise VerificationFailed("evidence is malformed", why=str(bad)) from bad

    def settlement(self, evidence_cid: Cid) -> Settlement:
        """What to put on chain once this evidence is stored as `evidence_cid`."""
        tree = SumTree(self.leaves)
        return Settlement(self.job, self.round, tree.root, tree.total_wei, evidence_cid)

    def check(self, settlement: Settlement, previous_leaves: Sequence[Leaf] | None = None) -> None:
        """Raises VerificationFailed with the first thing that does not follow from the entries or the chain.

        `previous_leaves` are those of the job's last settled round (empty before the first); None when they
        are not known, and then only the growth of cumulative rewards goes unchecked.
        """
        here = f"evidence of job {self.job} round {self.round}"

        def require(holds: bool, why: str) -> None:
            if not holds:
                raise VerificationFailed(f"{here} does not support its settlement", why=why)

        require((self.job, self.round) == (settlement.job, settlement.round), "it is of another round")
        tree = SumTree(self.leaves)
        require(tree.root == settlement.root, f"its leaves have the root 0x{tree.root.hex()}")
        require(tree.total_wei == settlement.total_wei, f"its leaves sum to {tree.total_wei} wei")
        paid_wei = sum(leaf.reward_wei for leaf in self.leaves)
        budget_wei = self.round_budget_wei
        require(paid_wei <= budget_wei, f"rewards of {paid_wei} wei exceed the budget of {budget_wei}")
        own = {leaf_key(leaf): leaf for leaf in self.leaves}
        due = {leaf_key(leaf): leaf for leaf in split(budget_wei, self.entries, previous_leaves or ())}
        for key, leaf in due.items():
            require(key in own, f"{leaf.account} has no leaf for asset {leaf.asset}")
            stated = own[key]
            require(
                (stated.score, stated.reward_wei) == (leaf.score, leaf.reward_wei),
                f"{leaf.account} is due {leaf.reward_wei} wei for a score of {leaf.score}, "
                f"not {stated.reward_wei} for {stated.score}",
            )
        for key, leaf in own.items():
            require(
                leaf.cumulative_wei >= leaf.reward_wei, f"{leaf.account} has less in all than in this round"
            )
            require(key in due or leaf.reward_wei == 0, f"{leaf.account} is paid for no contribution")
            if previous_leaves is not None:
                cumulative_wei = due[key].cumulative_wei if key in due else 0
                require(
                    leaf.cumulative_wei == cumulative_wei,
                    f"{leaf.account} has earned {cumulative_wei} wei in all, not {leaf.cumulative_wei}",
                )


def split(
    round_budget_wei: int, entries: Sequence[EvidenceEntry], previous_leaves: Sequence[Leaf]
) -> tuple[Leaf, ...]:
    """A round's leaves from its scores, by the formula at the head of this file, in the order of the tree.

    Every node with an entry has a leaf, a refused one with reward 0. Raises ValueError if a node has two
    entries or an account two previous leaves.
    """
    weights = {entry.node: max(entry.score, 0) for entry in entries if entry.accepted}
    if not any(weights.values()):
        weights = dict.fromkeys(weights, 1)
    total_weight = sum(weights.values())
    previous = {(leaf.account, leaf.asset): leaf.cumulative_wei for leaf in previous_leaves}
    scores = {entry.node: entry.score if entry.accepted else 0 for entry in entries}
    if len(scores) != len(entries) or len(previous) != len(previous_leaves):
        raise ValueError("a node stands twice among the entries or the previous leaves")
    leaves = []
    for account, asset in previous.keys() | {(node, 0) for node in scores}:
        weight = weights.get(account, 0) if asset == 0 else 0
        reward_wei = round_budget_wei * weight // total_weight if weight else 0
        score = scores.get(account, 0) if asset == 0 else 0
        cumulative_wei = previous.get((account, asset), 0) + reward_wei
        leaves.append(Leaf(account, asset, score, reward_wei, cumulative_wei))
    return tuple(sorted(leaves, key=leaf_key))


# -- form: types, ranges and order, the same for what we publish and what we read --------------------------
def _check_form(evidence: Evidence) -> None:
    if evidence.version != EVIDENCE_VERSION:
        raise ValueError(f"version {evidence.version!r:.40} is not {EVIDENCE_VERSION}")
    _in_range("job", evidence.job, _UINT64)
    _in_range("round", evidence.round, _UINT32)
    _in_range("round_budget_wei", evidence.round_budget_wei, _UINT96)
    if not 0 < len(evidence.method) <= _MAX_METHOD_CHARS:
        raise ValueError(f"method: from 1 to {_MAX_METHOD_CHARS} characters")
    nodes: set[Address] = set()
    for place, entry in enumerate(evidence.entries):
        if entry.index != place:
            raise ValueError(f"entries[{place}].index is {entry.index}")
        if entry.node in nodes:
            raise ValueError(f"entries[{place}].node stands twice: {entry.node}")
        nodes.add(entry.node)
        _check_eip55(entry.node)
        _in_range("samples", entry.samples, _UINT64)
        _in_range("score", entry.score, _INT128)
        if not entry.accepted and entry.score != 0:
            raise ValueError(f"entries[{place}] is refused but has a score")
        if entry.accepted and entry.why:
            raise ValueError(f"entries[{place}] is accepted but has a reason of refusal")
    for leaf in evidence.leaves:
        _check_eip55(leaf.account)
        _in_range("asset", leaf.asset, _UINT256)
        _in_range("score", leaf.score, _INT128)
        _in_range("reward_wei", leaf.reward_wei, _UINT128)
        _in_range("cumulative_wei", leaf.cumulative_wei, _UINT128)
    keys = [leaf_key(leaf) for leaf in evidence.leaves]
    if not keys or any(left >= right for left, right in pairwise(keys)):
        raise ValueError("leaves must be at least one, in rising order of (account, asset), none twice")
    if sum(leaf.cumulative_wei for leaf in evidence.leaves) > _UINT128[1]:
        raise ValueError("the leaves' sum does not fit in 128 bits")


def _in_range(name: str, value: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise ValueError(f"{name} is out of range: {value}")


@lru_cache(maxsize=4096)
def _check_eip55(account: str) -> None:
    """https://eips.ethereum.org/EIPS/eip-55; eth_utils would cost a sixth of a second to import."""
    body = account[2:]
    if len(account) != 42 or account[:2] != "0x" or not set(body) <= set("0123456789abcdefABCDEF"):
        raise ValueError(f"not an address: {account!r:.60}")
    digest = keccak(body.lower().encode()).hex()
    mixed = "".join(c.upper() if int(d, 16) >= 8 else c for c, d in zip(body.lower(), digest, strict=False))
    if body != mixed:
        raise ValueError(f"address without its EIP-55 checksum: {account}")


# -- maps -------------------------------------------------------------------------------------------------
def _entry_to_map(entry: EvidenceEntry) -> dict[str, Any]:
    return {
        "node": entry.node,
        "index": entry.index,
        "cid": entry.cid,
        "samples": entry.samples,
        "accepted": entry.accepted,
        "why": entry.why,
        "score": codec.decimal(entry.score),
    }


def _leaf_to_map(leaf: Leaf) -> dict[str, Any]:
    return {
        "account": leaf.account,
        "asset": codec.decimal(leaf.asset),
        "score": codec.decimal(leaf.score),
        "reward_wei": codec.decimal(leaf.reward_wei),
        "cumulative_wei": codec.decimal(leaf.cumulative_wei),
    }


def _evidence_from_map(values: object) -> Evidence:
    table = _table("evidence", values, _FIELDS)
    validation = table["validation"]
    return Evidence(
        version=_typed("version", table["version"], int),
        job=JobId(_typed("job", table["job"], int)),
        round=_typed("round", table["round"], int),
        parent=_typed("parent", table["parent"], Cid),
        model=_typed("model", table["model"], Cid),
        validation=None if validation is None else _typed("validation", validation, Cid),
        method=_typed("method", table["method"], str),
        round_budget_wei=codec.read_decimal(table["round_budget_wei"]),
        entries=tuple(_entry_from_map(entry) for entry in _typed("entries", table["entries"], list)),
        leaves=tuple(_leaf_from_map(leaf) for leaf in _typed("leaves", table["leaves"], list)),
    )


def _entry_from_map(values: object) -> EvidenceEntry:
    table = _table("entry", values, _ENTRY_FIELDS)
    why = _typed("why", table["why"], str)
    if len(why) > MAX_WHY_CHARS:
        raise ValueError(f"why: more than {MAX_WHY_CHARS} characters")
    return EvidenceEntry(
        node=Address(_typed("node", table["node"], str)),
        index=_typed("index", table["index"], int),
        cid=_typed("cid", table["cid"], Cid),
        samples=_typed("samples", table["samples"], int),
        accepted=_typed("accepted", table["accepted"], bool),
        why=why,
        score=codec.read_decimal(table["score"]),
    )


def _leaf_from_map(values: object) -> Leaf:
    table = _table("leaf", values, _LEAF_FIELDS)
    return Leaf(
        account=Address(_typed("account", table["account"], str)),
        asset=codec.read_decimal(table["asset"]),
        score=codec.read_decimal(table["score"]),
        reward_wei=codec.read_decimal(table["reward_wei"]),
        cumulative_wei=codec.read_decimal(table["cumulative_wei"]),
    )


def _table(name: str, values: object, fields: frozenset[str]) -> dict[str, object]:
    table: dict[str, object] = _typed(name, values, dict)
    for field in sorted(table.keys() ^ fields):
        raise ValueError(f"{name}: field `{field:.60}` is {'unknown' if field in table else 'missing'}")
    return table


def _typed(name: str, value: object, kind: type[T]) -> T:
    # type() and not isinstance(): True is an int, and no number is meant where it stands
    if type(value) is not kind:
        raise ValueError(f"{name} must be {kind.__name__}, not {type(value).__name__}")
    return value
