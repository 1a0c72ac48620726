"""What an evaluator does about the rounds it judges, and the requester about what they are judged on.

Judging runs beside the rounds: the next one trains meanwhile. It takes the trainer's process, so it waits for
a training that is under way, but for no longer than half of its window.
"""

from __future__ import annotations

from dfl_node.rounds.vocabulary import Action, ChainMoved, Judge, Seat, Show, Unseal


def judgements(chain: ChainMoved, now: float, *, busy: bool) -> list[Action]:
    """The oldest round that waits for our scores: one at a time, for one trainer makes them."""
    seat = _next(chain, now)
    if seat is None or (busy and now < pressing_from(seat)):
        return []
    return [Judge(seat.round, seat.panel)]


def shown(chain: ChainMoved, now: float) -> list[Action]:
    """What costs no measurement: scores that we are bound to, and a shard whose time has come."""
    actions: list[Action] = [
        Show(seat.round, seat.panel)
        for seat in chain.seats
        if seat.showing and seat.committed and not seat.revealed and now < seat.show_until
    ]
    if chain.sealed is not None:
        actions.append(Unseal(chain.sealed))
    return actions


def wake_times(chain: ChainMoved) -> list[float]:
    """When something above may change though nothing happens."""
    return [
        at
        for seat in chain.seats
        for at in (pressing_from(seat), float(seat.judge_until), float(seat.show_until), seat.sealed_until)
    ]


def pending(chain: ChainMoved, now: float) -> bool:
    """True while a seat of ours may still ask for something."""
    return any(
        (not seat.committed and now < seat.judge_until)
        or (seat.committed and not seat.revealed and now < seat.show_until)
        for seat in chain.seats
    )


def pressing_from(seat: Seat) -> float:
    """From then on a judgement waits for no training: half of our time for it has gone."""
    return (seat.judge_from + seat.judge_until) / 2


def _next(chain: ChainMoved, now: float) -> Seat | None:
    due = (
        seat
        for seat in chain.seats
        if seat.judging and not seat.committed and seat.sealed_until <= now < seat.judge_until
    )
    return next(due, None)
