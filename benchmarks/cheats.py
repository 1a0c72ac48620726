"""Players who are not honest: what each does otherwise than a node (`played_job.Player`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from played_job import ETHER, Player

from dfl_apps.digits import APP
from dfl_ledger import vectors
from dfl_ledger.evidence import Evidence
from dfl_ledger.records import Cid
from dfl_node.journal import Scores
from dfl_node.rounds.vocabulary import Work
from dfl_node.specrules import model_config
from dfl_node.train import models, tensors
from dfl_node.train.rows import Rows, write_npz
from dfl_node.train.tensors import Array
from dfl_node.train.trainer import DataConfig

CLASSES = 10
NOISE = 0.01  # standard deviation of an update that is nothing else
DISGUISE = 0.05  # noise in a copy, in lengths of what is copied
PRAISE = 500_000_000  # what colluders say of their friend's piece, in 1e-9 of loss


class Cheat(Player):
    honest = False
    first = False  # acts before honest members, not after them

    def changed(self, piece: bytes, change: Callable[[Array], Array]) -> bytes:
        """An update, each of its tensors changed."""
        schema = models.schema(model_config(self.game.spec))
        found = tensors.decode(piece, schema, max_bytes=self.game.spec.training.max_update_bytes)
        return tensors.encode({name: change(tensor) for name, tensor in found.items()}, schema)

    def disguised(self, piece: bytes, round_: int) -> bytes:
        """Nearly the same: another file, and so another CID."""
        random = np.random.RandomState(round_)

        def noisy(tensor: Array) -> Array:
            length = DISGUISE * float(np.sqrt(np.mean(tensor**2)))
            return tensor + random.standard_normal(tensor.shape).astype(np.float32) * np.float32(length)

        return self.changed(piece, noisy)

    async def file(self, cid: Cid) -> bytes:
        return await self.game.store.get(cid, max_bytes=self.game.spec.training.max_update_bytes)

    @property
    def victim(self) -> Player:
        return next(member for member in self.game.members if member.honest)


# -- members ----------------------------------------------------------------------------------------------
class CommitmentCopier(Cheat):
    """Commits what another committed, and shows what the other showed."""

    async def commit(self, round_: int, parent: Cid) -> None:
        work = self.victim.work()
        self.ledger.commit(self.victim.contribution(work), work.salt)

    async def reveal(self, round_: int) -> None:
        work = self.victim.work()
        self.try_(self.ledger.reveal, self.victim.contribution(work), work.salt)


class LateCopier(Cheat):
    """Delivers the file that another showed a round ago; in the first, an update of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: tuple[Cid, int] | None = None

    async def make(self, round_: int, parent: Cid) -> Work:
        copied, theirs = self._seen, self.victim.work()
        self._seen = theirs.cid, theirs.samples
        if copied is None:
            nothing = self.changed(await self.file(theirs.cid), np.zeros_like)
            return await self.keep(round_, parent, nothing, theirs.samples)
        return await self.keep(round_, parent, await self.piece(copied[0], round_), copied[1])

    async def piece(self, cid: Cid, round_: int) -> bytes:
        return await self.file(cid)


class DisguisedCopier(LateCopier):
    """The same, in another file."""

    async def piece(self, cid: Cid, round_: int) -> bytes:
        return self.disguised(await self.file(cid), round_)


class LeakCopier(Cheat):
    """Has another's update before it is committed, and delivers it disguised."""

    async def make(self, round_: int, parent: Cid) -> Work:
        theirs = self.victim.work()
        piece = self.disguised(await self.file(theirs.cid), round_)
        return await self.keep(round_, parent, piece, theirs.samples)


class NoiseRider(Cheat):
    """Trains nothing, and delivers noise."""

    async def make(self, round_: int, parent: Cid) -> Work:
        random = np.random.RandomState(1000 + round_)

        def drawn(tensor: Array) -> Array:
            return random.standard_normal(tensor.shape).astype(np.float32) * np.float32(NOISE)

        theirs = self.victim.work()
        piece = self.changed(await self.file(theirs.cid), drawn)
        return await self.keep(round_, parent, piece, theirs.samples)


class StaleRider(Cheat):
    """Trains once, on the first model, and delivers that again and again, disguised."""

    def __init__(self) -> None:
        super().__init__()
        self._trained: Work | None = None

    async def make(self, round_: int, parent: Cid) -> Work:
        if self._trained is None:
            self._trained = await super().make(round_, parent)
            return self._trained
        piece = self.disguised(await self.file(self._trained.cid), round_)
        return await self.keep(round_, parent, piece, self._trained.samples)


class LabelFlipper(Cheat):
    """Honest work on rows whose labels y say 9 - y."""

    async def make(self, round_: int, parent: Cid) -> Work:
        if self.data.path is None:
            rows = APP.load(None, self.data.shard, None)
            path = self.game.folder / "flipped.npz"
            path.write_bytes(write_npz(Rows(rows.X, CLASSES - 1 - rows.y)))
            self.data = DataConfig("digits", str(path), (1, 1, 1), None)
            self.begin(self.game.job)
        return await super().make(round_, parent)


class Equivocator(Cheat):
    """Commits one piece, then another; shows the other; never shows the one."""

    first = True  # the last commitment would end the phase

    async def commit(self, round_: int, parent: Cid) -> None:
        await super().commit(round_, parent)
        one = self.work()
        piece = self.changed(await self.file(one.cid), np.negative)
        self._other = replace(one, cid=await self.game.store.put(piece), salt=os.urandom(32))
        self.try_(self.ledger.commit, self.contribution(self._other), self._other.salt)

    async def reveal(self, round_: int) -> None:
        self.try_(self.ledger.reveal, self.contribution(self._other), self._other.salt)


class Griefer(Cheat):
    """Commits, and never shows it."""

    async def reveal(self, round_: int) -> None:
        return


class SelfPayer(Cheat):
    """Settles first, and writes the reward of another to its own line."""

    async def settle_first(self, round_: int) -> None:
        right = await self.settler.evidence(round_)
        wrong = self.robbed(right)
        self.ledger.settle(wrong.settlement(await self.game.store.put(wrong.encode())))

    def robbed(self, right: Evidence) -> Evidence:
        lines = list(right.leaves)
        mine = next(place for place, line in enumerate(lines) if line.account == self.address)
        theirs = next(place for place, line in enumerate(lines) if line.account == self.victim.address)
        taken = lines[theirs].reward_wei
        for place, by in ((mine, taken), (theirs, -taken)):
            line = lines[place]
            lines[place] = replace(
                line, reward_wei=line.reward_wei + by, cumulative_wei=line.cumulative_wei + by
            )
        return replace(right, leaves=tuple(lines))


class HiddenSelfPayer(SelfPayer):
    """The same in the last round, with evidence that nobody can fetch."""

    async def settle_first(self, round_: int) -> None:
        if round_ == self.game.rounds:
            wrong = self.robbed(await self.settler.evidence(round_))
            self.ledger.settle(wrong.settlement(Cid.of(os.urandom(32))))
            self.game.hidden = wrong.leaves


# -- evaluators -------------------------------------------------------------------------------------------
class CheatingJudge(Cheat):
    """States what it likes. It is asked last, and needs not measure what honest ones say."""

    def stated(self, scores: list[int]) -> list[int]:
        raise NotImplementedError

    def colleague(self, round_: int) -> Scores:
        """What an honest evaluator found."""
        one = next(evaluator for evaluator in self.game.evaluators if evaluator.honest)
        found = one.journal.scores(self.game.job, round_)
        assert found is not None
        return found

    def seat(self, round_: int) -> int:
        seats = self.ledger.seats(self.game.job, round_)
        return next(number for number, seat in enumerate(seats) if seat.evaluator == self.address)

    async def judge(self, round_: int) -> None:
        job, subjects = self.game.job, self.ledger.panel(self.game.job, round_).subjects
        scores = self.stated(list(vectors.decode(self.colleague(round_).vector, subjects)))
        bound = Scores(vectors.encode(scores), os.urandom(32), "none", {})
        self.journal.bind_scores(job, round_, 0, bound)
        sealed = vectors.commitment(job, round_, 0, self.address, bound.vector, bound.salt)
        self.ledger.commit_scores(job, round_, 0, self.seat(round_), sealed)


class LazyJudge(CheatingJudge):
    """Measures nothing: every piece is worth the same, and the model is right."""

    def stated(self, scores: list[int]) -> list[int]:
        return [0] * (len(scores) - 1) + [1]


class CopyingJudge(CheatingJudge):
    """Commits what another committed, and shows what the other showed."""

    async def judge(self, round_: int) -> None:
        found, one = self.colleague(round_), self.game.evaluators[0]
        sealed = vectors.commitment(self.game.job, round_, 0, one.address, found.vector, found.salt)
        self.ledger.commit_scores(self.game.job, round_, 0, self.seat(round_), sealed)

    async def show(self, round_: int) -> None:
        found = self.colleague(round_)
        show = partial(self.ledger.reveal_scores, self.game.job, round_, 0, self.seat(round_))
        self.try_(show, found.vector, found.salt)


class Colluder(CheatingJudge):
    """Honest, but for a friend among the members, whose piece it praises."""

    def stated(self, scores: list[int]) -> list[int]:
        friends = {member.address for member in self.game.members if not member.honest}
        revealed = self.game.rows.revealed(self.game.job, self.game.judged)
        for place, row in enumerate(revealed):
            if row.node in friends:
                scores[place] += PRAISE
        return scores


def vnx(wei: int) -> float:
    return round(wei / ETHER, 2)
