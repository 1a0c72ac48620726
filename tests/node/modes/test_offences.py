"""Who has to be reported, from the rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dfl_ledger import vectors
from dfl_ledger.facts import Ballot, Piece, RoundFacts, Shares
from dfl_ledger.median import is_outlier
from dfl_ledger.records import RAW, REFUSED, Address, Cid, JobId, Payee
from dfl_ledger.rows_rewards import PanelRow, SeatRow
from dfl_node.modes import offences
from dfl_node.rounds.vocabulary import Offence, Wrong

A, B, C, D = (Address(f"0x{digit * 40}") for digit in "1234")
MILLI = 10**6
HIGH = 500 * MILLI


def facts(maker: Address, votes: dict[Address, Sequence[int] | None]) -> RoundFacts:
    """A round with one piece; each vote is its score and the verdict on the model."""
    cid = Cid.of(b"a file", RAW)
    ballots = tuple(
        Ballot(node, 10, None if vote is None else vectors.encode(vote)) for node, vote in votes.items()
    )
    pieces, payees = (Piece(maker, cid, 8),), (Payee(maker, 0),)
    return RoundFacts(JobId(1), 1, cid, cid, Shares(100), pieces, (), 0, ballots, payees)


def found(
    round_: RoundFacts, publisher: Address | None = None, *, known: bool = False
) -> list[tuple[Wrong, Address]]:
    done = "0x" if known else None
    seats = tuple(
        SeatRow(seat, own.evaluator, own.weight, "0x", own.vector and "0x", own.vector, done, done)  # type: ignore[arg-type]
        for seat, own in enumerate(round_.ballots)
    )
    panel = PanelRow(JobId(1), 1, 0, 2, 1, "0x", seats)
    return [
        (o.wrong, o.node) for o in offences.of_panel(round_, panel, publisher, denounced=known, declined=())
    ]


def test_a_score_that_most_of_the_panel_deny_is_reported_once() -> None:
    round_ = facts(D, {A: (HIGH, 1), B: (0, 1), C: (HIGH + MILLI, 1)})
    assert found(round_) == [(Wrong.OUTLIER, B)]
    assert found(round_, known=True) == []
    assert found(facts(D, {A: (HIGH, 1), B: (REFUSED, 1), C: (HIGH, 1)})) == [(Wrong.OUTLIER, B)]


def test_of_two_who_disagree_neither_is_reported() -> None:
    """The lower one is the median, but it is the word of one: it may be the liar's."""
    round_ = facts(A, {A: (HIGH, 1), B: (0, 1), C: (HIGH, 1)})
    assert round_.median(0, A) == 0
    assert is_outlier(HIGH, 0)
    assert found(round_) == []


def test_who_judges_its_own_piece_otherwise_is_no_outlier() -> None:
    assert found(facts(A, {A: (9 * HIGH, 1), B: (HIGH, 1), C: (HIGH, 1)})) == []


def test_silence_on_a_panel_is_reported() -> None:
    round_ = facts(D, {A: (HIGH, 1), B: None, C: (HIGH, 1)})
    assert found(round_) == [(Wrong.SCORES_WITHHELD, B)]
    assert found(round_, known=True) == []


def test_a_model_is_false_if_more_than_half_of_the_others_say_so() -> None:
    assert found(facts(D, {A: (5, -1), B: (5, -1), C: (5, 1)}), C) == [(Wrong.FALSE_MODEL, C)]
    assert found(facts(D, {A: (5, -1), B: (5, 1), C: (5, 1)}), C) == []
    assert found(facts(D, {A: (5, -1), B: (5, 0), C: (5, 0)}), D) == []
    assert found(facts(D, {A: (5, -1), B: (5, -1), C: (5, 1)}), C, known=True) == []


def test_an_audit_failed_if_more_than_half_of_the_others_say_so() -> None:
    def failed(*verdicts: int) -> bool:
        votes = {node: (5, verdict, 1) for node, verdict in zip((A, B, C), verdicts, strict=True)}
        round_ = replace(facts(C, votes), audits=1)
        return offences.of_audits(round_, {0: C}) == [Offence(Wrong.AUDIT_FAILED, C, 1)]

    assert failed(-1, -1, 1), "its own word does not count"
    assert not failed(-1, 1, -1)
    assert not failed(-1, 0, -1), "a doubt is for the accused"
    assert not failed(0, 0, 0)
    known = replace(facts(C, {A: (5, -1, 1), B: (5, -1, 1)}), audits=1)
    assert offences.of_audits(known, {}) == []


def test_reporters_stand_in_line_and_the_accused_does_not() -> None:
    offence = Offence(Wrong.OUTLIER, B, 1, 1)
    others = (A, B, C, D)
    assert sorted(offences.rank(offence, me, others) for me in (A, C, D)) == [0, 1, 2]
    assert offences.rank(offence, Address("0x" + "9" * 40), others) == 3
