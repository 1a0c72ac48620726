"""What every `Ledger` does in modes with a target, and in laps. Part of the CHECKS in ledger.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from dfl_ledger.ledger import Ledger
from dfl_ledger.records import JobId, Kind, Lease, Mode, Phase
from tests.conformance.ledger_story import (
    TERMS,
    World,
    cid,
    commit_all,
    member,
    play_round,
    refused,
    reveal_all,
    salt,
    state,
    turns,
    work,
)

ASYNC = replace(TERMS, mode=Mode.ASYNC, min_nodes=3, target=2, rounds=3)
CHAINED = replace(TERMS, mode=Mode.CHAINED, min_nodes=3)


def check_a_target_ends_the_phase_and_members_stand(world: World) -> None:
    requester, a, b, c = world.wallet(), *(member(world) for _ in range(3))
    job = requester.create_job(ASYNC)
    for ledger in (a, b, c):
        ledger.join(job)
    play_round((a, b), job)
    now = state(a, job)
    assert (now.phase, now.round, now.expected) == (Phase.COMMIT, 2, 3)
    assert (a.active_round(job, a.address), c.active_round(job, c.address)) == (1, 1)
    with refused("AlreadyJoined", node=c.address, round=1):
        c.join(job)
    play_round((b, c), job)
    assert not c.revealed(job, 1, c.address)
    assert c.revealed(job, 2, c.address)
    assert not a.committed(job, 2, a.address)


def check_terms_of_modes(world: World) -> None:
    requester = world.wallet()
    for wrong, least, most in (
        (replace(ASYNC, target=1), 2, 3),
        (replace(ASYNC, target=4), 2, 3),
        (replace(TERMS, mode=Mode.PIPELINE), 2, 2),
        (replace(CHAINED, target=3), 0, 0),
    ):
        with refused("TermOutOfRange", term="target", value=wrong.target, least=least, most=most):
            requester.create_job(wrong)


def check_only_ASYNC_takes_an_older_parent(world: World) -> None:
    for mode in (Mode.ASYNC, Mode.PIPELINE):
        requester, a, b = world.wallet(), member(world), member(world)
        job = requester.create_job(replace(TERMS, mode=mode, target=2))
        for ledger in (a, b):
            ledger.join(job)
        late = replace(work(a, job), parent=cid("an older model"))
        a.commit(late, salt(a))
        b.commit(work(b, job), salt(b))
        if mode is Mode.ASYNC:
            a.reveal(late, salt(a))
            assert a.revealed(job, 1, a.address)
            assert a.events(0, a.head())[-1].args["parent"] == "0x" + late.parent.digest.hex()
            with refused("CommitmentMismatch", node=b.address):
                b.reveal(replace(work(b, job), parent=late.parent), salt(b))
        else:
            with refused("ParentMismatch", job=job, round=1):
                a.reveal(late, salt(a))


def check_a_lap(world: World) -> None:
    requester, members = world.wallet(), [member(world) for _ in range(3)]
    job = requester.create_job(CHAINED)
    assert requester.lease(job) is None
    for ledger in members:
        ledger.join(job)
    first = _lease(requester, job)
    assert (first.position, first.until) == (0, state(requester, job).deadline)
    order = [_hop(members, job, accept=True, model=f"hop {place}") for place in range(3)]
    assert {ledger.address for ledger in order} == {ledger.address for ledger in members}
    now = state(requester, job)
    assert (now.phase, now.reveals, now.candidate, now.model) == (
        Phase.AGGREGATE,
        3,
        cid("hop 2"),
        cid("hop 1"),
    )
    assert requester.lease(job) is None
    hops = [e.args for e in requester.events(0, requester.head()) if e.name == "ContributionRevealed"][-3:]
    assert [hop["kind"] for hop in hops] == [int(Kind.HOP)] * 3
    parents = ["0x" + model.digest.hex() for model in (TERMS.model, cid("hop 0"), cid("hop 1"))]
    assert [hop["parent"] for hop in hops] == parents
    drawn = turns(members, job)[0][1]
    with refused("NotACandidate", job=job, round=1):
        drawn.publish_model(job, 1, cid("another"))
    drawn.publish_model(job, 1, cid("hop 2"))
    now = state(requester, job)
    assert (now.model, now.candidate, now.round, now.expected) == (cid("hop 2"), None, 2, 3)
    _hop(members, job, accept=False, model="worse")
    _hop(members, job, accept=False, model="better")
    assert state(requester, job).model == cid("hop 2")


def check_a_lease_that_runs_out(world: World) -> None:
    requester, members = world.wallet(), [member(world) for _ in range(3)]
    job = requester.create_job(CHAINED)
    for ledger in members:
        ledger.join(job)
    dead = _lease(requester, job)
    others = [ledger for ledger in members if ledger.address != dead.node]
    with refused("NotYourLease", node=others[0].address):
        others[0].hop(job, 1, True, cid("early"), 64)
    with refused("DeadlineAhead", job=job):
        others[0].advance(job)
    world.reach(dead.until)
    with refused("DeadlinePassed", job=job):
        next(ledger for ledger in members if ledger.address == dead.node).hop(job, 1, True, cid("late"), 64)
    others[0].advance(job)
    assert requester.active_round(job, dead.node) == 0
    second = _lease(requester, job)
    assert second.position == 1
    assert second.until >= dead.until + CHAINED.commit_window_s
    for place in range(2):
        _hop(others, job, accept=True, model=f"hop {place}")
    turns(others, job)[0][1].publish_model(job, 1, cid("hop 1"))
    assert state(requester, job).expected == 2


def check_a_lap_that_is_void_keeps_what_was_accepted(world: World) -> None:
    requester, members = world.wallet(), [member(world) for _ in range(3)]
    job = requester.create_job(replace(CHAINED, quorum=3))
    for ledger in members:
        ledger.join(job)
    hopped = [_hop(members, job, accept=True, model=f"hop {place}") for place in range(2)]
    world.reach(_lease(requester, job).until)
    requester.advance(job)
    now = state(requester, job)
    assert (now.phase, now.round, now.completed, now.expected) == (Phase.OPEN, 2, 0, 2)
    assert (now.model, now.candidate) == (cid("hop 0"), None)
    assert requester.lease(job) is None
    next(ledger for ledger in members if ledger not in hopped).join(job)
    assert state(requester, job).phase is Phase.COMMIT
    _hop(members, job, accept=True, model="again")
    assert state(requester, job).model == cid("hop 0")


def check_fewer_members_than_the_target_are_a_full_house(world: World) -> None:
    requester, a, b = world.wallet(), member(world), member(world)
    job = requester.create_job(replace(ASYNC, target=3))
    a.join(job)
    b.join(job)
    world.reach(state(a, job).deadline)
    a.advance(job)
    commit_all((a, b), job)
    assert state(a, job).phase is Phase.REVEAL


def check_laps_and_commitments_do_not_mix(world: World) -> None:
    requester, a, b = world.wallet(), member(world), member(world)
    lap = requester.create_job(replace(CHAINED, min_nodes=2))
    rounds = requester.create_job(TERMS)
    for job in (lap, rounds):
        for ledger in (a, b):
            ledger.join(job)
    with refused("WrongMode", job=lap, mode=int(Mode.CHAINED)):
        a.commit(work(a, lap), salt(a))
    with refused("WrongMode", job=rounds, mode=int(Mode.SYNC)):
        a.hop(rounds, 1, True, cid("hop"), 64)
    commit_all((a, b), rounds)
    reveal_all((a, b), rounds)


def _lease(ledger: Ledger, job: JobId) -> Lease:
    found = ledger.lease(job)
    if found is None:
        pytest.fail("nobody holds the lease")
    return found


def _hop(members: Sequence[Ledger], job: JobId, *, accept: bool, model: str) -> Ledger:
    """The leaseholder's hop."""
    lease = _lease(members[0], job)
    holder = next(ledger for ledger in members if ledger.address == lease.node)
    holder.hop(job, state(holder, job).round, accept, cid(model), 64)
    return holder


MODE_CHECKS = (
    check_a_target_ends_the_phase_and_members_stand,
    check_terms_of_modes,
    check_only_ASYNC_takes_an_older_parent,
    check_a_lap,
    check_a_lease_that_runs_out,
    check_a_lap_that_is_void_keeps_what_was_accepted,
    check_fewer_members_than_the_target_are_a_full_house,
    check_laps_and_commitments_do_not_mix,
)
