"""Random audits with ban: which contributions are done again, what the comparison says, who is out. Pure.

An audit takes what a contributor committed to (its shard, when it joined; its update, in the round) and does
the work again: the same rows, parent, training, seed and number of steps give the same update. It proves that
the update is the work it claims to be. It proves nothing about the rows: labels turned round before they were
committed pass every audit, and are left to what an update is measured to be worth (`standing`).

In words: `drawn` says who is audited, the trainer's `recompute` does the work again, `objection` compares,
and `Bans` keeps the consequences. A ban takes the stake, so doubt speaks for the accused: an appeal goes to a
fresh jury, which must confirm the ban by more than half of the votes cast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite

from eth_hash.auto import keccak

from dfl_ledger.errors import SpecInvalid, UsageError, VerificationFailed
from dfl_ledger.records import Address
from dfl_node.train import strategies
from dfl_node.train.codec import check_weight
from dfl_node.train.trainer import AggregationConfig, ModelConfig, TrainingConfig

# Relative L2 distance from the recomputed update up to which a committed one passes. On one kind of machine
# with one thread the same work gives the same bits; another number of threads, or other kernels, add up in
# another order. TOLERANCE is above what was measured for that (docs/attacks.md), and far below what an attack
# needs: within it an update is the honest one plus a hundredth of its length.
TOLERANCE = 1e-2

_WORD_BYTES = 32


# -- who is audited -----------------------------------------------------------------------------------
def drawn(draw: int, n: int, k: int) -> tuple[int, ...]:
    """The places of k of n contributions, in the order drawn; all of them if there are no more.

    A Fisher-Yates shuffle that stops after k swaps. Swap i takes place i + keccak256(draw, i) mod (n - i),
    both as uint256: a contract draws the same with a few words of memory. `draw` is the chain's, of a block
    that did not exist when the contributions were committed.
    """
    if not 0 <= draw < 1 << 256 or n < 0 or k < 0:
        raise ValueError(f"cannot draw {k} of {n} by {draw}")
    moved: dict[int, int] = {}  # what stands at a place where another was swapped to
    chosen = []
    for i in range(min(n, k)):
        word = keccak(_word(draw) + _word(i))
        j = i + int.from_bytes(word, "big") % (n - i)
        chosen.append(moved.get(j, j))
        moved[j] = moved.get(i, i)
    return tuple(chosen)


def audited(draw: int, n: int, k: int, copies: Iterable[Sequence[int]] = ()) -> tuple[int, ...]:
    """The places that are audited, in rising order: k drawn ones, and beside them everybody in a group of
    near-duplicates. A node's seed is its own (`job_seed`), so of two who send the same update one at least
    cannot have made it, and doing it again says who."""
    suspects = {place for group in copies for place in group if len(group) > 1}
    return tuple(sorted({*drawn(draw, n, k), *suspects}))


def jury(
    draw: int, candidates: Iterable[Address], size: int, barred: Iterable[Address]
) -> tuple[Address, ...]:
    """Who judges an appeal: drawn from all candidates but those barred, the accused and its first judges."""
    fresh = sorted(set(candidates) - set(barred))
    return tuple(fresh[place] for place in drawn(draw, len(fresh), size))


# -- what can be audited ------------------------------------------------------------------------------
def check_recomputable(model: ModelConfig, rule: AggregationConfig) -> None:
    """Raises SpecInvalid, with the field's name, for a job whose updates nobody else can do again."""
    if model.personal:
        why = "stays on its node, so that nobody else can do its work again: not in an audited job"
        raise SpecInvalid("model.personal", why)
    if strategies.find(rule.strategy).control:
        why = f"{rule.strategy} keeps a state of all earlier rounds on each node: not in an audited job"
        raise SpecInvalid("training.strategy", why)


def steps_of(samples: int, training: TrainingConfig) -> int:
    """How many local steps an update of so many samples took: all that an audit has to know of a time
    budget. Raises VerificationFailed for a number that no training can give."""
    check_weight(samples)
    steps, rest = divmod(samples, training.batch_size)
    if rest or not 1 <= steps <= training.local_steps:
        most = training.local_steps * training.batch_size
        raise VerificationFailed(
            "the update cannot be what it claims",
            why=f"{samples} samples are not whole batches of {training.batch_size}, at most {most} in all",
        )
    return steps


# -- what it found ------------------------------------------------------------------------------------
def objection(distance: float, tolerance: float = TOLERANCE) -> str:
    """Why an update at this relative distance from the recomputed one fails, "" if it passes."""
    if isfinite(distance) and 0 <= distance <= tolerance:
        return ""
    return f"it is {distance:.3g} of its length from what its shard and seed give, beyond {tolerance:g}"


@dataclass(frozen=True, slots=True)
class Ban:
    round: int
    why: str
    judges: tuple[Address, ...]  # who found it
    appealed: bool = False  # and confirmed: there is one appeal


@dataclass(frozen=True, slots=True)
class Bans:
    """Who is out of a job, and who was accused wrongly. Methods return what follows; nothing changes in
    place. They raise UsageError for what cannot be."""

    banned: Mapping[Address, Ban] = field(default_factory=dict)
    overturned: Mapping[Address, tuple[Ban, ...]] = field(default_factory=dict)  # by whom they accused

    def __contains__(self, node: object) -> bool:
        return node in self.banned

    def failed(self, node: Address, round_: int, why: str, judges: Sequence[Address] = ()) -> Bans:
        """An audit failed. Of several in flight the first counts."""
        if node in self.banned:
            return self
        if node in judges:
            raise UsageError(f"{node} cannot judge itself", why=f"its update of round {round_} is audited")
        return replace(self, banned={**self.banned, node: Ban(round_, why, tuple(judges))})

    def appealed(self, node: Address, votes: Mapping[Address, bool]) -> Bans:
        """A fresh jury did the work again; a vote of True says that the update fails. More than half of the
        votes cast confirm the ban, a tie or silence overturns it."""
        ban = self.banned.get(node)
        if ban is None:
            raise UsageError(f"{node} is not banned", why="there is nothing to appeal against")
        if ban.appealed:
            raise UsageError(f"{node} has appealed", why=f"a jury confirmed its ban of round {ban.round}")
        if stale := sorted({node, *ban.judges} & set(votes)):
            raise UsageError(f"{stale[0]} is no fresh juror", why=f"it is a party to the ban of {node}")
        if 2 * sum(votes.values()) > len(votes):
            return replace(self, banned={**self.banned, node: replace(ban, appealed=True)})
        left = {other: own for other, own in self.banned.items() if other != node}
        cleared = (*self.overturned.get(node, ()), ban)
        return Bans(left, {**self.overturned, node: cleared})


# -- what follows -------------------------------------------------------------------------------------
def hostile_left(f: int, out: int) -> int:
    """How many of a round's updates may still be hostile when `out` members of at most `f` attackers are
    banned or left out: what a robust aggregator need bear. Bearing more than there are costs accuracy where
    members' data differ, and beyond half of the updates the aggregators fall back to the median."""
    return max(0, f - out)


def deterring_stake_wei(members: int, audits: int, reward_wei: int) -> int:
    """The stake from which inventing updates loses money: with `audits` of `members` contributions drawn in a
    round, a cheat is found after members / audits rounds on the average, each worth `reward_wei` until then.
    """
    if members < 1 or audits < 1 or reward_wei < 0:
        raise ValueError(f"{audits} audits of {members} members for {reward_wei} wei")
    return -(-members * reward_wei // audits)  # rounded up


def _word(number: int) -> bytes:
    return number.to_bytes(_WORD_BYTES, "big")
