"""The evidence of a settlement: what the chain fixed of a round, its scores, and what follows for money.

Whoever settles publishes the evidence as a file and puts its CID, and the roots of the two trees that follow
from it, on chain. Nothing in it is the settler's word: contributions, vectors and payees are the chain's, a
score is the median of the vectors (facts.py), and a reward follows from the scores (rewards.py). Everybody
derives the same lines from the same chain; the file spares them the work, and keeps what a later chain may
have forgotten. Only why a piece was refused is the settler's to say, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from eth_hash.auto import keccak

from dfl_ledger import codec, rewards
from dfl_ledger.errors import VerificationFailed
from dfl_ledger.facts import Ballot, Piece, RoundFacts, Shares
from dfl_ledger.merkle import RewardTree, ScoreTree
from dfl_ledger.records import NOBODY, REFUSED, Address, Cid, JobId, Leaf, Payee, Settlement

EVIDENCE_VERSION = 2
MAX_EVIDENCE_BYTES = 8 * 2**20
MAX_WHY_CHARS = 300
MAX_SEATS = 16
_MAX_METHOD_CHARS = 64
_BPS = (0, 10_000)
_UINT8 = (0, 2**8 - 1)
_UINT32 = (0, 2**32 - 1)
_UINT64 = (0, 2**64 - 1)
_ASSET = (0, 2**63 - 1)  # numbered from 1 on
_UINT96 = (0, 2**96 - 1)
_UINT128 = (0, 2**128 - 1)
_INT64 = (-(2**63), 2**63 - 1)
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
    score: int  # the panel's median: fixed point, 1e-9 of validation loss, or REFUSED
    why: str = ""  # of a refusal, in the settler's words

    def __post_init__(self) -> None:
        printable = self.why.encode("utf-8", "replace").decode()
        object.__setattr__(self, "why", printable[:MAX_WHY_CHARS])

    @property
    def accepted(self) -> bool:
        return self.score != REFUSED


@dataclass(frozen=True, slots=True)
class EvidenceDataset:
    """One of the data sets that were measured; its place among them is the job's."""

    asset: int
    worth: int  # the panel's median: fixed point, 1e-9 of validation loss


@dataclass(frozen=True)
class Evidence:
    """Everything needed to recompute a round's settlement. Raises ValueError for values that cannot stand.

    Entries are in rising order of index, leaves in that of the payees' numbers.
    """

    job: JobId
    round: int
    parent: Cid  # the model that the pieces started from
    model: Cid  # the one they were made into
    validation: Cid | None  # the rows they were scored on
    method: str  # "shapley", "leave-one-out" ...
    shares: Shares
    entries: tuple[EvidenceEntry, ...]
    leaves: tuple[Leaf, ...]
    datasets: tuple[EvidenceDataset, ...] = ()
    audits: int = 0
    ballots: tuple[Ballot, ...] = ()  # by seat
    version: int = EVIDENCE_VERSION

    def __post_init__(self) -> None:
        _check_form(self)

    @classmethod
    def of(
        cls,
        facts: RoundFacts,
        previous_leaves: Sequence[Leaf],
        *,
        validation: Cid | None,
        method: str,
        whys: Mapping[int, str] | None = None,
    ) -> Evidence:
        """What a settlement of the round has to say. `whys` are reasons of refusals, by index.

        `previous_leaves` are those of the settlement before, empty before the first. Raises ValueError if
        they are not of the same job.
        """
        medians, n = facts.medians, len(facts.contributions)
        entries = tuple(
            EvidenceEntry(
                piece.node,
                index,
                piece.cid,
                piece.samples,
                medians[index],
                (whys or {}).get(index, "") if medians[index] == REFUSED else "",
            )
            for index, piece in enumerate(facts.contributions)
        )
        return cls(
            job=facts.job,
            round=facts.round,
            parent=facts.parent,
            model=facts.model,
            validation=validation,
            method=method,
            shares=facts.shares,
            entries=entries,
            leaves=rewards.leaves(facts, previous_leaves),
            datasets=tuple(
                EvidenceDataset(asset, medians[n + place]) for place, asset in enumerate(facts.datasets)
            ),
            audits=facts.audits,
            ballots=facts.ballots,
        )

    @cached_property
    def facts(self) -> RoundFacts:
        """What this evidence says of the chain."""
        return RoundFacts(
            job=self.job,
            round=self.round,
            parent=self.parent,
            model=self.model,
            shares=self.shares,
            contributions=tuple(Piece(entry.node, entry.cid, entry.samples) for entry in self.entries),
            datasets=tuple(dataset.asset for dataset in self.datasets),
            audits=self.audits,
            ballots=self.ballots,
            payees=tuple(Payee(leaf.account, leaf.asset) for leaf in self.leaves),
        )

    @property
    def round_budget_wei(self) -> int:
        return self.shares.round_budget_wei

    @cached_property
    def reward_tree(self) -> RewardTree:
        return RewardTree(self.leaves)

    @cached_property
    def score_tree(self) -> ScoreTree:
        scores = [entry.score for entry in self.entries] + [dataset.worth for dataset in self.datasets]
        return ScoreTree(rewards.score_leaves(len(self.entries), scores))

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
                "shares": {
                    **_fields_of(self.shares),
                    "round_budget_wei": codec.decimal(self.round_budget_wei),
                },
                "entries": [_fields_of(entry) for entry in self.entries],
                "datasets": [_fields_of(dataset) for dataset in self.datasets],
                "audits": self.audits,
                "ballots": [
                    {**_fields_of(ballot), "weight": codec.decimal(ballot.weight)} for ballot in self.ballots
                ],
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
        tree, scores = self.reward_tree, self.score_tree
        return Settlement(
            self.job, self.round, tree.root, tree.total_wei, evidence_cid, scores.root, scores.total
        )

    def check(
        self,
        settlement: Settlement,
        previous_leaves: Sequence[Leaf] | None = None,
        facts: RoundFacts | None = None,
    ) -> None:
        """Raises VerificationFailed with the first thing that does not follow.

        `previous_leaves` are those of the job's last settled round (empty before the first); None when they
        are not known, and then only the growth of cumulative rewards goes unchecked. `facts` are the chain's;
        None when they are not known yet.
        """
        why = next(self._mismatches(settlement, previous_leaves, facts), None)
        if why is not None:
            raise VerificationFailed(
                f"evidence of job {self.job} round {self.round} does not support its settlement", why=why
            )

    def _mismatches(
        self, settlement: Settlement, previous_leaves: Sequence[Leaf] | None, facts: RoundFacts | None
    ) -> Iterator[str]:
        if (self.job, self.round) != (settlement.job, settlement.round):
            yield "it is of another round"
        own = self.settlement(settlement.evidence)
        if own.root != settlement.root:
            yield f"its lines have the root 0x{own.root.hex()}"
        if own.total_wei != settlement.total_wei:
            yield f"its lines sum to {own.total_wei} wei"
        if (own.score_root, own.weights) != (settlement.score_root, settlement.weights):
            yield f"its scores have the root 0x{own.score_root.hex()} and weigh {own.weights:#x}"
        if facts is not None:
            yield from differences(self.facts, facts)
        yield from self._wrong_medians()
        yield from self._wrong_leaves(previous_leaves)

    def _wrong_medians(self) -> Iterator[str]:
        try:
            medians = self.facts.medians
        except VerificationFailed as bad:
            yield str(bad)
            return
        stated = [(str(entry.node), entry.score) for entry in self.entries]
        stated += [(f"asset {dataset.asset}", dataset.worth) for dataset in self.datasets]
        for (who, score), median in zip(stated, medians, strict=True):
            if score != median:
                yield f"the median score of {who} is {median}, not {score}"

    def _wrong_leaves(self, previous: Sequence[Leaf] | None) -> Iterator[str]:
        try:
            due = rewards.leaves(self.facts, previous or ())
        except ValueError as bad:
            yield str(bad)
            return
        for own, leaf in zip(self.leaves, due, strict=True):
            who = f"asset {own.asset}" if own.asset else own.account
            if (own.score, own.reward_wei) != (leaf.score, leaf.reward_wei):
                yield (
                    f"{who} is due {leaf.reward_wei} wei for a score of {leaf.score}, "
                    f"not {own.reward_wei} for {own.score}"
                )
            if own.cumulative_wei < own.reward_wei:
                yield f"{who} has less in all than in this round"
            if previous is not None and own.cumulative_wei != leaf.cumulative_wei:
                yield f"{who} has earned {leaf.cumulative_wei} wei in all, not {own.cumulative_wei}"


def differences(own: RoundFacts, chain: RoundFacts) -> Iterator[str]:
    """Where evidence speaks of something else than what the chain has."""
    for field in fields(RoundFacts):
        ours, theirs = getattr(own, field.name), getattr(chain, field.name)
        if ours == theirs:
            continue
        if not isinstance(ours, tuple):
            yield f"its {field.name} is {_shown(ours)}, the chain's {_shown(theirs)}"
            continue
        for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            if one != other:
                yield f"its {field.name}[{place}] is {_shown(one)}, the chain's {_shown(other)}"
        yield f"it has {len(ours)} {field.name}, the chain {len(theirs)}"


def _shown(value: object) -> str:
    """Short: a vector may be long."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes 0x{value[:8].hex()}…"
    if isinstance(value, (Piece, Ballot, Payee, Shares)):
        return ", ".join(f"{name} {_shown(own)}" for name, own in _fields_of(value).items())
    return str(value)


# -- form: types, ranges and order, the same for what we publish and what we read --------------------------
def _check_form(evidence: Evidence) -> None:
    if evidence.version != EVIDENCE_VERSION:
        raise ValueError(f"version {evidence.version!r:.40} is not {EVIDENCE_VERSION}")
    _in_range("job", evidence.job, _UINT64)
    _in_range("round", evidence.round, _UINT32)
    _check_shares(evidence.shares)
    if not 0 < len(evidence.method) <= _MAX_METHOD_CHARS:
        raise ValueError(f"method: from 1 to {_MAX_METHOD_CHARS} characters")
    for place, entry in enumerate(evidence.entries):
        if entry.index != place:
            raise ValueError(f"entries[{place}].index is {entry.index}")
        _check_eip55(entry.node)
        _in_range("samples", entry.samples, _UINT64)
        _in_range("score", entry.score, _INT64)
        if entry.accepted and entry.why:
            raise ValueError(f"entries[{place}] is accepted but has a reason of refusal")
    _check_distinct("entries", [entry.node for entry in evidence.entries])
    for dataset in evidence.datasets:
        _in_range("asset", dataset.asset, (1, _ASSET[1]))
        _in_range("worth", dataset.worth, _INT64)
    _check_distinct("datasets", [dataset.asset for dataset in evidence.datasets])
    _in_range("audits", evidence.audits, _UINT8)
    if len(evidence.ballots) > MAX_SEATS:
        raise ValueError(f"{len(evidence.ballots)} ballots, at most {MAX_SEATS} can be")
    for ballot in evidence.ballots:
        _check_eip55(ballot.evaluator)
        _in_range("weight", ballot.weight, _UINT96)
    _check_distinct("ballots", [ballot.evaluator for ballot in evidence.ballots])
    if not evidence.entries or not evidence.leaves:
        raise ValueError("a round that is settled has a contribution and a payee")
    for leaf in evidence.leaves:
        _check_eip55(leaf.account)
        _in_range("asset", leaf.asset, _ASSET)
        _in_range("score", leaf.score, _INT64)
        _in_range("reward_wei", leaf.reward_wei, _UINT128)
        _in_range("cumulative_wei", leaf.cumulative_wei, _UINT128)
        if (leaf.account == NOBODY) == (leaf.asset == 0):
            raise ValueError("a leaf is of an account or of an asset")
    _check_distinct("leaves", [(leaf.account, leaf.asset) for leaf in evidence.leaves])
    if sum(leaf.cumulative_wei for leaf in evidence.leaves) > _UINT128[1]:
        raise ValueError("the leaves' sum does not fit in 128 bits")


def _check_shares(shares: Shares) -> None:
    _in_range("round_budget_wei", shares.round_budget_wei, _UINT96)
    bps = (shares.data_bps, shares.model_bps, shares.algorithm_bps, shares.evaluator_bps)
    for name, value in zip(("data_bps", "model_bps", "algorithm_bps", "evaluator_bps"), bps, strict=True):
        _in_range(name, value, _BPS)
    _in_range("shares", sum(bps), _BPS)
    _in_range("model_asset", shares.model_asset, _ASSET)
    _in_range("algorithm_asset", shares.algorithm_asset, _ASSET)


def _check_distinct(what: str, names: Sequence[object]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"{what}: {twice} stands twice")


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
def _fields_of(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _leaf_to_map(leaf: Leaf) -> dict[str, Any]:
    return {
        **_fields_of(leaf),
        "reward_wei": codec.decimal(leaf.reward_wei),
        "cumulative_wei": codec.decimal(leaf.cumulative_wei),
    }


def _evidence_from_map(values: object) -> Evidence:
    table = _table("evidence", values, Evidence)
    validation = table["validation"]
    return Evidence(
        version=_typed("version", table["version"], int),
        job=JobId(_typed("job", table["job"], int)),
        round=_typed("round", table["round"], int),
        parent=_typed("parent", table["parent"], Cid),
        model=_typed("model", table["model"], Cid),
        validation=None if validation is None else _typed("validation", validation, Cid),
        method=_typed("method", table["method"], str),
        shares=_shares_from_map(table["shares"]),
        entries=tuple(map(_entry_from_map, _typed("entries", table["entries"], list))),
        datasets=tuple(map(_dataset_from_map, _typed("datasets", table["datasets"], list))),
        audits=_typed("audits", table["audits"], int),
        ballots=tuple(map(_ballot_from_map, _typed("ballots", table["ballots"], list))),
        leaves=tuple(map(_leaf_from_map, _typed("leaves", table["leaves"], list))),
    )


def _shares_from_map(values: object) -> Shares:
    table = _table("shares", values, Shares)
    budget_wei = codec.read_decimal(table.pop("round_budget_wei"))
    return Shares(budget_wei, **{name: _typed(name, value, int) for name, value in table.items()})


def _entry_from_map(values: object) -> EvidenceEntry:
    table = _table("entry", values, EvidenceEntry)
    why = _typed("why", table["why"], str)
    if len(why) > MAX_WHY_CHARS:
        raise ValueError(f"why: more than {MAX_WHY_CHARS} characters")
    return EvidenceEntry(
        node=Address(_typed("node", table["node"], str)),
        index=_typed("index", table["index"], int),
        cid=_typed("cid", table["cid"], Cid),
        samples=_typed("samples", table["samples"], int),
        score=_typed("score", table["score"], int),
        why=why,
    )


def _dataset_from_map(values: object) -> EvidenceDataset:
    table = _table("dataset", values, EvidenceDataset)
    return EvidenceDataset(**{name: _typed(name, value, int) for name, value in table.items()})


def _ballot_from_map(values: object) -> Ballot:
    table = _table("ballot", values, Ballot)
    vector = table["vector"]
    return Ballot(
        evaluator=Address(_typed("evaluator", table["evaluator"], str)),
        weight=codec.read_decimal(table["weight"]),
        vector=None if vector is None else _typed("vector", vector, bytes),
    )


def _leaf_from_map(values: object) -> Leaf:
    table = _table("leaf", values, Leaf)
    return Leaf(
        account=Address(_typed("account", table["account"], str)),
        asset=_typed("asset", table["asset"], int),
        score=_typed("score", table["score"], int),
        reward_wei=codec.read_decimal(table["reward_wei"]),
        cumulative_wei=codec.read_decimal(table["cumulative_wei"]),
    )


def _table(name: str, values: object, record: type[Any]) -> dict[str, object]:
    """A map with exactly the fields of a record."""
    table: dict[str, object] = _typed(name, values, dict)
    for field in sorted(table.keys() ^ {field.name for field in fields(record)}):
        raise ValueError(f"{name}: field `{field:.60}` is {'unknown' if field in table else 'missing'}")
    return dict(table)


def _typed(name: str, value: object, kind: type[T]) -> T:
    # type() and not isinstance(): True is an int, and no number is meant where it stands
    if type(value) is not kind:
        raise ValueError(f"{name} must be {kind.__name__}, not {type(value).__name__}")
    return value
