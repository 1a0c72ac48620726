"""The job spec: what a requester wants trained, how, and for how much.

People write TOML; the network keeps the same fields as canonical DAG-CBOR, named by a CID on chain. Both
go through one table of fields, so that what is refused locally is what peers refuse.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dfl_ledger import codec
from dfl_ledger.errors import SpecInvalid, UsageError, VerificationFailed
from dfl_ledger.records import Cid, JobTerms, Mode

SPEC_VERSION = 1
MAX_SPEC_BYTES = 64 * 1024
WEI = 10**18
MAX_ROUNDS = 10_000
MAX_NODES = 10_000
MAX_WINDOW_S = 30 * 24 * 3600 - 1
MAX_UPDATE_BYTES = 1 << 30
MAX_ARGS = 32  # of a model
MAX_ARG_CHARS = 256
MAX_WEI = 2**96 - 1  # of a round's budget: what fits its place on chain and in the evidence

MODES = {"sync": Mode.SYNC}
VALUATIONS = ("shapley", "leave-one-out")
FROM_APP = "app"  # `validation = "app"`: the application's own validation rows, published at submission

_VNX = re.compile(r"(\d{1,29})(?:\.(\d{1,18}))?", re.ASCII)
_WEI = re.compile(r"0|[1-9]\d{0,28}", re.ASCII)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    name: str
    args: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    rounds: int
    local_steps: int  # H
    batch_size: int
    lr: float
    momentum: float
    optimizer: str
    strategy: str
    seed: int
    max_update_bytes: int


@dataclass(frozen=True, slots=True)
class RoundSpec:
    """Who makes a round, and how long each phase may last (seconds)."""

    min_nodes: int
    quorum: int
    open_s: int
    commit_s: int
    reveal_s: int
    aggregate_s: int
    settle_s: int
    challenge_s: int


@dataclass(frozen=True, slots=True)
class RewardSpec:
    round_budget_wei: int
    required_stake_wei: int
    valuation: str
    validation: str  # a CID, or FROM_APP before submission


@dataclass(frozen=True, slots=True)
class JobSpec:
    name: str
    app: str
    mode: Mode
    model: ModelSpec
    training: TrainingSpec
    round: RoundSpec
    reward: RewardSpec

    @property
    def budget_wei(self) -> int:
        return self.reward.round_budget_wei * self.training.rounds

    @property
    def validation(self) -> Cid:
        """The validation file. Raises SpecInvalid before it has been published."""
        return _cid("reward.validation", self.reward.validation)

    def with_validation(self, cid: Cid) -> JobSpec:
        return dataclasses.replace(self, reward=dataclasses.replace(self.reward, validation=str(cid)))

    def encode(self) -> bytes:
        """Canonical bytes; the same spec always has the same CID."""
        self.validation  # noqa: B018  an unpublished validation set must not reach the network
        return codec.encode(
            {
                "version": SPEC_VERSION,
                "name": self.name,
                "app": self.app,
                "mode": self.mode.name.lower(),
                "model": dataclasses.asdict(self.model),
                "training": dataclasses.asdict(self.training),
                "round": dataclasses.asdict(self.round),
                "reward": {
                    **dataclasses.asdict(self.reward),
                    # beyond 64 bits, which DAG-CBOR integers cannot hold
                    "round_budget_wei": str(self.reward.round_budget_wei),
                    "required_stake_wei": str(self.reward.required_stake_wei),
                },
            }
        )

    def terms(self, spec: Cid, model: Cid) -> JobTerms:
        """What goes on chain."""
        return JobTerms(
            spec=spec,
            model=model,
            mode=self.mode,
            rounds=self.training.rounds,
            quorum=self.round.quorum,
            min_nodes=self.round.min_nodes,
            open_window_s=self.round.open_s,
            commit_window_s=self.round.commit_s,
            reveal_window_s=self.round.reveal_s,
            aggregate_window_s=self.round.aggregate_s,
            settle_window_s=self.round.settle_s,
            challenge_window_s=self.round.challenge_s,
            round_budget_wei=self.reward.round_budget_wei,
            required_stake_wei=self.reward.required_stake_wei,
        )


class _Table:
    """Reads one table of a spec and remembers what was asked for, so that the rest can be refused."""

    def __init__(self, values: Any, path: str) -> None:
        if not isinstance(values, Mapping):
            raise SpecInvalid(path, "must be a table")
        self._values = dict(values)
        self._path = path

    def field(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str, read: Callable[[str, Any], T], default: Any = ...) -> T:
        if name in self._values:
            return read(self.field(name), self._values.pop(name))
        if default is ...:
            raise SpecInvalid(self.field(name), "is missing")
        return read(self.field(name), default)

    def table(self, name: str) -> _Table:
        if name not in self._values:
            raise SpecInvalid(self.field(name), "is missing")
        return _Table(self._values.pop(name), self.field(name))

    def end(self) -> None:
        for name in self._values:
            raise SpecInvalid(self.field(str(name)[:80]), "is not a field of a job spec")


def _int(low: int, high: int) -> Callable[[str, Any], int]:
    def read(field: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise SpecInvalid(field, f"must be a whole number, not {_shown(value)}")
        if not low <= value <= high:
            raise SpecInvalid(field, f"must be from {low} to {high}, not {_shown(value)}")
        return value

    return read


def _float(low: float, high: float, *, above: bool = False) -> Callable[[str, Any], float]:
    def read(field: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpecInvalid(field, f"must be a number, not {_shown(value)}")
        if not low <= value <= high or (above and value == low):  # NaN is in no range
            edge = "above" if above else "from"
            raise SpecInvalid(field, f"must be {edge} {low} to {high}, not {_shown(value)}")
        return float(value)

    return read


def _choice(*choices: str) -> Callable[[str, Any], str]:
    def read(field: str, value: Any) -> str:
        if value not in choices:
            raise SpecInvalid(field, f"must be one of {', '.join(choices)}, not {_shown(value)}")
        return str(value)

    return read


def _name(field: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 64:
        raise SpecInvalid(field, "must be a text of 1 to 64 characters")
    if not all(c.isalnum() or c in "-_. " for c in value):
        raise SpecInvalid(field, "may hold letters, digits, space, dot, - and _ only")
    return value


def _cid(field: str, value: Any) -> Cid:
    if not isinstance(value, str):
        raise SpecInvalid(field, f"must be a CID, not {_shown(value)}")
    try:
        return Cid.parse(value)
    except ValueError as bad:
        raise SpecInvalid(field, f"must be a CID ({bad})") from bad


def _validation(field: str, value: Any) -> str:
    return FROM_APP if value == FROM_APP else str(_cid(field, value))


def _args(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or len(value) > MAX_ARGS:
        raise SpecInvalid(field, f"must be a table of at most {MAX_ARGS} entries")
    for key, item in value.items():
        if not 1 <= len(key) <= 64:
            raise SpecInvalid(f"{field}.{key[:80]}", "its name must have 1 to 64 characters")
        match item:
            case bool():
                fits = True
            case int():
                fits = -(2**63) <= item < 2**63
            case float():
                fits = math.isfinite(item)
            case str():
                fits = len(item) <= MAX_ARG_CHARS
            case _:
                fits = False
        if not fits:
            why = f"must be a finite number, a text of at most {MAX_ARG_CHARS} characters, true or false"
            raise SpecInvalid(f"{field}.{key}", f"{why}, not {_shown(item)}")
    return dict(value)


def _vnx(field: str, value: Any) -> int:
    """A VNX amount as a whole number or decimal text, in wei. Exact: money is never rounded."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SpecInvalid(field, 'must be an amount of VNX such as 10 or "0.5"')
    found = _VNX.fullmatch(_shown(value) if isinstance(value, int) else value)
    if found is None:
        raise SpecInvalid(field, f"must be VNX with at most 18 decimals, not {_shown(value)}")
    whole, decimals = found.groups(default="")
    return _in_wei(field, int(whole) * WEI + int(decimals.ljust(18, "0")))


def _wei(field: str, value: Any) -> int:
    if not isinstance(value, str) or not _WEI.fullmatch(value):
        raise SpecInvalid(field, f"must be wei as decimal text, not {_shown(value)}")
    return _in_wei(field, int(value))


def _in_wei(field: str, wei: int) -> int:
    if wei > MAX_WEI:
        raise SpecInvalid(field, f"must be at most {MAX_WEI} wei, not {wei}")
    return wei


def _shown(value: Any) -> str:
    """A value for a message, whatever it is and however long."""
    try:
        return f"{value!r:.40}"
    except (ValueError, RecursionError):
        return "a number of thousands of digits"


def parse(text: str) -> JobSpec:
    """A spec from the requester's TOML. Raises SpecInvalid with the field's name, UsageError for bad TOML."""
    try:
        if len(text.encode()) > MAX_SPEC_BYTES:
            raise UsageError("the job spec is too large", why=f"more than {MAX_SPEC_BYTES} bytes")
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as bad:  # not only TOMLDecodeError: numbers too long, tables too deep
        why = f"{bad}"[:200]
        raise UsageError("the job spec is not TOML", why=why, help_command="dfl-node job check FILE") from bad
    return _read(_Table(values, ""), money=_vnx, money_suffix="")


def decode(data: bytes) -> JobSpec:
    """A published spec. Raises SpecInvalid; hostile bytes are refused before they take memory."""
    try:
        values = codec.decode(data, max_bytes=MAX_SPEC_BYTES)
    except VerificationFailed as bad:  # of bytes that its CID names: final, so nobody waits for better ones
        raise SpecInvalid("(all)", bad.why) from bad
    table = _Table(values, "(all)" if not isinstance(values, dict) else "")
    table.take("version", _int(SPEC_VERSION, SPEC_VERSION))
    spec = _read(table, money=_wei, money_suffix="_wei")
    spec.validation  # noqa: B018  must be a CID by now
    return spec


def _read(top: _Table, *, money: Callable[[str, Any], int], money_suffix: str) -> JobSpec:
    name = top.take("name", _name)
    app = top.take("app", _name)
    mode = MODES[top.take("mode", _choice(*MODES), "sync")]

    table = top.table("model")
    model = ModelSpec(name=table.take("name", _name), args=table.take("args", _args, {}))
    table.end()

    table = top.table("training")
    training = TrainingSpec(
        rounds=table.take("rounds", _int(1, MAX_ROUNDS)),
        local_steps=table.take("local_steps", _int(1, 100_000)),
        batch_size=table.take("batch_size", _int(1, 65_536)),
        lr=table.take("lr", _float(0, 100, above=True)),
        momentum=table.take("momentum", _float(0, 0.9999), 0.9),
        optimizer=table.take("optimizer", _choice("sgd", "adamw"), "sgd"),
        strategy=table.take("strategy", _choice("fedavg"), "fedavg"),
        seed=table.take("seed", _int(0, 2**31 - 1), 1),
        max_update_bytes=table.take("max_update_bytes", _int(1, MAX_UPDATE_BYTES), 64 * 1024 * 1024),
    )
    table.end()

    table = top.table("round")
    window = _int(1, MAX_WINDOW_S)
    min_nodes = table.take("min_nodes", _int(1, MAX_NODES))
    round_ = RoundSpec(
        min_nodes=min_nodes,
        quorum=table.take("quorum", _int(1, MAX_NODES), max(1, min_nodes // 2 + 1)),
        open_s=table.take("open_s", window, 600),
        commit_s=table.take("commit_s", window, 120),
        reveal_s=table.take("reveal_s", window, 60),
        aggregate_s=table.take("aggregate_s", window, 120),
        settle_s=table.take("settle_s", _int(2, MAX_WINDOW_S), 3600),
        challenge_s=table.take("challenge_s", window, 600),
    )
    table.end()
    if round_.quorum > round_.min_nodes:
        raise SpecInvalid("round.quorum", f"is {round_.quorum}, above round.min_nodes = {round_.min_nodes}")

    table = top.table("reward")
    reward = RewardSpec(
        round_budget_wei=table.take(f"round_budget{money_suffix}", money),
        required_stake_wei=table.take(f"required_stake{money_suffix}", money, "0"),
        valuation=table.take("valuation", _choice(*VALUATIONS), "shapley"),
        validation=table.take("validation", _validation, FROM_APP),
    )
    table.end()
    if reward.round_budget_wei == 0:
        raise SpecInvalid(f"reward.round_budget{money_suffix}", "must be above 0: work is paid")
    top.end()
    return JobSpec(name, app, mode, model, training, round_, reward)
