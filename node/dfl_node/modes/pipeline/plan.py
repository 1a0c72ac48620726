"""What a pipelined run agrees on, as values, and the rules that need no network: who conducts, whom a member
obeys, in what order a stage works, and who is believed when one accuses another. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from dfl_ledger.errors import VerificationFailed
from dfl_ledger.records import Address, Cid, JobId

STRIKES = 3  # failures of a node's own, or of the way to it, that end its part in a run


@dataclass(frozen=True, slots=True)
class RunId:
    """One round's run. Every attempt at the same round from the same model is the same run."""

    job: JobId
    round: int
    parent: Cid


# -- who conducts ------------------------------------------------------------------------------------------
def conducting_order(run: RunId, members: Iterable[Address]) -> tuple[Address, ...]:
    """Who conducts, and who takes over from whom. Nobody knows it before the round's parent is published."""

    def lot(node: Address) -> bytes:
        return hashlib.sha256(f"{run.parent}/{run.round}/{node}".encode()).digest()

    return tuple(sorted(members, key=lot))


@dataclass(frozen=True, slots=True)
class Seat:
    """A conductor's claim to be obeyed."""

    epoch: int  # grows with every plan of the run, whoever makes it
    rank: int  # place in the conducting order
    conductor: Address

    def outranks(self, other: Seat | None) -> bool:
        """A later epoch wins, then a lower rank. Nobody outranks itself in the same epoch."""
        return other is None or (self.epoch, -self.rank) > (other.epoch, -other.rank)


# -- what the conductor decides ----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Plan:
    """Who holds which stage from which step on. Anything of an older epoch is dropped."""

    epoch: int
    conductor: Address
    cuts: tuple[str, ...]  # where stages 1, 2, … begin
    holders: tuple[Address, ...]  # by stage
    step: int  # optimizer steps done where it begins
    snapshots: tuple[Cid, ...]  # stage files of that step; none at step 0, where the parent is cut
    goal: int  # optimizer steps of the run

    def check(self, conductor: Address, stages: int, members: Iterable[Address]) -> None:
        """Raises VerificationFailed for a plan that cannot stand, whoever sent it."""
        fits = (
            self.conductor == conductor
            and len(self.cuts) == stages - 1
            and len(self.holders) == stages
            and set(self.holders) <= set(members)
            and len(self.snapshots) == (stages if self.step else 0)
            and self.step <= self.goal
        )
        if not fits:
            raise VerificationFailed(f"plan {self.epoch} of {conductor} cannot stand", why=repr(self)[:200])


@dataclass(frozen=True, slots=True)
class Turn:
    """One line of a run's history: a plan, why it was needed, and what it cost."""

    epoch: int
    conductor: Address
    holders: tuple[Address, ...]
    step: int  # from which it went on
    why: str
    took_s: float  # from the last progress of the one before until training went on; 0 for the first


@dataclass(frozen=True, slots=True)
class Point:
    """A recovery point: the stages' files of one step, all stored and told to the conductor."""

    epoch: int  # of the plan under which they were made
    conductor: Address
    step: int
    cuts: tuple[str, ...]
    holders: tuple[Address, ...]
    snapshots: tuple[Cid, ...]
    losses: tuple[float, ...]  # mean training loss of every step so far; 0.0 where nobody knows it any more

    def check(self, stages: int) -> None:
        """Raises VerificationFailed for a point that cannot stand."""
        fits = len(self.cuts) == stages - 1 and len(self.holders) == len(self.snapshots) == stages
        if not fits or len(self.losses) > self.step or self.step < 1:
            what = f"a recovery point at step {self.step} cannot stand"
            raise VerificationFailed(what, why="its lengths are not those of the run")


@dataclass(frozen=True, slots=True)
class Finish:
    """The run has ended with these files; who commits which stage's."""

    epoch: int
    point: Point
    committers: tuple[Address, ...]  # by stage, all different


def committers(
    holders: Sequence[Address], living: Iterable[Address], conductor: Address
) -> tuple[Address, ...] | None:
    """Whoever held a stage commits it; for the dead, and a node's second stage, another, the conductor last.

    None if there are fewer living nodes than stages: one node can commit one piece a round.
    """
    alive = set(living)
    chosen: list[Address | None] = []
    for holder in holders:
        chosen.append(holder if holder in alive and holder not in chosen else None)
    free = sorted(alive - {node for node in chosen if node}, key=lambda node: (node == conductor, node))
    for stage, taken in enumerate(chosen):
        if taken is None:
            if not free:
                return None
            chosen[stage] = free.pop(0)
    return tuple(node for node in chosen if node is not None)


# -- in what order a stage works ---------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Forward:
    micro: int


@dataclass(frozen=True, slots=True)
class Backward:
    micro: int


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> tuple[Forward | Backward, ...]:
    """A step of one stage: 1F1B with a flush (PipeDream-flush, Narayanan et al. 2021, arXiv:2006.09503).

    At most `stages - stage` micro-batches are in flight, which bounds the memory for activations; backward
    goes before forward as soon as it can. The last stage alternates from the start.
    """
    ahead = min(stages - stage - 1, micro_batches)
    order: list[Forward | Backward] = [Forward(micro) for micro in range(ahead)]
    for micro in range(micro_batches):
        if micro + ahead < micro_batches:
            order.append(Forward(micro + ahead))
        order.append(Backward(micro))
    return tuple(order)


# -- whom to trust -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Docket:
    """What was said against whom in a run.

    A stage cannot tell a lying neighbour from its own fault, nor can we. So who is accused is replaced; but
    who accuses a second node is what both cases have in common: it goes itself, and whom it alone accused may
    come back. A node's own failures count as strikes.
    """

    accusations: frozenset[tuple[Address, Address]] = frozenset()  # (accuser, accused)
    strikes: dict[Address, int] = field(default_factory=dict)

    def accused(self, accuser: Address, node: Address) -> Docket:
        return replace(self, accusations=self.accusations | {(accuser, node)})

    def failed(self, node: Address) -> Docket:
        return replace(self, strikes={**self.strikes, node: self.strikes.get(node, 0) + 1})

    @property
    def excluded(self) -> frozenset[Address]:
        """Who holds no stage any more."""
        accusers = [accuser for accuser, _ in self.accusations]
        quarrelsome = {accuser for accuser in accusers if accusers.count(accuser) > 1}
        guilty = {node for accuser, node in self.accusations if accuser not in quarrelsome}
        failing = {node for node, count in self.strikes.items() if count >= STRIKES}
        return frozenset(quarrelsome | guilty | failing)


# -- how long one waits ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Patience:
    """Every bound of a run, in seconds."""

    beat_s: float = 1.0  # both ends of a control line say at least so often that they are there
    silence_s: float = 8.0  # a line without a word for so long is dead
    gather_s: float = 3.0  # the conductor waits for members that have not answered yet
    takeover_s: float = 3.0  # each rank waits so much longer than the one before
    contact_s: float = 5.0  # for an answer to a new line
    open_s: float = 60.0  # for every stage to be ready
    stall_s: float = 60.0  # without any progress: somebody has to go
    wrap_up_s: float = 12.0  # kept back of the commit window for the last snapshots and the commits
    commit_s: float = 8.0  # for the pieces of the others to be on chain

    @classmethod
    def within(cls, window_s: float) -> Patience:
        """For a run that must fit in a commit window."""
        return cls(
            silence_s=min(8.0, max(3.0, window_s / 6)),
            gather_s=min(3.0, window_s / 20),
            takeover_s=min(3.0, max(1.0, window_s / 20)),
            open_s=min(60.0, window_s / 3),
            stall_s=min(60.0, max(4.0, window_s / 5)),
            wrap_up_s=min(30.0, max(3.0, window_s / 6)),
            commit_s=min(10.0, max(2.0, window_s / 12)),
        )
