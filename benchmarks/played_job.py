"""A job of scored rounds, played on a development chain by parts of real nodes, not all of them honest.

A `Player` has what a node has: a wallet on the chain, a journal, its mode, its judge, settler, challenger and
reporter, over the node's own trainer. What a node's loop decides by the clock, `PlayedJob` does in order, and
sets the chain's clock forward where somebody is waited for in vain. Who is not honest overrides a step.
Files are in one store: that a file can be had is not what is measured here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dfl_ledger import rewards, vectors
from dfl_ledger.accounts import Account
from dfl_ledger.chain import ChainLedger
from dfl_ledger.devchain import DevChain, fund
from dfl_ledger.errors import DflError, Reverted
from dfl_ledger.facts import RoundFacts
from dfl_ledger.indexer import Indexer
from dfl_ledger.merkle import RewardTree
from dfl_ledger.query import LedgerRows
from dfl_ledger.records import Address, Cid, Contribution, JobId, JobState, Leaf, PanelPhase, Phase
from dfl_ledger.rpc import Rpc
from dfl_node import jobspec
from dfl_node.journal import Journal
from dfl_node.modes.challenging import Challenger
from dfl_node.modes.judging import Judge
from dfl_node.modes.mode import Context, open_mode
from dfl_node.modes.reporting import Reporter
from dfl_node.modes.settlement import Settler
from dfl_node.rounds.vocabulary import State, Train, Work
from dfl_node.specrules import model_config
from dfl_node.store.blocks import BlockFiles
from dfl_node.store.local import LocalStore
from dfl_node.train.trainer import DataConfig, Trainer

ETHER = 10**18
STAKE_WEI = 40 * ETHER  # of each node
SHARDS = 5  # parts of the training rows: one a member
EVALUATORS = 3
BOND, REQUIRED_STAKE, BUDGET = 6, 10, 100  # VNX
LATE_SHARE = 0.9  # of the window for scores, when who lacks what it needs says so
SPEC = """
name = "adversary"
app = "digits"
[model]
name = "mlp"
[training]
rounds = {rounds}
local_steps = 12
batch_size = 32
lr = 0.1
max_update_bytes = 1048576
[round]
min_nodes = {members}
quorum = 2
open_s = 600
commit_s = 600
reveal_s = 600
aggregate_s = 1200
settle_s = 10000
challenge_s = 2000
[reward]
round_budget = {budget}
valuation = "shapley"
evaluators = {evaluators}
score_s = 600
bond = {bond}
required_stake = {required_stake}
shares = {{ evaluators = 5.0 }}
"""


class Chain:
    """A development chain whose clock can be set forward."""

    def __init__(self, dev: DevChain) -> None:
        self.dev = dev
        self.rpc = Rpc(dev.rpc_url)
        self._wallets = 0

    def wallet(self, vnx_wei: int) -> ChainLedger:
        self._wallets += 1
        account = Account.from_key(hashlib.sha256(b"adversaries %d" % self._wallets).digest())
        fund(self.dev, Address(account.address), ETHER, vnx_wei)
        return ChainLedger(self.dev.rpc_url, self.dev.deployment(), account, clock=lambda: 0)

    def reach(self, second: int) -> None:
        newest = self.rpc.as_int(self.rpc.call("eth_getBlockByNumber", "latest", False)["timestamp"])
        if second > newest:
            self.rpc.call("evm_setNextBlockTimestamp", second)
            self.rpc.call("evm_mine")

    def supply_wei(self) -> int:
        """Of VNX: what is slashed and not a reporter's is burned."""
        token = self.dev.deployment().token
        return self.rpc.as_int(self.rpc.call("eth_call", {"to": token, "data": "0x18160ddd"}, "latest"))

    def close(self) -> None:
        self.rpc.close()


class OneForAll:
    """A trainer that measures once what several ask for: on one machine they would find the same bits."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._known: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    async def aggregate(self, *args: Any, **named: Any) -> Any:
        return await self._once("aggregate", args, named)

    async def score(self, *args: Any, **named: Any) -> Any:
        return await self._once("score", args, named)

    async def _once(self, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        key = hashlib.sha256(repr((name, args, sorted(named.items()))).encode()).hexdigest()
        if key not in self._known:
            self._known[key] = await getattr(self._trainer, name)(*args, **named)
        return self._known[key]


class Player:
    """A node, taken apart. An honest one; others override what they do otherwise."""

    honest = True

    def __init__(self) -> None:
        self.refused: list[str] = []  # names of the contracts' errors

    def sit_down(self, game: PlayedJob, ledger: ChainLedger, place: int) -> None:
        self.game, self.ledger, self.address = game, ledger, ledger.address
        self.journal = Journal(game.folder / f"journal-{place}.sqlite")
        self.data = DataConfig("digits", None, (place % SHARDS + 1, place % SHARDS + 1, SHARDS), None)

    def begin(self, job: JobId) -> None:
        game = self.game
        parts: Any = SimpleNamespace(
            ledger=self.ledger,
            index=game.index,
            rows=game.rows,
            store=game.store,
            channel=_EVERYBODY,
            holders=_EVERYBODY,
            trainer=game.trainer,
            journal=self.journal,
            data={"digits": self.data},
        )
        idle = State(me=self.address, trains=True)
        context = Context(job, game.spec, parts, self.now, lambda: idle)
        self.mode = open_mode(context)
        self.judging = Judge(job, game.spec, parts, self.mode, self.now)
        self.settler = Settler(job, game.spec, parts, self.mode)
        self.challenger = Challenger(job, parts)
        self.reporter = Reporter(job, parts)

    def now(self) -> float:
        return float(self.ledger.now())

    # -- a member's steps -----------------------------------------------------------------------------
    async def make(self, round_: int, parent: Cid) -> Work:
        """Our piece of the round, in the journal."""
        return await self.mode.train(Train(round_, parent))

    async def commit(self, round_: int, parent: Cid) -> None:
        work = await self.make(round_, parent)
        self.ledger.commit(self.contribution(work), work.salt)

    async def reveal(self, round_: int) -> None:
        work = self.work()
        self.ledger.reveal(self.contribution(work), work.salt)

    async def publish(self, round_: int, parent: Cid, reveals: int) -> None:
        model = await self.settler.aggregate(round_, parent, reveals)
        self.ledger.publish_model(self.game.job, round_, model)

    # -- an evaluator's -------------------------------------------------------------------------------
    async def judge(self, round_: int) -> None:
        await self.judging.judge(round_)

    async def show(self, round_: int) -> None:
        await self.judging.show(round_)

    # -- everybody's ----------------------------------------------------------------------------------
    async def settle_first(self, round_: int) -> None:
        """Before whoever should settle does: honest nodes wait for their turn."""

    def work(self) -> Work:
        work = self.journal.work(self.game.job)
        assert work is not None
        return work

    def contribution(self, work: Work) -> Contribution:
        return Contribution(
            self.game.job, work.round, self.address, work.kind, work.cid, work.parent, work.samples
        )

    async def keep(self, round_: int, parent: Cid, piece: bytes, samples: int) -> Work:
        """Into the journal what was not trained."""
        made = Work(round_, parent, await self.game.store.put(piece), samples, os.urandom(32))
        return self.journal.record(self.game.job, made, loss=0.0, train_s=0.0)

    def try_(self, call: Any, *args: object) -> None:
        """What the contracts should refuse."""
        try:
            call(*args)
        except Reverted as no:
            self.refused.append(no.error)

    def wealth_wei(self) -> int:
        """In its wallet and at stake."""
        node = self.ledger.node(self.address)
        return self.ledger.balance_wei(self.address) + (node.stake_wei if node is not None else 0)

    def stake_wei(self) -> int:
        node = self.ledger.node(self.address)
        return node.stake_wei if node is not None else 0


class _Everybody:
    """Peers that have every file, as all share a store: nobody needs to be asked."""

    def peers(self) -> tuple[Any, ...]:
        return (SimpleNamespace(address="", peer_id=""),)

    async def ask(self, *_: object) -> int:
        return 1


_EVERYBODY = _Everybody()


@dataclass(frozen=True)
class Money:
    """A player's, over the whole job, in wei."""

    player: Player
    earned: int  # by work: claimed
    reported: int  # for offences of others
    slashed: int
    due: int  # what the rules pay its work by an honest evaluator's scores


@dataclass(frozen=True)
class Books:
    """What became of all money. `check` is the law of its conservation."""

    players: tuple[Money, ...]
    escrow: int
    paid: int
    refunded: int
    slashed: int
    burned: int

    def check(self) -> None:
        assert self.paid + self.refunded == self.escrow, self
        assert self.slashed == self.burned + sum(money.reported for money in self.players), self

    def of(self, player: Player) -> Money:
        return next(money for money in self.players if money.player is player)


class PlayedJob:
    """A job from its submission to its last claim."""

    def __init__(
        self,
        chain: Chain,
        trainer: Trainer,
        folder: Path,
        members: Sequence[Player],
        evaluators: Sequence[Player],
        *,
        rounds: int,
        requester_stays: bool = True,
        copied: tuple[Player, Player] | None = None,
    ) -> None:
        """`copied`: whose piece is copied, and whose is the copy."""
        self.chain, self.folder = chain, folder
        self.trainer: Any = OneForAll(trainer)
        folder.mkdir()
        self.members, self.evaluators = tuple(members), tuple(evaluators)
        self.players = (*self.members, *self.evaluators)
        self.rounds, self.requester_stays, self.copied = rounds, requester_stays, copied
        self.requester = chain.wallet(rounds * BUDGET * ETHER)
        start = self.requester.head()
        for place, player in enumerate(self.players):
            player.sit_down(self, chain.wallet(STAKE_WEI), place)
            player.ledger.register(hashlib.sha256(player.address.encode()).digest(), STAKE_WEI, [])
        for player in self.evaluators:
            player.ledger.enlist()
        self.index = Indexer(folder / "ledger", self.requester, deployment_key="t", start_block=start)
        self.rows = LedgerRows(folder / "ledger")
        self.blocks = BlockFiles(folder / "store")
        self.store = LocalStore(self.blocks)
        text = SPEC.format(
            rounds=rounds,
            members=len(self.members),
            evaluators=len(self.evaluators),
            budget=BUDGET,
            bond=BOND,
            required_stake=REQUIRED_STAKE,
        )
        self.spec = jobspec.parse(text)
        self.job = JobId(0)
        self.voids = 0
        self.judged = 0  # the round that is being judged
        self.hidden: tuple[Leaf, ...] = ()  # lines of a settlement whose evidence is nowhere

    def close(self) -> None:
        for player in self.players:
            with suppress(DflError):  # who has lost too much is no evaluator any more
                player.ledger.delist()
            player.ledger.close()
        self.rows.close()
        self.index.close()
        self.blocks.close()
        self.requester.close()

    async def play(self) -> Books:
        supply_wei = self.chain.supply_wei()
        before = {player.address: player.wealth_wei() for player in self.players}
        await self._submit()
        while (state := self.state()).phase is not Phase.COMPLETED:
            assert not state.phase.terminal, state.phase
            await self._round(state)
        self._pay()
        return self._books(before, supply_wei - self.chain.supply_wei())

    def state(self) -> JobState:
        found = self.requester.job(self.job)
        assert found is not None
        return found

    def read(self) -> None:
        while self.index.step():
            pass

    # -- the steps ------------------------------------------------------------------------------------
    async def _submit(self) -> None:
        rows = await self.trainer.validation_rows("digits")
        if self.requester_stays:
            validation = await self.store.put(rows)
        else:  # only its own node has had them
            with closing(BlockFiles(self.folder / "requester")) as own:
                validation = await LocalStore(own).put(rows)
        self.spec = self.spec.with_validation(validation)
        model = await self.store.put(await self.trainer.init_model(model_config(self.spec), 1))
        self.job = self.requester.create_job(self.spec.terms(await self.store.put(self.spec.encode()), model))
        for member in self.members:
            member.ledger.join(self.job)
        self.read()
        for player in self.players:
            player.begin(self.job)

    async def _round(self, state: JobState) -> None:
        round_, parent = state.round, state.model
        for member in self.members:
            if member.ledger.active_round(self.job, member.address) == round_:
                await member.commit(round_, parent)
        self._pass(Phase.COMMIT)
        for member in self.members:
            if member.ledger.committed(self.job, round_, member.address):
                await member.reveal(round_)
        self._pass(Phase.REVEAL)
        if self.state().round != round_:
            self.voids += 1
            return
        for member in self.members:  # who withheld is no member of the next round
            if member.ledger.active_round(self.job, member.address) <= round_:
                member.ledger.join(self.job)
        await self._publish(round_, parent)
        await self._judge(round_)
        self._report()
        await self._settle(round_)
        if self.state().phase is Phase.OPEN:
            self._pass(Phase.OPEN)

    def _pass(self, phase: Phase) -> None:
        """The end of a phase, waited for if not everybody did what it is for."""
        state = self.state()
        if state.phase is phase:
            self.chain.reach(state.deadline)
            self.requester_or_member().advance(self.job)
        self.read()

    def requester_or_member(self) -> ChainLedger:
        """Who sends what anybody may send."""
        honest = next(member for member in self.members if member.honest)
        return self.requester if self.requester_stays else honest.ledger

    async def _publish(self, round_: int, parent: Cid) -> None:
        turns = [
            (at, member)
            for member in self.members
            if (at := member.ledger.may_aggregate_at(self.job, member.address)) is not None
        ]
        at, first = min(turns, key=lambda turn: turn[0])
        self.chain.reach(at)
        await first.publish(round_, parent, self.state().reveals)
        self.read()

    async def _judge(self, round_: int) -> None:
        self.judged, waiting = round_, list[Player]()
        for evaluator in self.evaluators:
            try:
                await evaluator.judge(round_)
            except DflError:
                waiting.append(evaluator)
        if waiting:
            until = self.requester.panel(self.job, round_).commit_until
            self.chain.reach(until - int((1 - LATE_SHARE) * self.spec.reward.score_s))
            for evaluator in waiting:
                await evaluator.judge(round_)
        panel = self.requester.panel(self.job, round_)
        if panel.phase is PanelPhase.COMMIT:
            self.chain.reach(panel.commit_until)
        self.read()
        for evaluator in self.evaluators:
            await evaluator.show(round_)
        panel = self.requester.panel(self.job, round_)
        if panel.phase is PanelPhase.REVEAL:
            self.chain.reach(panel.reveal_until)
        self.read()

    def _report(self) -> None:
        """Each offence, by the honest node whose turn comes first."""
        while True:
            state, now = self.state(), self.requester.now()
            due = [
                (charge.report_from, place, charge.offence)
                for place, player in enumerate(self.players)
                if player.honest
                for charge in player.reporter.charges(state, now)
            ]
            if not due:
                return
            _, place, offence = min(due, key=lambda one: one[:2])
            self.players[place].reporter.report(offence)
            self.read()

    async def _settle(self, round_: int) -> None:
        publisher = next(p for p in self.players if p.address == self.rows.publisher(self.job, round_))
        for player in self.players:
            await player.settle_first(round_)
        self.read()
        for player in self.players:
            wrong, _ = player.challenger.look(self.requester.now()) if player.honest else (None, 0)
            if wrong is not None:
                with suppress(DflError):  # whose evidence nobody has cannot be shown to be wrong
                    await player.challenger.challenge(wrong)
                    publisher = player  # what it overturned it settles
                    self.read()
        if self.requester.settlement(self.job, round_) is None:
            if not publisher.honest:
                publisher = next(member for member in self.members if member.honest)
            await publisher.settler.settle(round_)
            self.read()

    def _pay(self) -> None:
        """Everybody's claim, on the last settlement, and the refund of what is left."""
        self.chain.reach(self.requester.final_at(self.job))
        sender = self.requester_or_member()
        for round_ in self.rows.judged_rounds(self.job)[-2 if self.hidden else -1 :]:
            hidden = self.hidden and round_ == self.rounds
            lines = self.hidden if hidden else self.rows.lines(self.job, round_)
            tree = RewardTree(lines)
            for place, line in enumerate(lines):
                # Who hid the lines shows its own.
                mine = not hidden or any(p.address == line.account and not p.honest for p in self.players)
                if line.cumulative_wei and mine:
                    sender.claim(self.job, round_, line, tree.proof(place))
        if sender.refundable_wei(self.job):
            sender.refund(self.job)
        self.read()

    # -- the books ------------------------------------------------------------------------------------
    def _books(self, before: dict[Address, int], burned_wei: int) -> Books:
        slashes = self.rows.slashes()
        due = self._due()
        players = []
        for player in self.players:
            money = Money(
                player,
                earned=self.requester.claimed_wei(self.job, player.address, 0),
                reported=sum(row.reward_wei for row in slashes if row.reporter == player.address),
                slashed=sum(row.slashed_wei for row in slashes if row.node == player.address),
                due=due.get(player.address, 0),
            )
            change = player.wealth_wei() - before[player.address]
            assert change == money.earned + money.reported - money.slashed, (change, money)
            players.append(money)
        state = self.state()
        assert self.requester.balance_wei(self.requester.address) == state.refunded_wei
        return Books(
            tuple(players),
            escrow=state.terms.rounds * state.terms.round_budget_wei,
            paid=state.spent_wei,
            refunded=state.refunded_wei,
            slashed=sum(row.slashed_wei for row in slashes),
            burned=burned_wei,
        )

    def _due(self) -> dict[Address, int]:
        """What everybody would have, had every evaluator who showed scores shown an honest one's."""
        judge = next(evaluator for evaluator in self.evaluators if evaluator.honest)
        found: dict[Address, int] = {}
        for round_ in self.rows.judged_rounds(self.job):
            facts, own = self.rows.round_facts(self.job, round_), judge.journal.scores(self.job, round_)
            assert own is not None
            ballots = tuple(
                ballot if ballot.vector is None else replace(ballot, vector=self._honest(facts, own.vector))
                for ballot in facts.ballots
            )
            for line in rewards.leaves(replace(facts, ballots=ballots), ()):
                found[line.account] = found.get(line.account, 0) + line.reward_wei
        return found

    def _honest(self, facts: RoundFacts, vector: bytes) -> bytes:
        """An honest evaluator's scores; a copy's share of the worth is the copied one's."""
        if self.copied is None:
            return vector
        scores = list(vectors.decode(vector, facts.subjects))
        nodes = [piece.node for piece in facts.contributions]
        original, copy = (nodes.index(player.address) for player in self.copied)
        scores[original], scores[copy] = scores[original] + scores[copy], 0
        return vectors.encode(scores)
