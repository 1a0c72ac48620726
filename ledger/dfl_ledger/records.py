"""The nouns of the network, as frozen values. Money is integer wei, time is Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NewType

from dfl_ledger.cid import DAG_CBOR as DAG_CBOR
from dfl_ledger.cid import DAG_PB as DAG_PB
from dfl_ledger.cid import RAW as RAW
from dfl_ledger.cid import Cid as Cid

JobId = NewType("JobId", int)
Address = NewType("Address", str)  # EIP-55
TxHash = NewType("TxHash", str)  # 0x + 64 hex digits

NOBODY = Address("0x" + "0" * 40)  # where the contracts have no account, as beside an asset
REFUSED = -(2**63)  # the score of what is no valid piece
BANNED = 2**32 - 1  # the active round of a node that failed an audit


class Mode(IntEnum):
    """How the nodes share the work; the order is that of `enum Mode` in Types.sol."""

    SYNC = 0
    ASYNC = 1
    PIPELINE = 2
    CHAINED = 3


class Phase(IntEnum):
    """Where a job stands; the order is that of `enum Phase` in Types.sol."""

    NONE = 0
    OPEN = 1  # waits for nodes to join
    COMMIT = 2
    REVEAL = 3
    AGGREGATE = 4
    COMPLETED = 5
    FAILED = 6
    CANCELLED = 7

    @property
    def terminal(self) -> bool:
        return self >= Phase.COMPLETED


class Kind(IntEnum):
    """What a contribution is; the order is that of `enum Kind` in Types.sol."""

    UPDATE = 0  # data parallel: a pseudo-gradient
    HOP = 1  # chained: a whole model
    STAGE = 2  # model parallel: a stage's work
    FEED = 3  # model parallel: the record of who fed the stages


class AssetKind(IntEnum):
    """What an asset is; the order is that of `enum AssetKind` in Assets.sol."""

    DATASET = 0
    MODEL = 1
    ALGORITHM = 2
    APPLICATION = 3


class AssetUse(IntFlag):
    """What an asset's owner allows; the bits are those of AssetRegistry.sol."""

    TRAIN = 1
    EVALUATE = 2
    COMMERCIAL = 4
    DERIVE = 8


class PanelPhase(IntEnum):
    """Where a panel stands; the order is that of `enum PanelPhase` in Scores.sol."""

    NONE = 0
    COMMIT = 1
    REVEAL = 2
    DONE = 3


class Tree(IntEnum):
    """Which of a settlement's two trees; the order is that of `enum Tree` in Rewards.sol."""

    REWARD = 0
    SCORE = 1


class Fault(IntEnum):
    """Why a settlement was overturned; the order is that of `enum Fault` in Rewards.sol."""

    SCORE = 0
    REWARD = 1
    CUMULATIVE = 2
    TREE = 3
    WITHHELD = 4


@dataclass(frozen=True, slots=True)
class JobTerms:
    """What the requester promises on chain; mirrors `struct JobTerms`.

    Windows in seconds, money in wei, shares in basis points of a round's budget. By default nobody scores,
    and all contributions share equally.
    """

    spec: Cid
    model: Cid  # the parent of round 1
    mode: Mode
    rounds: int  # rounds to complete; a void round does not count
    quorum: int  # least contributions for a round to count
    min_nodes: int  # members that start the first round at once
    open_window_s: int
    commit_window_s: int
    reveal_window_s: int
    aggregate_window_s: int
    target: int  # commits that end COMMIT at once, and members stay members; 0 = the commits of all members
    settle_window_s: int
    challenge_window_s: int
    round_budget_wei: int
    required_stake_wei: int
    bond_wei: int = 0  # what one offence costs
    score_window_s: int = 1  # of each of the two phases of scoring
    evaluators: int = 0  # seats of a panel
    audits: int = 0  # contributions audited a round; 0 = a private job
    data_bps: int = 0
    model_bps: int = 0
    algorithm_bps: int = 0
    evaluator_bps: int = 0
    model_asset: int = 0
    algorithm_asset: int = 0
    seal_anchor: bytes = bytes(32)  # zero = validation rows are public, else keccak256 of the first key


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as the chain has it now; mirrors `struct JobState`."""

    job: JobId
    requester: Address
    terms: JobTerms
    phase: Phase
    round: int  # the current round's number; void rounds have numbers too
    completed: int  # rounds that ended with a model
    deadline: int  # Unix seconds: when `advance` may end the phase
    model: Cid  # the newest accepted model
    expected: int  # members expected in this round (in OPEN: joined so far)
    commits: int
    reveals: int
    draw: int  # in AGGREGATE: the index of the contribution whose node aggregates first
    spent_wei: int
    refunded_wei: int
    candidate: Cid | None = None  # chained: the newest hop's model, not yet accepted


@dataclass(frozen=True, slots=True)
class Lease:
    """Chained: whose hop is next, and until when it may come."""

    node: Address
    position: int  # in the lap's order, from 0
    until: int  # Unix seconds


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as the registry has it."""

    node: Address
    peer_key: bytes  # 32 bytes: the raw Ed25519 public key; libp2p's peer id follows from it
    stake_wei: int
    unbond_at: int  # Unix seconds when the stake may be withdrawn, 0 while bonded
    boot_addrs: tuple[str, ...]  # multiaddrs, empty unless a boot node


@dataclass(frozen=True, slots=True)
class Contribution:
    """One published piece of work, as it is committed and later revealed."""

    job: JobId
    round: int
    node: Address
    kind: Kind
    cid: Cid
    parent: Cid
    samples: int  # training samples processed


@dataclass(frozen=True, slots=True)
class Publication:
    """A round that ended with a model; mirrors `struct Publication`."""

    published_at: int  # Unix seconds
    round: int
    seal_block: int  # evaluators are drawn from it
    contributions: int
    publisher_index: int  # the publisher's place among the contributions
    payees: int  # that the job had by then


@dataclass(frozen=True, slots=True)
class Revealed:
    """What the chain knows of a revealed contribution."""

    index: int  # the order of reveal
    kind: Kind
    samples: int


@dataclass(frozen=True, slots=True)
class Payee:
    """Who or what earns in a job; mirrors `struct Payee`. `account` is NOBODY for an asset, whose owner is
    paid.
    """

    account: Address
    asset: int


@dataclass(frozen=True, slots=True)
class Asset:
    """A token of the asset registry. Who owns it when a reward is claimed is paid."""

    asset: int
    owner: Address
    kind: AssetKind
    revoked: bool
    price_bps: int  # the least share of a round's budget
    uses: AssetUse
    manifest: Cid
    licence: bytes  # 32 bytes: keccak256 of an SPDX identifier, or a CID's digest
    parents: tuple[int, ...]  # the assets it was derived from


@dataclass(frozen=True, slots=True)
class Interval:
    """An evaluator's part of the line that seats are drawn from: [start, start + weight)."""

    node: Address
    start: int
    weight: int  # wei at stake


@dataclass(frozen=True, slots=True)
class PanelState:
    """A panel as it stands; mirrors `struct PanelState`.

    Before the draw, datasets and seats are 0 and the seed is zero.
    """

    phase: PanelPhase
    seats: int
    committed: int
    revealed: int
    subjects: int  # scores of a vector
    contributions: int
    datasets: int
    audits: int
    commit_until: int  # Unix seconds
    reveal_until: int  # Unix seconds
    seed: bytes  # 32 bytes

    def audit_subject(self, audit: int) -> int:
        """Where the verdict of an audit stands in a vector of panel 0."""
        return self.contributions + self.datasets + audit

    @property
    def model_subject(self) -> int:
        """Where the verdict of the published model stands in a vector of panel 0."""
        return self.contributions + self.datasets + self.audits


@dataclass(frozen=True, slots=True)
class Seat:
    """A seat of a panel; mirrors `struct Seat`."""

    evaluator: Address
    weight: int
    root: bytes = bytes(32)  # the commitment, once revealed the root of the vector's tree


@dataclass(frozen=True, slots=True)
class Word:
    """Four scores of a seat's revealed vector, proven against its root; mirrors `struct Word`."""

    seat: int
    word: bytes  # 32 bytes
    proof: tuple[bytes, ...]  # bottom up, 32 bytes each


@dataclass(frozen=True, slots=True)
class Audit:
    """A failed audit; mirrors `struct Audit`."""

    node: Address
    appeal_until: int  # Unix seconds
    appealed: bool
    decided: bool


@dataclass(frozen=True, slots=True)
class Leaf:
    """One line of a settlement, at the place of its payee's number; mirrors `struct Leaf`.

    `reward_wei` is for this round, `cumulative_wei` for the whole job up to and including it: a claim pays
    the difference to what was claimed before, so that one claim pays any number of rounds.
    """

    account: Address  # NOBODY for an asset
    asset: int  # 0 = the account's own work, else an AssetRegistry token id
    score: int  # fixed point, 1e-9 of validation loss; may be negative
    reward_wei: int
    cumulative_wei: int


@dataclass(frozen=True, slots=True)
class ScoreLeaf:
    """What a contribution or a data set is worth, at its place among them; mirrors `struct ScoreLeaf`."""

    score: int  # fixed point, 1e-9 of validation loss, or REFUSED
    weight: int  # packed, see rewards.py


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a settler puts on chain: the roots of a round's two trees, and where the evidence lies."""

    job: JobId
    round: int
    root: bytes  # 32 bytes
    total_wei: int  # the reward tree's sum of cumulative_wei
    evidence: Cid  # file: DAG-CBOR with everything that the settlement follows from
    score_root: bytes = bytes(32)
    weights: int = 0  # the score tree's sum


@dataclass(frozen=True, slots=True)
class SettlementState:
    """A settlement as the chain keeps it; mirrors `struct Settlement`."""

    job: JobId
    round: int
    root: bytes  # 32 bytes
    digest: bytes  # 32 bytes: of the Opening
    total_wei: int
    claimable_at: int  # Unix seconds
    payees: int  # leaves of the reward tree
    previous_round: int  # the round settled before this one, 0 if none was
    epoch: int  # one more than the settlements of the job that had been overturned by then


@dataclass(frozen=True, slots=True)
class Opening:
    """What the chain keeps a hash of, and who challenges a settlement shows; mirrors `struct Opening`."""

    score_root: bytes  # 32 bytes
    weights: int
    settler: Address


@dataclass(frozen=True, slots=True)
class ProofStep:
    """One step from a node of a sum tree to its root: the sibling's hash and sum."""

    hash: bytes  # 32 bytes
    sum: int
    is_left: bool  # the sibling stands to the left


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A claim among many; mirrors `struct ClaimRequest`."""

    job: JobId
    round: int
    leaf: Leaf
    proof: tuple[ProofStep, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction."""

    tx: TxHash
    block: int
    gas_used: int


@dataclass(frozen=True, slots=True)
class BlockRef:
    """A block of the chain: its hash commits to everything before it."""

    number: int
    hash: str  # 0x hex
    timestamp: int  # Unix seconds


@dataclass(frozen=True, slots=True)
class Event:
    """One decoded contract event, in chain order. `args` holds ints, hex strings (0x…) and lists of them."""

    block: int
    block_hash: str
    log_index: int
    tx: TxHash
    contract: str
    name: str
    args: dict[str, object]
