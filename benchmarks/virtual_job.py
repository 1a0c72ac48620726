"""One job under attack: the node's own check, aggregators, scoring, standing, audits and split of rewards.

Members 0 to h - 1 are honest and share all training rows; each attacker commits a copy of one of their
shards, so that what is measured is what an attack destroys, and not what rows that nobody has would give.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain
from statistics import fmean

import adversaries
import numpy as np
import torch
import virtual_members as members
from torch import Tensor

from dfl_ledger import rewards
from dfl_ledger.errors import UpdateRefused
from dfl_ledger.records import REFUSED, Address
from dfl_node.train import aggregation, tensors
from dfl_node.train.codec import MAX_DELTA
from dfl_node.train.evaluation import Inputs
from dfl_node.train.trainer import AggregationConfig
from dfl_node.value import audit, shapley, standing, vesting

MEMBERS, ROUNDS = 20, 40
LAST = 5  # models whose mean accuracy counts: a single one is a point off as easily as not
AUDITS = 2  # of a round's contributions
ORDERS = 6  # in which contributors are added up, to estimate their worths
SHARDS = 5  # of the validation rows; a round is scored on one
ROUND_BUDGET_WEI = 100 * 10**18
NEAR = 1e-3  # of an update's length: two honest nodes never come so close


@dataclass(frozen=True)
class Setting:
    attack: str  # of adversaries.ATTACKS
    attackers: int
    aggregator: str  # "mean" | "trimmed-mean"
    mixing: bool
    audits: bool  # with what belongs to them: bans, standing, copies
    alpha: float | None  # of Dirichlet; None = IID
    seed: int


@dataclass(frozen=True)
class Outcome:
    accuracy: float  # on the hold-out rows, mean over the last models
    banned: int  # attackers
    false_bans: int
    last_ban: int  # round, from 1; 0 = none
    honest_audits: int
    furthest: float  # relative distance of an honest update from its audit
    honest_left_out: float  # members in a round, on the average
    honest_void: float  # share of honest members' rewards that they lost by being left out
    gross: float  # what an attacker's updates were worth, in an honest member's pay
    net: float  # what of it was ever paid


class Job:
    """A run, round by round."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.honest = MEMBERS - setting.attackers
        self.attack = adversaries.ATTACKS[setting.attack]
        self.shards = _shards(setting)
        self.model = members.first(setting.seed)
        self.bans = audit.Bans()
        self.worths: dict[int, list[int]] = {member: [] for member in range(MEMBERS)}
        self.pay = [vesting.Account() for _ in range(MEMBERS)]
        self.gross_wei = [0] * MEMBERS
        self.noise = np.random.RandomState(setting.seed)
        self.blocks = random.Random(setting.seed)  # noqa: S311  blocks of a make-believe chain
        self.accuracies: list[float] = []
        self.honest_audits, self.furthest, self.left_out_honest = 0, 0.0, 0

    def run(self, rounds: int = ROUNDS) -> Outcome:
        for round_ in range(1, rounds + 1):
            self._round(round_)
            if round_ > rounds - LAST:
                self.accuracies.append(members.accuracy(self.model, members.digits().holdout))
        caught = [ban for node, ban in self.bans.banned.items() if _member(node) >= self.honest]
        self._end()
        paid = [account.payable_wei for account in self.pay]
        per_attacker = max(1, sum(paid[: self.honest])) / self.honest * max(1, self.setting.attackers)
        return Outcome(
            accuracy=fmean(self.accuracies),
            banned=len(caught),
            false_bans=len(self.bans.banned) - len(caught),
            last_ban=max((ban.round for ban in caught), default=0),
            honest_audits=self.honest_audits,
            furthest=self.furthest,
            honest_left_out=self.left_out_honest / rounds,
            honest_void=sum(a.void_wei for a in self.pay[: self.honest])
            / max(1, sum(self.gross_wei[: self.honest])),
            gross=sum(self.gross_wei[self.honest :]) / per_attacker,
            net=sum(paid[self.honest :]) / per_attacker,
        )

    def _end(self) -> None:
        """The audits at the end of the job. Attackers did every round as they did those that were audited."""
        lying = self.setting.attack != adversaries.LABEL_FLIP
        for member, account in enumerate(self.pay):
            fails = member >= self.honest and lying
            self.pay[member] = account.forfeited() if fails else account.ended(self.worths[member])

    def _round(self, round_: int) -> None:
        live = [member for member in range(MEMBERS) if _account(member) not in self.bans]
        sent = self._sent(round_, live)
        # The check before every aggregator: what it refuses is not there.
        there = [member for member in live if not _refused(sent[member])]
        out = standing.left_out({m: self.worths[m] for m in there}) if self.setting.audits else frozenset()
        self.left_out_honest += sum(member < self.honest for member in out)
        kept = [member for member in there if member not in out]
        copies = self._copies(sent, kept) if self.setting.audits else []
        for group in copies:  # near-duplicates count as one, the first revealed
            kept = [member for member in kept if member not in group[1:]]
        if not kept:
            return
        before, self.model = self.model, self._next(sent, kept, len(out))
        if not self.setting.audits:
            return
        scores = self._scores(round_, before, sent, there)
        for member in there:
            self.worths[member].append(scores[member])
            if member in out:
                self.pay[member] = self.pay[member].forfeited()
        weights = [rewards.contribution_weight(scores[m] if m in kept else REFUSED) for m in there]
        for member, weight in zip(there, weights, strict=True):
            reward_wei = rewards.of_contribution(ROUND_BUDGET_WEI, weight, sum(weights))
            self.pay[member] = self.pay[member].earned(round_, reward_wei)
            self.gross_wei[member] += reward_wei
        self._audit(round_, before, sent, there, copies)

    def _sent(self, round_: int, live: Sequence[int]) -> dict[int, Tensor]:
        """Every member's update, by member."""
        found = members.work(self.model, self.shards, self.setting.seed, round_)
        hostile = [member for member in live if member >= self.honest]
        if hostile:
            found[hostile] = self.attack(found[: self.honest], found[hostile], self.noise)
        return {member: found[member] for member in live}

    def _next(self, sent: Mapping[int, Tensor], kept: Sequence[int], left_out: int) -> Tensor:
        """The next model; the parent again if it would not be finite, which nobody can publish."""
        own = self.setting
        f = audit.hostile_left(own.attackers, len(self.bans.banned) + left_out)
        args = {} if own.aggregator == "mean" else {"f": f, "mixing": int(own.mixing)}
        rule = AggregationConfig("fedavg", {}, own.aggregator, args)
        updates = [({"model": sent[member].numpy()}, 1.0) for member in kept]
        after = torch.from_numpy(aggregation.next_file({"model": self.model.numpy()}, updates, rule)["model"])
        return after if bool(after.isfinite().all()) else self.model

    def _scores(
        self, round_: int, parent: Tensor, sent: Mapping[int, Tensor], scored: Sequence[int]
    ) -> dict[int, int]:
        """Each one's worth in 1e-9 of loss: Shapley values, estimated as GTG-Shapley does, all coalitions at
        once. Places 1, 2 and n are measured behind everybody, those between in ORDERS drawn orders."""
        n = len(scored)
        pairs = [1 << i | 1 << j for i in range(n) for j in range(i)]
        orders = [self.noise.permutation(n).tolist() for _ in range(ORDERS)]
        grown = [list(accumulate((1 << i for i in order), int.__or__)) for order in orders]
        everyone = (1 << n) - 1
        masks = list(dict.fromkeys([*(1 << i for i in range(n)), *pairs, *chain.from_iterable(grown)]))
        masks += [mask for i in range(n) if (mask := everyone & ~(1 << i)) not in set(masks)]
        chosen = torch.tensor([[float(mask >> i & 1) for i in range(n)] for mask in masks])  # (coalitions, n)
        steps = chosen @ torch.stack([sent[m] for m in scored]) / chosen.sum(1, keepdim=True)
        states = parent - torch.cat([torch.zeros_like(steps[:1]), steps])
        before, *after = map(shapley.fixed, members.losses(states, _shard(round_)))
        v = {0: 0} | {mask: before - loss for mask, loss in zip(masks, after, strict=True)}
        between: list[list[int]] = [[] for _ in range(n)]
        for order, so_far in zip(orders, grown, strict=True):
            for place in range(2, n - 1):
                between[order[place]].append(v[so_far[place]] - v[so_far[place - 1]])

        def worth(i: int) -> int:
            first, last = v[1 << i], v[everyone] - v[everyone & ~(1 << i)]
            second = sum(v[1 << i | 1 << j] - v[1 << j] for j in range(n) if j != i) / (n - 1)
            return round((first + second + last + (n - 3) * fmean(between[i] or [0])) / n)

        return {member: worth(i) for i, member in enumerate(scored)}

    def _copies(self, sent: Mapping[int, Tensor], kept: Sequence[int]) -> list[list[int]]:
        """Groups of members whose updates are the same, or nearly."""
        vectors = torch.stack([sent[member] for member in kept]).double()
        apart, length = torch.cdist(vectors, vectors), vectors.norm(dim=1)
        groups: list[list[int]] = []
        taken: set[int] = set()
        for i, member in enumerate(kept):
            near = [j for j in range(i + 1, len(kept)) if apart[i, j] <= NEAR * length[i] and j not in taken]
            if near and i not in taken:
                taken.update(near)
                groups.append([member, *(kept[j] for j in near)])
        return groups

    def _audit(
        self,
        round_: int,
        parent: Tensor,
        sent: Mapping[int, Tensor],
        there: list[int],
        copies: list[list[int]],
    ) -> None:
        """Bans count from the next round on: an audit takes longer than an aggregation."""
        groups = [[there.index(member) for member in group] for group in copies]
        for place in audit.audited(self.blocks.getrandbits(256), len(there), AUDITS, groups):
            member = there[place]
            shard, job = self.shards[member], self.setting.seed
            found = members.done_again(parent, shard, job, round_, member)
            distance = float((sent[member] - found).norm() / found.norm())
            if member < self.honest:
                self.honest_audits += 1
                self.furthest = max(self.furthest, distance)
            if why := audit.objection(distance):
                self.bans = self.bans.failed(_account(member), round_, why)
                self.pay[member] = self.pay[member].forfeited()
            else:
                self.pay[member] = self.pay[member].passed(round_, self.worths[member])


@lru_cache
def _shard(round_: int) -> Inputs:
    """The validation rows that a round is scored on."""
    rows = members.digits().validation
    return Inputs(rows.x[round_ % SHARDS :: SHARDS], rows.y[round_ % SHARDS :: SHARDS])


def _shards(setting: Setting) -> list[Inputs]:
    """One a member; an attacker's is the copy of an honest one, with its labels turned round to flip them."""
    honest, everything = MEMBERS - setting.attackers, members.digits().train
    parts = members.split(honest, setting.alpha, setting.seed)
    own = [Inputs(everything.x[part], everything.y[part]) for part in parts]
    copied = [own[i % honest] for i in range(setting.attackers)]
    if setting.attack == adversaries.LABEL_FLIP:
        copied = [Inputs(rows.x, members.CLASSES - 1 - rows.y) for rows in copied]
    return own + copied


def _refused(update: Tensor) -> bool:
    try:
        tensors.check_numbers("model", update.numpy(), MAX_DELTA)
    except UpdateRefused:
        return True
    return False


def _account(member: int) -> Address:
    return Address(f"0x{member:040x}")


def _member(account: Address) -> int:
    return int(account, 16)
