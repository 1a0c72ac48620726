"""Who conducts, whom one obeys, the order of work in a step, and who is believed."""

from __future__ import annotations

import random

import pytest

from dfl_ledger.errors import VerificationFailed
from dfl_ledger.records import Address, Cid, JobId
from dfl_node.modes.pipeline.plan import (
    STRIKES,
    Backward,
    Docket,
    Forward,
    Patience,
    Plan,
    RunId,
    Seat,
    committers,
    conducting_order,
    one_forward_one_backward,
)

A, B, C, D = (Address(name) for name in "ABCD")
RUN = RunId(JobId(1), 1, Cid.of(b"parent", 0x70))


# -- conducting ---------------------------------------------------------------------------------------------
def test_the_conducting_order_is_everybodys_whatever_the_order_of_the_members() -> None:
    assert conducting_order(RUN, [A, B, C, D]) == conducting_order(RUN, [D, B, A, C])
    orders = {conducting_order(RunId(RUN.job, round_, RUN.parent), [A, B, C, D]) for round_ in range(40)}
    assert len({order[0] for order in orders}) == 4  # everybody's turn comes


@pytest.mark.parametrize("seed", range(20))
def test_of_any_seats_exactly_one_outranks_all_others(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    seats = {(draw.randrange(4), draw.randrange(5)) for _ in range(6)}
    claims = [Seat(epoch, rank, Address(f"node {rank}")) for epoch, rank in seats]
    best = [seat for seat in claims if all(seat.outranks(other) for other in claims if other != seat)]
    assert len(best) == 1
    assert not best[0].outranks(best[0])
    assert best[0].epoch == max(seat.epoch for seat in claims)


def test_every_wait_fits_in_the_commit_window() -> None:
    for window_s in (15, 30, 120, 3600, 86_400):
        patience = Patience.within(window_s)
        # a conductor dies at once, the next takes over, places, and one stage dies in the middle
        first_s = patience.silence_s + patience.takeover_s + patience.gather_s
        assert first_s + patience.stall_s + patience.wrap_up_s < window_s


# -- the order of work --------------------------------------------------------------------------------------
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 8])
def test_one_forward_one_backward_never_waits_in_a_circle_nor_keeps_too_much(
    stages: int, micro_batches: int
) -> None:
    """Played by hand: a forward needs the one before it above, a backward needs the one after it below."""
    todo = [list(one_forward_one_backward(stage, stages, micro_batches)) for stage in range(stages)]
    forward = [0] * stages  # micro-batches done, in order
    backward = [0] * stages
    while any(todo):
        moved = False
        for stage in range(stages):
            if not todo[stage]:
                continue
            match todo[stage][0]:
                case Forward(micro) if stage == 0 or forward[stage - 1] > micro:
                    assert micro == forward[stage]
                    forward[stage] += 1
                case Backward(micro) if (
                    backward[stage + 1] > micro if stage < stages - 1 else forward[stage] > micro
                ):
                    assert micro == backward[stage]
                    backward[stage] += 1
                case _:
                    continue
            todo[stage].pop(0)
            moved = True
            assert forward[stage] - backward[stage] <= stages - stage
        assert moved, "deadlock"
    assert forward == backward == [micro_batches] * stages


# -- plans --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [
        {"conductor": B},
        {"cuts": ()},
        {"holders": (A,)},
        {"holders": (A, Address("a stranger"))},
        {"step": 3},
        {"snapshots": (RUN.parent, RUN.parent)},
        {"step": 12, "snapshots": (RUN.parent, RUN.parent)},
    ],
)
def test_a_plan_that_cannot_stand_is_refused(change: dict[str, object]) -> None:
    fine = {
        "epoch": 1,
        "conductor": A,
        "cuts": ("x",),
        "holders": (A, B),
        "step": 0,
        "snapshots": (),
        "goal": 10,
    }
    Plan(**fine).check(A, 2, [A, B])  # type: ignore[arg-type]
    with pytest.raises(VerificationFailed):
        Plan(**fine | change).check(A, 2, [A, B])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("holders", "living", "expected"),
    [
        ((A, B), (A, B, C, D), (A, B)),
        ((A, B), (A, C, D), (A, C)),  # B is dead
        ((A, A), (A, C, D), (A, C)),  # one node, two stages
        ((A, B), (A, D), (A, D)),  # the conductor last
        ((A, B), (A,), None),
    ],
)
def test_every_stage_has_a_committer_of_its_own(
    holders: tuple[Address, ...], living: tuple[Address, ...], expected: tuple[Address, ...] | None
) -> None:
    assert committers(holders, living, conductor=D) == expected


# -- trust --------------------------------------------------------------------------------------------------
def test_who_is_accused_goes_and_who_accuses_two_goes_itself() -> None:
    docket = Docket().accused(A, B)
    assert docket.excluded == {B}
    docket = docket.accused(A, C)
    assert docket.excluded == {A}
    assert docket.accused(D, B).excluded == {A, B}


def test_a_node_may_fail_now_and_then_but_not_again_and_again() -> None:
    docket = Docket()
    for _ in range(STRIKES - 1):
        docket = docket.failed(A)
    assert not docket.excluded
    assert docket.failed(A).excluded == {A}
