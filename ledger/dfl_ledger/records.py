"""The nouns of the network, as frozen values. Money is integer wei, time is Unix seconds."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

JobId = NewType("JobId", int)
Address = NewType("Address", str)  # EIP-55
TxHash = NewType("TxHash", str)  # 0x + 64 hex digits

RAW = 0x55
DAG_PB = 0x70
DAG_CBOR = 0x71
_SHA2_256 = 0x12
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True, order=True, slots=True)
class Cid:
    """A CIDv1 over SHA2-256 (https://github.com/multiformats/cid).

    A version 0 CID (`Qm…`) is read as the version 1 CID of the same DAG-PB block.
    """

    codec: int  # RAW, DAG_PB or DAG_CBOR: each a single varint byte
    digest: bytes  # 32 bytes

    def __post_init__(self) -> None:
        if self.codec not in (RAW, DAG_PB, DAG_CBOR):
            raise ValueError(f"codec {self.codec:#x} is not one of raw, dag-pb, dag-cbor")
        if len(self.digest) != 32:
            raise ValueError(f"a SHA2-256 digest has 32 bytes, not {len(self.digest)}")

    @classmethod
    def of(cls, block: bytes, codec: int = RAW) -> Cid:
        """The CID of one block."""
        return cls(codec, hashlib.sha256(block).digest())

    @classmethod
    def parse(cls, text: str) -> Cid:
        """From `b…` (base32, version 1) or `Qm…` (base58, version 0). Raises ValueError."""
        if len(text) > 100:
            raise ValueError("not a CID: longer than 100 characters")
        if text.startswith("Qm") and len(text) == 46:
            number = 0
            for char in text:
                number = number * 58 + _BASE58.index(char)
            raw = number.to_bytes(34, "big")
            if raw[:2] != bytes((_SHA2_256, 32)):
                raise ValueError(f"not a SHA2-256 CID: {text!r}")
            return cls(DAG_PB, raw[2:])
        if not text.startswith("b"):
            raise ValueError(f"not a CIDv1 in base32 nor a CIDv0: {text!r}")
        body = text[1:].upper()
        try:
            raw = base64.b32decode(body + "=" * (-len(body) % 8))
        except ValueError as bad:
            raise ValueError(f"not base32: {text!r}") from bad
        cid = cls.from_bytes(raw)
        if str(cid) != text:
            raise ValueError(f"not canonical base32: {text!r}")
        return cid

    @classmethod
    def from_bytes(cls, raw: bytes) -> Cid:
        """From the binary form. Raises ValueError."""
        if len(raw) == 34 and raw[:2] == bytes((_SHA2_256, 32)):
            return cls(DAG_PB, raw[2:])
        if len(raw) != 36 or raw[0] != 1 or raw[2:4] != bytes((_SHA2_256, 32)):
            raise ValueError(f"not a CIDv1 over SHA2-256: {raw[:8].hex()}…")
        return cls(raw[1], raw[4:])

    def __bytes__(self) -> bytes:
        return bytes((1, self.codec, _SHA2_256, 32)) + self.digest

    def __str__(self) -> str:
        return "b" + base64.b32encode(bytes(self)).decode().rstrip("=").lower()

    @classmethod
    def from_digest(cls, digest: bytes) -> Cid:
        """From a digest as the chain keeps it.

        Every file the chain refers to is a UnixFS file with a DAG-PB root, so 32 bytes are the whole CID.
        """
        return cls(DAG_PB, digest)


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


@dataclass(frozen=True, slots=True)
class JobTerms:
    """What the requester promises on chain; mirrors `struct JobTerms`. Windows in seconds, money in wei."""

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
class Leaf:
    """One line of a settlement; mirrors `struct Leaf`.

    `reward_wei` is for this round, `cumulative_wei` for the whole job up to and including it: a claim pays
    the difference to what was claimed before, so that one claim pays any number of rounds.
    """

    account: Address
    asset: int  # 0 = the account's own work, else an AssetRegistry token id
    score: int  # fixed point, 1e-9 of validation loss; may be negative
    reward_wei: int
    cumulative_wei: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one round paid: the root of the Merkle-sum tree over `Leaf`, and where the evidence lies."""

    job: JobId
    round: int
    root: bytes  # 32 bytes
    total_wei: int  # the tree's sum of cumulative_wei
    evidence: Cid  # file: DAG-CBOR with every leaf, score and refusal of the round


@dataclass(frozen=True, slots=True)
class ProofStep:
    """One step from a leaf to the root: the sibling's hash and sum."""

    hash: bytes  # 32 bytes
    sum_wei: int
    is_left: bool  # the sibling stands to the left


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
