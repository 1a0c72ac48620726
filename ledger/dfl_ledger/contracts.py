"""The contracts' ABIs: calls to bytes, and results, events and custom errors back from bytes.

Built from the committed artefacts in `dfl_ledger/abi`, so that neither a compiler nor web3 is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from eth_abi.codec import ABICodec
from eth_abi.decoding import StringDecoder
from eth_abi.encoding import TextStringEncoder
from eth_abi.exceptions import DecodingError, EncodingError
from eth_abi.registry import BaseEquals, registry
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from dfl_ledger.records import Contribution
from dfl_ledger.words import WORD, word_decoder

# In the order of their deployment: each is given the addresses of those it works with, which follow from it.
CONTRACTS = ("VnxToken", "NodeRegistry", "AssetRegistry", "TrainingJobs", "ScoreBoard", "RewardDistributor")

# What solc itself reverts with.
_ERROR_STRING = keccak(text="Error(string)")[:4]
_PANIC = keccak(text="Panic(uint256)")[:4]


class _AnyString(StringDecoder):
    """Solidity does not check for UTF-8: nobody may stop our readers by registering other bytes."""

    def __init__(self) -> None:
        super().__init__(handle_string_errors="replace")  # type: ignore[no-untyped-call]


def _codec() -> ABICodec:
    lenient = registry.copy()  # type: ignore[no-untyped-call]
    lenient.unregister("string")
    is_string = BaseEquals("string")  # type: ignore[no-untyped-call]
    lenient.register(is_string, TextStringEncoder, _AnyString, label="string")
    return ABICodec(lenient)


_CODEC = _codec()


@dataclass(frozen=True, slots=True)
class Param:
    """One ABI parameter; `type` is the canonical form with tuples spelt out, `(uint64,bytes32)[]`."""

    name: str
    type: str
    components: tuple[Param, ...]
    indexed: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A function, an event or an error."""

    name: str
    inputs: tuple[Param, ...]
    outputs: tuple[Param, ...]

    @property
    def hash(self) -> bytes:
        """keccak256 of the canonical signature, 32 bytes."""
        return keccak(text=f"{self.name}({','.join(p.type for p in self.inputs)})")


@dataclass(frozen=True, slots=True)
class DecodedError:
    """A revert reason. An unknown selector gives `name="Unknown"` and the data's start."""

    name: str
    args: dict[str, object]


@dataclass(frozen=True)
class ContractAbi:
    """One contract's interface and creation code."""

    name: str
    functions: Mapping[str, Entry]
    events: Mapping[bytes, Entry]  # by topic
    errors: Mapping[bytes, Entry]  # by selector
    constructor: tuple[Param, ...]
    bytecode: bytes

    def encode(self, function: str, *args: object) -> bytes:
        """Call data. Raises ValueError when the arguments do not fit."""
        entry = self.functions[function]
        return entry.hash[:4] + _encode(entry.inputs, args)

    def encode_deploy(self, *args: object) -> bytes:
        """Creation code with its constructor's arguments."""
        return self.bytecode + _encode(self.constructor, args)

    def decode_result(self, function: str, data: bytes) -> list[Any]:
        """The function's return values. Raises ValueError when the bytes are something else."""
        return _decode(self.functions[function].outputs, data)

    def decode_event(self, topics: Sequence[bytes], data: bytes) -> tuple[str, dict[str, object]] | None:
        """Name and arguments, None for an event this contract does not declare. Raises ValueError."""
        if not topics or (entry := self.events.get(topics[0])) is None:
            return None
        indexed = [p for p in entry.inputs if p.indexed]
        if len(topics) != 1 + len(indexed):
            raise ValueError(f"event {entry.name} with {len(topics)} topics")
        plain = [p for p in entry.inputs if not p.indexed]
        values = dict(zip((p.name for p in plain), _decode(plain, data), strict=True))
        for param, topic in zip(indexed, topics[1:], strict=True):
            # A dynamic value is indexed by its hash only.
            dynamic = param.components or param.type in ("string", "bytes") or param.type.endswith("]")
            values[param.name] = "0x" + topic.hex() if dynamic else _decode([param], topic)[0]
        return entry.name, {p.name: values[p.name] for p in entry.inputs}


@cache
def load(name: str) -> ContractAbi:
    """The committed artefact of one of CONTRACTS."""
    text = resources.files("dfl_ledger").joinpath("abi", f"{name}.json").read_text(encoding="utf-8")
    artefact = json.loads(text)
    functions: dict[str, Entry] = {}
    events: dict[bytes, Entry] = {}
    errors: dict[bytes, Entry] = {}
    constructor: tuple[Param, ...] = ()
    for item in artefact["abi"]:
        inputs = _params(item.get("inputs", ()))
        match item["type"]:
            case "function":
                functions[item["name"]] = Entry(item["name"], inputs, _params(item["outputs"]))
            case "event":
                event = Entry(item["name"], inputs, ())
                events[event.hash] = event
            case "error":
                error = Entry(item["name"], inputs, ())
                errors[error.hash[:4]] = error
            case "constructor":
                constructor = inputs
            case _:
                continue
    return ContractAbi(
        name,
        MappingProxyType(functions),
        MappingProxyType(events),
        MappingProxyType(errors),
        constructor,
        bytes.fromhex(artefact["bytecode"].removeprefix("0x")),
    )


@cache
def error_table() -> Mapping[bytes, Entry]:
    """Every custom error of every contract of ours by selector: one contract's call may revert in another."""
    return MappingProxyType({selector: e for name in CONTRACTS for selector, e in load(name).errors.items()})


def decode_error(data: bytes) -> DecodedError:
    """The revert reason in returned data; never raises, for the data is the endpoint's."""
    selector, body = data[:4], data[4:]
    try:
        if selector == _ERROR_STRING:
            return DecodedError("Error", {"message": str(_CODEC.decode(["string"], body)[0])[:300]})
        if selector == _PANIC:
            return DecodedError("Panic", {"code": _CODEC.decode(["uint256"], body)[0]})
        if (entry := error_table().get(selector)) is not None:
            names = (p.name for p in entry.inputs)
            return DecodedError(entry.name, dict(zip(names, _decode(entry.inputs, body), strict=True)))
    except (ValueError, DecodingError):
        pass
    return DecodedError("Unknown", {"data": "0x" + data[:36].hex()})


def _params(items: Sequence[dict[str, Any]]) -> tuple[Param, ...]:
    params = []
    for index, item in enumerate(items):
        components = _params(item.get("components", ()))
        kind = item["type"]
        if components:
            kind = f"({','.join(c.type for c in components)}){kind.removeprefix('tuple')}"
        params.append(Param(item["name"] or str(index), kind, components, item.get("indexed", False)))
    return tuple(params)


def _encode(params: Sequence[Param], args: Sequence[object]) -> bytes:
    try:
        return _CODEC.encode([p.type for p in params], args)
    except (EncodingError, TypeError) as error:
        raise ValueError(f"arguments do not fit ({', '.join(p.type for p in params)}): {error}") from error


def _decode(params: Sequence[Param], data: bytes) -> list[Any]:
    decoders = [decoder for p in params if (decoder := word_decoder(p.type)) is not None]
    if len(decoders) == len(params):
        if len(data) < WORD * len(params):
            raise ValueError(f"{len(data)} bytes are not ({', '.join(p.type for p in params)})")
        return [decoder(data[WORD * at : WORD * (at + 1)]) for at, decoder in enumerate(decoders)]
    try:
        values = _CODEC.decode([p.type for p in params], data)
    except (DecodingError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"not ({', '.join(p.type for p in params)})") from error
    return [_plain(p.type, v) for p, v in zip(params, values, strict=True)]


def _plain(kind: str, value: object) -> Any:
    """As `Event.args` has it: bytes as 0x hex, addresses EIP-55, tuples and arrays as lists."""
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if kind == "address" and isinstance(value, str):
        return to_checksum_address(value)
    if isinstance(value, (tuple, list)):
        return [_plain(inner, v) for inner, v in zip(_inner(kind, len(value)), value, strict=True)]
    return value


def _inner(kind: str, count: int) -> list[str]:
    """The types inside a tuple or array type: `(a,(b,c))` gives a and (b,c), `t[]` gives t count times."""
    if kind.endswith("]"):
        return [kind[: kind.rindex("[")]] * count
    parts, depth, start = [], 0, 1
    for at, char in enumerate(kind):
        depth += (char == "(") - (char == ")")
        if (char == "," and depth == 1) or depth == 0:
            parts.append(kind[start:at])
            start = at + 1
    return parts


def commitment(contribution: Contribution, salt: bytes) -> bytes:
    """What binds a node to its contribution before it shows it: 32 bytes. `salt` has 32 bytes, and is secret
    until the reveal. Raises ValueError when a number does not fit its Solidity type."""
    c = contribution
    types = ["uint64", "uint32", "bytes32", "bytes32", "uint8", "uint64", "address", "bytes32"]
    if len(salt) != 32:
        raise ValueError(f"a salt has 32 bytes, not {len(salt)}")
    words = (c.job, c.round, c.parent.digest, c.cid.digest, int(c.kind), c.samples, c.node, salt)
    try:
        return keccak(_CODEC.encode(types, words))
    except EncodingError as error:
        raise ValueError(f"not a contribution: {error}") from error
