"""A chain to tell stories on, the words they are told in, and the longest one: the whole life of a job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import pytest

from dfl_ledger.errors import Reverted
from dfl_ledger.ledger import Ledger
from dfl_ledger.merkle import RewardTree
from dfl_ledger.records import (
    DAG_PB,
    Address,
    Cid,
    Contribution,
    Event,
    JobId,
    JobState,
    JobTerms,
    Kind,
    Leaf,
    Mode,
    Payee,
    Phase,
    Settlement,
)

ETHER = 10**18
BUDGET = 100 * ETHER
STAKE = 5 * ETHER
UNKNOWN_JOB = JobId(10**6)


class World(Protocol):
    """A chain to put stories on."""

    def wallet(self, *, native_wei: int = ETHER, vnx_wei: int = 1000 * ETHER) -> Ledger:
        """A fresh wallet with funds."""
        ...

    def reach(self, second: int) -> None:
        """Let the chain's clock come to `second` (Unix), if it is not past it, and mine a block there."""
        ...


def cid(text: str) -> Cid:
    return Cid.of(text.encode(), DAG_PB)


TERMS = JobTerms(
    spec=cid("spec"),
    model=cid("model 0"),
    mode=Mode.SYNC,
    rounds=2,
    quorum=2,
    min_nodes=2,
    open_window_s=200,
    commit_window_s=200,
    reveal_window_s=200,
    aggregate_window_s=400,
    target=0,
    settle_window_s=10_000,
    challenge_window_s=500,
    round_budget_wei=BUDGET,
    required_stake_wei=STAKE,
)


@contextmanager
def refused(error: str, **args: object) -> Iterator[None]:
    """The body must be refused with this custom error and (at least) these arguments."""
    with pytest.raises(Reverted) as caught:
        yield
    assert caught.value.error == error
    assert {name: caught.value.args_[name] for name in args} == args


def member(world: World) -> Ledger:
    """A wallet that may join TERMS."""
    ledger = world.wallet()
    ledger.register(ledger.address.encode()[:32], STAKE, [])
    return ledger


def state(ledger: Ledger, job: JobId) -> JobState:
    found = ledger.job(job)
    assert found is not None
    return found


def work(ledger: Ledger, job: JobId) -> Contribution:
    """This wallet's contribution to the current round."""
    now = state(ledger, job)
    update = cid(f"update of {ledger.address} in {now.round}")
    return Contribution(job, now.round, ledger.address, Kind.UPDATE, update, now.model, 640)


def salt(ledger: Ledger) -> bytes:
    return ledger.address.encode()[-32:]


def commit_all(ledgers: Sequence[Ledger], job: JobId) -> None:
    for ledger in ledgers:
        ledger.commit(work(ledger, job), salt(ledger))


def reveal_all(ledgers: Sequence[Ledger], job: JobId) -> None:
    for ledger in ledgers:
        ledger.reveal(work(ledger, job), salt(ledger))


def turns(ledgers: Sequence[Ledger], job: JobId) -> list[tuple[int, Ledger]]:
    """Who may publish the round's model from when, in order."""
    found = [(ledger.may_aggregate_at(job, ledger.address), ledger) for ledger in ledgers]
    return sorted(((at, ledger) for at, ledger in found if at is not None), key=lambda turn: turn[0])


def play_round(ledgers: Sequence[Ledger], job: JobId) -> Ledger:
    """Commit, reveal and publish; returns the aggregator."""
    round_ = state(ledgers[0], job).round
    commit_all(ledgers, job)
    reveal_all(ledgers, job)
    aggregator = turns(ledgers, job)[0][1]
    aggregator.publish_model(job, round_, cid(f"model {round_}"))
    return aggregator


def leaf(account: Address, reward_wei: int, cumulative_wei: int) -> Leaf:
    return Leaf(account, 0, -123, reward_wei, cumulative_wei)


def settlement(job: JobId, round_: int, tree: RewardTree) -> Settlement:
    return Settlement(job, round_, tree.root, tree.total_wei, cid(f"evidence {round_}"), b"s" * 32, 77)


def claim(sender: Ledger, job: JobId, round_: int, tree: RewardTree, account: Address) -> None:
    place = tree.place_of(account)
    sender.claim(job, round_, tree.leaves[place], tree.proof(place))


# -- stories ------------------------------------------------------------------------------------------
def whole_life_of_a_job(world: World) -> tuple[JobId, list[Event]]:
    """Late joiner, void round, dead aggregator, settlements, claims, refund. Returns the events it left."""
    requester, *nodes = world.wallet(), member(world), member(world), member(world)
    a, b, c = nodes
    start = requester.head()
    job = requester.create_job(replace(TERMS, min_nodes=3))
    assert requester.balance_wei(requester.address) == 1000 * ETHER - 2 * BUDGET
    assert state(a, job).phase is Phase.OPEN
    assert state(a, job).model == TERMS.model

    # Two of three join; at the deadline that is a quorum.
    a.join(job)
    b.join(job)
    with refused("DeadlineAhead", job=job):
        a.advance(job)
    world.reach(state(a, job).deadline)
    with refused("DeadlinePassed", job=job):
        c.join(job)
    a.advance(job)
    assert (state(a, job).phase, state(a, job).expected) == (Phase.COMMIT, 2)

    # The third comes late: from the next round on.
    c.join(job)
    assert [x.active_round(job, x.address) for x in nodes] == [1, 1, 2]
    with refused("NotActive", job=job, round=1, node=c.address):
        c.commit(work(c, job), salt(c))
    assert not a.committed(job, 1, a.address)
    commit_all((a, b), job)
    assert a.committed(job, 1, a.address)
    assert state(a, job).phase is Phase.REVEAL
    reveal_all((b, a), job)
    assert a.committed(job, 1, a.address)

    # The drawn one publishes, nobody else may yet.
    (first_at, first), (second_at, second) = turns(nodes, job)
    now = state(a, job)
    assert (now.phase, now.reveals) == (Phase.AGGREGATE, 2)
    assert first is (b, a)[now.draw]
    assert first_at == now.deadline - TERMS.aggregate_window_s
    assert second_at == first_at + TERMS.aggregate_window_s // 2
    with refused("NotYourTurn", node=second.address):
        second.publish_model(job, 1, cid("model 1"))
    with refused("NotAggregator", node=c.address):
        c.publish_model(job, 1, cid("model 1"))
    assert a.publication(job, 1) is None
    first.publish_model(job, 1, cid("model 1"))
    published = a.publication(job, 1)
    assert published is not None
    assert (published.round, published.contributions, published.payees) == (1, 2, 3)
    assert (published.publisher_index, published) == (now.draw, a.publication_at(job, 0))
    assert first_at <= published.published_at <= a.now()
    assert (a.position(job, 1), a.position(job, 2)) == (0, None)
    now = state(a, job)
    assert (now.phase, now.round, now.completed, now.expected) == (Phase.COMMIT, 2, 1, 3)
    assert now.model == cid("model 1")
    assert a.may_aggregate_at(job, a.address) is None

    # Only one commits: the round is void, costs nothing, and all have to join again.
    commit_all((a,), job)
    world.reach(now.deadline)
    b.advance(job)
    now = state(a, job)
    assert (now.phase, now.round, now.completed, now.expected) == (Phase.OPEN, 3, 1, 0)
    assert a.publication(job, 2) is None
    assert a.refundable_wei(job) == 0
    for node in nodes:
        node.join(job)
    now = state(a, job)
    assert (now.phase, now.expected, now.model) == (Phase.COMMIT, 3, cid("model 1"))

    # One of three commits but never reveals; the drawn aggregator is dead, the next takes its place.
    commit_all(nodes, job)
    reveal_all((a, b), job)
    world.reach(state(a, job).deadline)
    a.advance(job)
    _, (stand_in_at, stand_in) = turns(nodes, job)
    world.reach(stand_in_at)
    stand_in.publish_model(job, 3, cid("model 3"))
    now = state(a, job)
    assert (now.phase, now.completed, now.model) == (Phase.COMPLETED, 2, cid("model 3"))
    assert now.phase.terminal

    # Both rounds are settled, in order, by whoever has the stake. Payees stand in the order of joining.
    assert [a.payee(job, number) for number in range(4)] == [*(Payee(x.address, 0) for x in nodes), None]
    assert [a.payee_of(job, x.address) for x in (*nodes, requester)] == [0, 1, 2, None]
    one = RewardTree(
        [
            leaf(a.address, 30 * ETHER, 30 * ETHER),
            leaf(b.address, 20 * ETHER, 20 * ETHER),
            leaf(c.address, 0, 0),
        ]
    )
    three = RewardTree(
        [
            leaf(a.address, 30 * ETHER, 60 * ETHER),
            leaf(b.address, 20 * ETHER, 40 * ETHER),
            leaf(c.address, 10 * ETHER, 10 * ETHER),
        ]
    )
    with refused("EarlierRoundOpen", round=3, earlier=1):
        stand_in.settle(settlement(job, 3, three))
    with refused("SettlerStakeTooLow", settler=requester.address, stake=0, required=STAKE):
        requester.settle(settlement(job, 1, one))
    assert a.settlement(job, 1) is None
    assert a.final_at(job) == 0
    c.settle(settlement(job, 1, one))
    c.settle(settlement(job, 3, three))
    settled = a.settlement(job, 3)
    assert settled is not None
    assert (settled.root, settled.total_wei, settled.payees) == (three.root, three.total_wei, 3)
    assert (settled.previous_round, settled.epoch) == (1, 1)
    assert a.final_at(job) == settled.claimable_at
    assert (state(a, job).spent_wei, a.unclaimed_wei(job)) == (110 * ETHER, 110 * ETHER)

    # Claims: not before the challenge window ends, cumulative, once, and anyone may send them.
    before = [x.balance_wei(x.address) for x in nodes]
    with refused("NotClaimableYet", round=3):
        claim(a, job, 3, three, a.address)
    # Nor does escrow go back before: a settlement may still be overturned, and another one take more of it.
    assert a.refundable_wei(job) == 0
    world.reach(settled.claimable_at)
    claim(a, job, 3, three, a.address)
    claim(b, job, 1, one, b.address)
    claim(b, job, 3, three, b.address)
    claim(a, job, 3, three, c.address)
    assert [x.balance_wei(x.address) - was for x, was in zip(nodes, before, strict=True)] == [
        60 * ETHER,
        40 * ETHER,
        10 * ETHER,
    ]
    assert b.claimed_wei(job, b.address, 0) == 40 * ETHER
    for round_, tree in ((3, three), (1, one)):
        with refused("NothingToClaim", account=a.address):
            claim(a, job, round_, tree, a.address)

    # What no round earned goes back, once.
    before_refund = requester.balance_wei(requester.address)
    assert a.refundable_wei(job) == 90 * ETHER
    a.refund(job)
    assert a.refundable_wei(job) == 0
    assert requester.balance_wei(requester.address) == before_refund + 2 * BUDGET - 110 * ETHER
    assert state(a, job).refunded_wei == 90 * ETHER
    with refused("NothingToRefund", job=job):
        a.refund(job)
    return job, a.events(start + 1, a.head())
