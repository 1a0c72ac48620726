"""The job spec's table of rewards: what a round pays, how that is parted, who judges it, and what they stake.

People write shares in percent and money in VNX, the network keeps basis points and wei; either way the same
checks hold, which are also those of the contract (contracts/libraries/Terms.sol).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dfl_ledger.errors import SpecInvalid
from dfl_ledger.records import Mode
from dfl_node import specrules
from dfl_node.specfields import Table, choice, cid, flag, percent, whole

FROM_APP = "app"  # `validation = "app"`: the application's own validation rows, published at submission
VALUATIONS = ("shapley", "leave-one-out", "hop-gain", "micro-batches")
WHOLE_BPS = 10_000
MAX_EVALUATORS = 16
MAX_AUDITS = 8
MIN_AUDIT_SCORE_S = 20
MAX_WINDOW_S = 30 * 24 * 3600 - 1
MAX_ASSET = 2**63 - 1  # the contract takes 64 bits, a CBOR integer of other programs perhaps 63

DEFAULT_EVALUATORS = 3
DEFAULT_EVALUATORS_BPS = 500
DEFAULT_SCORE_S = 60
MAX_PATH = 4096
_ANCHOR = re.compile(r"(?:[0-9a-f]{64})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class SharesSpec:
    """How a round's budget is parted, in basis points; compute gets what is left."""

    data_bps: int = 0
    model_bps: int = 0
    algorithm_bps: int = 0
    evaluators_bps: int = 0


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """What a round pays, for what, and who judges that."""

    round_budget_wei: int
    required_stake_wei: int
    valuation: str
    validation: str  # a CID, sealed: of the list of sealed shards; before submission FROM_APP or a path too
    evaluators: int  # seats a round; 0 = nobody judges, and all who contributed get the same
    score_s: int  # of each of the two phases in which evaluators bind themselves to scores, and show them
    bond_wei: int  # what an offence costs
    shares: SharesSpec
    model_asset: int = 0  # whose owner gets the model's share; 0 = none
    algorithm_asset: int = 0
    audits: int = 0  # contributions recomputed a round; 0 = a private job, whose rows nobody may open
    sealed: bool = False  # one validation shard a round, opened once its commitments are in
    seal_anchor: str = ""  # hex, 32 bytes: the hash of the first shard's key; set at submission

    @property
    def compute_bps(self) -> int:
        """What is left for those who train."""
        own = self.shares
        return WHOLE_BPS - own.data_bps - own.model_bps - own.algorithm_bps - own.evaluators_bps


def encode(reward: RewardSpec) -> dict[str, Any]:
    """Plain values for canonical DAG-CBOR, whose integers cannot hold wei."""
    values = dataclasses.asdict(reward)
    money = {name: str(value) for name, value in values.items() if name.endswith("_wei")}
    return {**values, **money}


def read(table: Table, mode: Mode, *, money: Callable[[str, Any], int], money_suffix: str) -> RewardSpec:
    """The checked table. Raises SpecInvalid with the field's name."""
    written = not money_suffix  # by a person, in percent and VNX
    budget_wei = table.take(f"round_budget{money_suffix}", money)
    if budget_wei == 0:
        raise SpecInvalid(f"reward.round_budget{money_suffix}", "must be above 0: work is paid")
    evaluators = table.take("evaluators", whole(0, MAX_EVALUATORS), DEFAULT_EVALUATORS)
    shares = _read_shares(table.optional("shares"), evaluators, written=written)
    least_wei = least_bond_wei(budget_wei, shares.evaluators_bps, evaluators)
    bond_wei = table.take(f"bond{money_suffix}", money) if f"bond{money_suffix}" in table else least_wei
    stake = f"required_stake{money_suffix}"
    reward = RewardSpec(
        round_budget_wei=budget_wei,
        required_stake_wei=table.take(stake, money) if stake in table else bond_wei,
        valuation=table.take("valuation", choice(*VALUATIONS), specrules.valuations(mode)[0]),
        validation=table.take("validation", _validation, FROM_APP),
        evaluators=evaluators,
        score_s=table.take("score_s", whole(1, MAX_WINDOW_S), DEFAULT_SCORE_S),
        bond_wei=bond_wei,
        shares=shares,
        model_asset=table.take("model_asset", whole(0, MAX_ASSET), 0),
        algorithm_asset=table.take("algorithm_asset", whole(0, MAX_ASSET), 0),
        audits=table.take("audits", whole(0, MAX_AUDITS), 0),
        sealed=table.take("sealed", flag, False),
        seal_anchor="" if written else table.take("seal_anchor", _anchor, ""),
    )
    table.end()
    _check(reward, mode, least_wei, money_suffix)
    return reward


def least_bond_wei(budget_wei: int, evaluators_bps: int, evaluators: int) -> int:
    """Twice what a seat earns in a round, rounded up: a bad score must cost more than it brings."""
    return -(-2 * budget_wei * evaluators_bps // (WHOLE_BPS * evaluators)) if evaluators else 0


def _read_shares(table: Table, evaluators: int, *, written: bool) -> SharesSpec:
    default_bps = DEFAULT_EVALUATORS_BPS if evaluators else 0

    def take(name: str, bps: int = 0) -> int:
        if written:
            return int(table.take(name, percent, bps / 100))
        return int(table.take(f"{name}_bps", whole(0, WHOLE_BPS), bps))

    shares = SharesSpec(
        data_bps=take("data"),
        model_bps=take("model"),
        algorithm_bps=take("algorithm"),
        evaluators_bps=take("evaluators", default_bps),
    )
    table.end()
    return shares


def _check(reward: RewardSpec, mode: Mode, least_bond: int, money_suffix: str) -> None:
    shares, written = reward.shares, not money_suffix
    if reward.compute_bps < 1:
        raise SpecInvalid("reward.shares", "leave nothing for those who train")
    if (shares.evaluators_bps > 0) != (reward.evaluators > 0):
        why = (
            f"must be {'above 0' if reward.evaluators else '0'} with reward.evaluators = {reward.evaluators}"
        )
        raise SpecInvalid("reward.shares.evaluators", why)
    for kind, bps, asset in (
        ("model", shares.model_bps, reward.model_asset),
        ("algorithm", shares.algorithm_bps, reward.algorithm_asset),
    ):
        if (bps > 0) != (asset > 0):
            why = f"and reward.shares.{kind} must be given together: an asset's owner is paid its share"
            raise SpecInvalid(f"reward.{kind}_asset", why)
    if reward.bond_wei < least_bond:
        why = f"is {reward.bond_wei} wei, below {least_bond}: twice what an evaluator earns in a round"
        raise SpecInvalid(f"reward.bond{money_suffix}", why)
    if reward.required_stake_wei < reward.bond_wei:
        why = (
            f"is {reward.required_stake_wei} wei, below reward.bond = {reward.bond_wei}: it could not be paid"
        )
        raise SpecInvalid(f"reward.required_stake{money_suffix}", why)
    if reward.audits and not reward.evaluators:
        raise SpecInvalid("reward.audits", "needs evaluators, who recompute what is audited")
    if reward.audits and mode not in (Mode.SYNC, Mode.ASYNC):
        raise SpecInvalid("reward.audits", f"recompute updates, of which mode {mode.name.lower()} has none")
    if reward.audits and reward.score_s < MIN_AUDIT_SCORE_S:
        why = f"is {reward.score_s}, below {MIN_AUDIT_SCORE_S}: half of it is there to open what is audited"
        raise SpecInvalid("reward.score_s", why)
    if reward.audits and not reward.bond_wei:
        raise SpecInvalid(f"reward.bond{money_suffix}", "is 0: a failed audit has to cost something")
    if reward.sealed and not reward.evaluators:
        raise SpecInvalid("reward.sealed", "needs evaluators, for whom the shards are opened")
    if reward.sealed and mode is Mode.CHAINED:
        why = "cannot be in mode chained, where each hop is measured before the next one begins"
        raise SpecInvalid("reward.sealed", why)
    if reward.sealed and mode is Mode.PIPELINE:
        why = "seals rows that work is scored on, and mode pipeline counts micro-batches"
        raise SpecInvalid("reward.sealed", why)
    if is_path(reward.validation) and not reward.sealed:
        why = "names a file of this machine, which only a sealed job reads: publish it, and give its CID"
        raise SpecInvalid("reward.validation", why)
    if reward.sealed and not reward.seal_anchor and not written:
        raise SpecInvalid("reward.seal_anchor", "is missing: nobody could ever unseal the rows")
    if reward.seal_anchor and not reward.sealed:
        raise SpecInvalid("reward.seal_anchor", "belongs to sealed validation rows")


def is_path(validation: str) -> bool:
    """Whether it names a file of the requester's machine."""
    return validation.startswith("/")


def _validation(field: str, value: Any) -> str:
    if isinstance(value, str) and is_path(value) and len(value) <= MAX_PATH:
        return value
    return FROM_APP if value == FROM_APP else str(cid(field, value))


def _anchor(field: str, value: Any) -> str:
    if not isinstance(value, str) or not _ANCHOR.fullmatch(value):
        raise SpecInvalid(field, "must be 64 hexadecimal digits")
    return value
