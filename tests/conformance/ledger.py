"""What every `Ledger` does: the twin and a real chain both have to pass all CHECKS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dfl_ledger.errors import ChainUnreachable, InsufficientFunds
from dfl_ledger.merkle import RewardTree
from dfl_ledger.records import Cid, Kind, Phase
from tests.conformance.ledger_modes import MODE_CHECKS
from tests.conformance.ledger_money import MONEY_CHECKS
from tests.conformance.ledger_panels import PANEL_CHECKS
from tests.conformance.ledger_story import (
    BUDGET,
    ETHER,
    STAKE,
    TERMS,
    UNKNOWN_JOB,
    World,
    cid,
    claim,
    commit_all,
    leaf,
    member,
    play_round,
    refused,
    reveal_all,
    salt,
    settlement,
    state,
    turns,
    whole_life_of_a_job,
    work,
)


def check_whole_life_of_a_job(world: World) -> None:
    job, events = whole_life_of_a_job(world)
    of_job = [event for event in events if event.args.get("job") == job]
    assert [event.name for event in of_job if event.contract == "TrainingJobs"] == [
        *("JobCreated", "PhaseChanged", "PayeeAdded", "NodeJoined", "PayeeAdded", "NodeJoined"),
        *("PhaseChanged", "RoundOpened", "PayeeAdded", "NodeJoined"),
        *("ContributionCommitted", "ContributionCommitted", "PhaseChanged"),
        *("ContributionRevealed", "ContributionRevealed", "PhaseChanged", "ModelPublished"),
        *("PhaseChanged", "RoundOpened", "ContributionCommitted", "RoundVoided", "PhaseChanged"),
        *("NodeJoined", "NodeJoined", "NodeJoined", "PhaseChanged", "RoundOpened"),
        *("ContributionCommitted", "ContributionCommitted", "ContributionCommitted", "PhaseChanged"),
        *("ContributionRevealed", "ContributionRevealed", "PhaseChanged", "ModelPublished", "JobEnded"),
        "Refunded",
    ]
    assert [event.name for event in of_job if event.contract == "RewardDistributor"] == [
        *("Settled", "Settled", "Claimed", "Claimed", "Claimed", "Claimed")
    ]
    assert [(e.block, e.log_index) for e in events] == sorted((e.block, e.log_index) for e in events)


def check_registration(world: World) -> None:
    ledger = world.wallet(vnx_wei=10 * ETHER)
    assert ledger.node(ledger.address) is None
    key = bytes(range(32))
    start = ledger.head()
    ledger.register(key, 4 * ETHER, ["/ip4/10.0.0.1/tcp/1"])
    addrs = ("/ip4/10.0.0.2/tcp/2", "/ip4/10.0.0.3/tcp/3")
    receipt = ledger.register(key, ETHER, addrs)
    assert receipt.block == ledger.head() > start
    record = ledger.node(ledger.address)
    assert record is not None
    assert (record.peer_key, record.stake_wei, record.unbond_at, record.boot_addrs) == (
        key,
        5 * ETHER,
        0,
        addrs,
    )
    assert ledger.balance_wei(ledger.address) == 5 * ETHER
    assert set(addrs) <= set(ledger.boot_addrs())
    assert "/ip4/10.0.0.1/tcp/1" not in ledger.boot_addrs()

    newest = ledger.events(start + 1, ledger.head())[-1]
    assert (newest.tx, newest.block, newest.contract) == (receipt.tx, receipt.block, "NodeRegistry")
    assert newest.name == "NodeRegistered"
    assert newest.args == {
        "node": ledger.address,
        "peerKey": "0x" + key.hex(),
        "stake": 5 * ETHER,
        "bootAddrs": list(addrs),
    }

    with refused("InvalidPeerKey", node=ledger.address):
        ledger.register(bytes(32), 0, [])
    with refused("TooManyBootAddrs", count=9, most=8):
        ledger.register(key, 0, ["/ip4/1.1.1.1/tcp/1"] * 9)
    with refused("InvalidBootAddr", index=1, length=257):
        ledger.register(key, 0, ["/dns/a", "x" * 257])
    with pytest.raises(InsufficientFunds, match=f"{6 * ETHER}.*{5 * ETHER}"):
        ledger.register(key, 6 * ETHER, [])


def check_joining(world: World) -> None:
    requester, stranger, poor, a, b = (
        world.wallet(),
        world.wallet(),
        world.wallet(),
        member(world),
        member(world),
    )
    poor.register(b"k" * 32, STAKE - 1, [])
    job = requester.create_job(TERMS)
    for act in (a.join, a.advance, a.cancel, a.refund):
        with refused("JobUnknown", job=UNKNOWN_JOB):
            act(UNKNOWN_JOB)
    assert a.job(UNKNOWN_JOB) is None
    assert a.active_round(UNKNOWN_JOB, a.address) == 0
    assert a.publication(UNKNOWN_JOB, 1) is None
    assert a.refundable_wei(UNKNOWN_JOB) == 0
    with refused("NodeNotBonded", node=stranger.address):
        stranger.join(job)
    with refused("StakeTooLow", stake=STAKE - 1, required=STAKE):
        poor.join(job)
    a.join(job)
    with refused("AlreadyJoined", node=a.address, round=1):
        a.join(job)
    with refused("WrongPhase", phase=int(Phase.OPEN)):
        a.commit(work(a, job), salt(a))
    b.join(job)
    assert state(a, job).phase is Phase.COMMIT
    with refused("AlreadyJoined", node=b.address, round=1):
        b.join(job)


def check_contributions(world: World) -> None:
    requester, a, b, c = world.wallet(), member(world), member(world), member(world)
    job = requester.create_job(TERMS)
    a.join(job)
    b.join(job)
    c.join(job)
    with refused("WrongRound", round=2, current=1):
        a.commit(replace(work(a, job), round=2), salt(a))
    commit_all((a,), job)
    with refused("AlreadyCommitted", node=a.address):
        a.commit(replace(work(a, job), samples=1), salt(a))
    with refused("WrongPhase", phase=int(Phase.COMMIT)):
        a.reveal(work(a, job), salt(a))
    commit_all((b,), job)
    for false in (
        replace(work(a, job), cid=cid("other")),
        replace(work(a, job), samples=641),
        replace(work(a, job), kind=Kind.HOP),
    ):
        with refused("CommitmentMismatch", node=a.address):
            a.reveal(false, salt(a))
    with refused("CommitmentMismatch", node=a.address):
        a.reveal(work(a, job), bytes(32))
    with refused("NotCommitted", node=c.address):
        c.reveal(work(c, job), salt(c))
    reveal_all((a,), job)
    with refused("AlreadyRevealed", node=a.address):
        a.reveal(work(a, job), salt(a))
    with refused("WrongPhase", phase=int(Phase.REVEAL)):
        a.publish_model(job, 1, cid("early"))
    world.reach(state(a, job).deadline)
    with refused("DeadlinePassed", job=job):
        b.reveal(work(b, job), salt(b))

    # One reveal of two is below the quorum: void. Whoever revealed or came late is in the next round.
    a.advance(job)
    now = state(a, job)
    assert (now.phase, now.round, now.expected) == (Phase.COMMIT, 2, 2)
    assert [x.active_round(job, x.address) for x in (a, b, c)] == [2, 1, 2]

    # A round without a model is void too; then all who revealed go on.
    commit_all((a, c), job)
    reveal_all((a, c), job)
    late = turns((a, c), job)[0][1]
    world.reach(state(a, job).deadline)
    with refused("DeadlinePassed", job=job):
        late.publish_model(job, 2, cid("late"))
    b.advance(job)
    now = state(a, job)
    assert (now.phase, now.round, now.completed, now.model) == (Phase.COMMIT, 3, 0, TERMS.model)
    assert now.expected == 2


def check_joining_ahead_of_the_reveal_counts_once(world: World) -> None:
    requester, a, b = world.wallet(), member(world), member(world)
    job = requester.create_job(TERMS)
    a.join(job)
    b.join(job)
    commit_all((a, b), job)
    a.join(job)
    assert a.active_round(job, a.address) == 2
    with refused("AlreadyJoined", node=a.address, round=2):
        a.join(job)
    reveal_all((a, b), job)
    turns((a, b), job)[0][1].publish_model(job, 1, cid("model 1"))
    assert state(a, job).expected == 2


def check_failing(world: World) -> None:
    requester, a = world.wallet(), member(world)
    empty = requester.create_job(TERMS)
    a.join(empty)
    world.reach(state(a, empty).deadline)
    a.advance(empty)
    assert state(a, empty).phase is Phase.FAILED
    with refused("WrongPhase", phase=int(Phase.FAILED)):
        a.join(empty)
    with refused("WrongPhase", phase=int(Phase.FAILED)):
        a.advance(empty)
    a.refund(empty)

    # Three void rounds in a row end a job.
    single = requester.create_job(replace(TERMS, min_nodes=1, quorum=1, rounds=3))
    for _ in range(3):
        a.join(single)
        assert state(a, single).phase is Phase.COMMIT
        with refused("WrongPhase", phase=int(Phase.COMMIT)):
            a.refund(single)
        world.reach(state(a, single).deadline)
        a.advance(single)
    assert state(a, single).phase is Phase.FAILED
    a.refund(single)
    assert requester.balance_wei(requester.address) == 1000 * ETHER


def check_cancelling(world: World) -> None:
    requester, a = world.wallet(), member(world)
    terms = replace(TERMS, min_nodes=1, quorum=1)
    at_once = requester.create_job(terms)
    with refused("NotRequester", caller=a.address):
        a.cancel(at_once)
    requester.cancel(at_once)
    assert state(a, at_once).phase is Phase.CANCELLED
    requester.refund(at_once)
    assert requester.balance_wei(requester.address) == 1000 * ETHER

    later = requester.create_job(terms)
    a.join(later)
    requester.cancel(later)
    assert state(a, later).phase is Phase.COMMIT
    with refused("CancelAlreadyRequested", job=later):
        requester.cancel(later)
    play_round((a,), later)
    assert (state(a, later).phase, state(a, later).completed) == (Phase.CANCELLED, 1)
    # The round that was played may still be settled: its budget stays, the other goes back.
    assert a.refundable_wei(later) == BUDGET
    requester.refund(later)
    assert state(a, later).refunded_wei == BUDGET
    world.reach(a.now() + TERMS.settle_window_s + 2 * TERMS.score_window_s)
    with refused("SettleWindowPassed", round=1):
        a.settle(settlement(later, 1, RewardTree([leaf(a.address, 1, 1)])))
    requester.refund(later)
    assert requester.balance_wei(requester.address) == 1000 * ETHER


def check_settling(world: World) -> None:
    requester, a, b = world.wallet(), member(world), member(world)
    job = requester.create_job(TERMS)
    a.join(job)
    b.join(job)
    tree = RewardTree([leaf(a.address, BUDGET, BUDGET), leaf(b.address, 0, 0)])
    with refused("RoundNotPublished", round=1):
        a.settle(settlement(job, 1, tree))
    publisher = play_round((a, b), job)
    other = b if publisher is a else a
    too_much = RewardTree([leaf(a.address, BUDGET, BUDGET + 1), leaf(b.address, 0, 0)])
    with refused("TotalOutOfRange", total=BUDGET + 1, least=0, most=BUDGET):
        publisher.settle(settlement(job, 1, too_much))
    with refused("NotSettled", round=1):
        claim(a, job, 1, tree, a.address)

    # Whoever has the stake may settle; the next round runs meanwhile.
    with refused("SettlerStakeTooLow", settler=requester.address):
        requester.settle(settlement(job, 1, tree))
    other.settle(settlement(job, 1, tree))
    with refused("RoundPassed", round=1, lastSettled=1):
        publisher.settle(settlement(job, 1, tree))

    settled = a.settlement(job, 1)
    assert settled is not None
    world.reach(settled.claimable_at)
    forged = replace(tree.leaves[0], account=b.address)
    with refused("InvalidProof", account=b.address):
        b.claim(job, 1, forged, tree.proof(0))
    with refused("InvalidProof", account=a.address):
        b.claim(job, 1, tree.leaves[0], ())
    claim(b, job, 1, tree, a.address)
    with refused("NothingToClaim", account=a.address):
        claim(a, job, 1, tree, a.address)


def check_terms(world: World) -> None:
    requester = world.wallet()
    for term, value, wrong in (
        ("spec", 0, replace(TERMS, spec=Cid.from_digest(bytes(32)))),
        ("rounds", 0, replace(TERMS, rounds=0)),
        ("quorum", 0, replace(TERMS, quorum=0)),
        ("minNodes", 1, replace(TERMS, min_nodes=1)),
        ("openWindow", 0, replace(TERMS, open_window_s=0)),
        ("commitWindow", 30 * 86400, replace(TERMS, commit_window_s=30 * 86400)),
        ("settleWindow", 1, replace(TERMS, settle_window_s=1)),
        ("challengeWindow", 0, replace(TERMS, challenge_window_s=0)),
        ("roundBudget", 0, replace(TERMS, round_budget_wei=0)),
    ):
        with refused("TermOutOfRange", term=term, value=value):
            requester.create_job(wrong)
    with pytest.raises(InsufficientFunds, match=f"{1100 * ETHER}.*{1000 * ETHER}"):
        requester.create_job(replace(TERMS, rounds=11))
    assert requester.balance_wei(requester.address) == 1000 * ETHER
    job = requester.create_job(TERMS)
    assert state(requester, job).terms == TERMS
    assert state(requester, job).requester == requester.address


def check_no_coin_for_gas(world: World) -> None:
    ledger = world.wallet(native_wei=0)
    assert ledger.native_wei(ledger.address) == 0
    with pytest.raises(InsufficientFunds, match="wei of the chain's coin, available are 0 wei"):
        ledger.register(b"k" * 32, 0, [])
    assert ledger.node(ledger.address) is None


def check_time(world: World) -> None:
    ledger = world.wallet()
    head, now = ledger.head(), ledger.now()
    world.reach(now + 1000)
    assert now + 1000 <= ledger.now() < now + 1100
    ledger.register(b"k" * 32, 0, [])
    assert ledger.head() > head
    assert ledger.events(ledger.head() + 1, ledger.head() + 5) == []


def check_blocks(world: World) -> None:
    ledger = world.wallet()
    before = ledger.block()
    assert before == ledger.block(before.number) == ledger.block(ledger.head())
    receipt = ledger.register(b"k" * 32, 0, [])
    after = ledger.block()
    assert (after.number, before) == (receipt.block, ledger.block(before.number))
    assert after.timestamp >= before.timestamp > 0
    assert len({before.hash, after.hash}) == 2
    (event,) = ledger.events(after.number, after.number)
    assert event.block_hash == after.hash
    with pytest.raises(ChainUnreachable):
        ledger.block(after.number + 1000)


CHECKS: tuple[Callable[[World], None], ...] = (
    check_whole_life_of_a_job,
    check_registration,
    check_joining,
    check_contributions,
    check_joining_ahead_of_the_reveal_counts_once,
    check_failing,
    check_cancelling,
    check_settling,
    check_terms,
    check_no_coin_for_gas,
    check_time,
    check_blocks,
    *MODE_CHECKS,
    *PANEL_CHECKS,
    *MONEY_CHECKS,
)
