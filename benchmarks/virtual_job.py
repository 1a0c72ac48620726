"""One job under attack: the node's own check, aggregators, scoring, standing, audits and split of rewards.

Members 0 to h - 1 are honest and share all training rows; each attacker commits a copy of one of their
shards, so that what is measured is what an attack destroys, and not what rows that nobody has would give.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import adversaries
import numpy as np
import torch
import virtual_members as members
from torch import Tensor

from dfl_ledger.errors import UpdateRefused
from dfl_ledger.evidence import EvidenceEntry, split
from dfl_ledger.records import Address, Cid, Leaf
from dfl_node.train import aggregation, tensors
from dfl_node.train.codec import MAX_DELTA
from dfl_node.train.evaluation import Inputs
from dfl_node.train.trainer import AggregationConfig
from dfl_node.value import audit, shapley, standing

MEMBERS, ROUNDS = 20, 60
LAST = 5  # models whose mean accuracy counts: a single one is a point off as easily as not
AUDITS = 1  # of a round's contributions
ROUND_BUDGET_WEI = 100 * 10**18
NEAR = 1e-3  # of an update's length: two honest nodes never come so close
NOBODY = Cid.parse("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")


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
    gross: float  # what an attacker was paid, in an honest member's pay
    net: float  # the same, less the stakes that bans took


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
        self.leaves: tuple[Leaf, ...] = ()
        self.noise = np.random.RandomState(setting.seed)
        self.chain = random.Random(setting.seed)  # noqa: S311  blocks of a make-believe chain
        self.accuracies: list[float] = []
        self.honest_audits, self.furthest, self.left_out_honest = 0, 0.0, 0

    def run(self, rounds: int = ROUNDS) -> Outcome:
        for round_ in range(1, rounds + 1):
            self._round(round_)
            if round_ > rounds - LAST:
                self.accuracies.append(members.accuracy(self.model, members.digits().holdout))
        earned = [0] * MEMBERS
        for leaf in self.leaves:
            earned[_member(leaf.account)] = leaf.cumulative_wei
        stake_wei = audit.deterring_stake_wei(MEMBERS, AUDITS, ROUND_BUDGET_WEI // MEMBERS)
        caught = [ban for node, ban in self.bans.banned.items() if _member(node) >= self.honest]
        honest_pay = max(1, sum(earned[: self.honest])) / self.honest
        attackers_pay = sum(earned[self.honest :])
        per_attacker = honest_pay * max(1, self.setting.attackers)
        return Outcome(
            accuracy=fmean(self.accuracies),
            banned=len(caught),
            false_bans=len(self.bans.banned) - len(caught),
            last_ban=max((ban.round for ban in caught), default=0),
            honest_audits=self.honest_audits,
            furthest=self.furthest,
            honest_left_out=self.left_out_honest / rounds,
            gross=attackers_pay / per_attacker,
            net=(attackers_pay - stake_wei * len(caught)) / per_attacker,
        )

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
        before, self.model = self.model, self._next(sent, kept)
        scores = self._scores(before, sent, kept, [member for member in there if member not in kept])
        for member in there:
            self.worths[member].append(scores[member])
        entries = [
            EvidenceEntry(_account(m), place, NOBODY, 1, m in kept, "", scores[m] if m in kept else 0)
            for place, m in enumerate(there)
        ]
        self.leaves = split(ROUND_BUDGET_WEI, entries, self.leaves)
        if self.setting.audits:
            self._audit(round_, before, sent, there, copies)

    def _sent(self, round_: int, live: Sequence[int]) -> dict[int, Tensor]:
        """Every member's update, by member."""
        found = members.work(self.model, self.shards, self.setting.seed, round_)
        hostile = [member for member in live if member >= self.honest]
        if hostile:
            found[hostile] = self.attack(found[: self.honest], found[hostile], self.noise)
        return {member: found[member] for member in live}

    def _next(self, sent: Mapping[int, Tensor], kept: Sequence[int]) -> Tensor:
        """The next model; the parent again if it would not be finite, which nobody can publish."""
        own = self.setting
        f = audit.hostile_left(own.attackers, len(self.bans.banned))
        args = {} if own.aggregator == "mean" else {"f": f, "mixing": int(own.mixing)}
        rule = AggregationConfig("fedavg", {}, own.aggregator, args)
        updates = [({"model": sent[member].numpy()}, 1.0) for member in kept]
        after = torch.from_numpy(aggregation.next_file({"model": self.model.numpy()}, updates, rule)["model"])
        return after if bool(after.isfinite().all()) else self.model

    def _scores(
        self, parent: Tensor, sent: Mapping[int, Tensor], kept: Sequence[int], aside: Sequence[int]
    ) -> dict[int, int]:
        """Each one's worth: leave-one-out for whose update is in the model, for the others what adding it
        would have changed."""
        n = len(kept)
        masks = shapley.coalitions(n, shapley.LEAVE_ONE_OUT)
        chosen = torch.tensor([[float(mask >> i & 1) for i in range(n)] for mask in masks])  # (coalitions, n)
        ours = torch.stack([sent[member] for member in kept])  # (n, SIZE)
        steps = chosen @ ours / chosen.sum(1, keepdim=True)
        added = [(ours.sum(0) + sent[member]) / (n + 1) for member in aside]
        states = parent - torch.cat([torch.zeros_like(ours[:1]), steps, *(step[None] for step in added)])
        before, *after = map(shapley.fixed, members.losses(states, members.digits().validation))
        values = {mask: before - loss for mask, loss in zip(masks, after[: len(masks)], strict=True)}
        worth = shapley.worths(values, n, shapley.LEAVE_ONE_OUT)
        together = values[(1 << n) - 1]
        with_them = (before - loss - together for loss in after[len(masks) :])
        return dict(zip([*kept, *aside], [*worth, *with_them], strict=True))

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
        for place in audit.audited(self.chain.getrandbits(256), len(there), AUDITS, groups):
            member = there[place]
            shard, job = self.shards[member], self.setting.seed
            found = members.done_again(parent, shard, job, round_, member)
            distance = float((sent[member] - found).norm() / found.norm())
            if member < self.honest:
                self.honest_audits += 1
                self.furthest = max(self.furthest, distance)
            if why := audit.objection(distance):
                self.bans = self.bans.failed(_account(member), round_, why)


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
