"""`dfl-node job draw`: the graph that a job's rows make."""

from __future__ import annotations

import pytest

from dfl_ledger.records import Address, Cid, JobId
from dfl_ledger.rows import ContributionRow, JobRow, RoundRow
from dfl_node import drawing
from dfl_node.drawing import Edge

A, B = Address("0xAAAAAAAA" + "0" * 32), Address("0xBBBBBBBB" + "0" * 32)


def cid(name: str) -> str:
    return str(Cid.of(name.encode(), 0x70))


def piece(
    index: int, node: Address, parent: str, name: str, *, accepted: bool | None = True, why: str = ""
) -> ContributionRow:
    score = None if accepted is None else 0.25
    return ContributionRow(
        f"1.1.{index}",
        node,
        JobId(1),
        1,
        "update",
        cid(name),
        cid(parent),
        64,
        score,
        1,
        accepted,
        why,
        "0x",
        9,
    )


def job(*, model: str | None, state: str = "settled", mode: str = "sync") -> JobRow:
    published = None if model is None else cid(model)
    round_ = RoundRow(
        1, state, cid("first"), published, A if model else None, 2, 2, 2, 1, 2, None, 3, None, None, None
    )
    newest = published or cid("first")
    numbers = (1, 1, 1, 2, 2, 10, 0, 0, 0, False, 0, 2, 1, None, "0x")
    return JobRow(JobId(1), A, cid("spec"), newest, mode, "completed", *numbers, (round_,))


def test_updates_lead_from_their_parent_to_the_model_they_became() -> None:
    pieces = [piece(0, A, "first", "u1"), piece(1, B, "first", "u2")]
    edges = drawing.graph(job(model="second"), pieces)
    assert {(e.source, e.target) for e in edges} == {
        (cid("first"), cid("u1")),
        (cid("first"), cid("u2")),
        (cid("u1"), cid("second")),
        (cid("u2"), cid("second")),
    }


def test_a_refused_piece_leads_nowhere() -> None:
    pieces = [piece(0, A, "first", "u1"), piece(1, B, "first", "u2", accepted=False, why="holds NaN")]
    edges = drawing.graph(job(model="second"), pieces)
    assert cid("u2") not in {e.source for e in edges}
    assert [e.counts for e in edges if e.target == cid("u2")] == [False]


def test_hops_are_a_chain_whose_last_accepted_file_is_the_model() -> None:
    pieces = [piece(0, A, "first", "hop1"), piece(1, B, "hop1", "hop2")]
    edges = drawing.graph(job(model="hop2", mode="chained"), pieces)
    assert [(e.source, e.target) for e in edges] == [
        (cid("first"), cid("hop1")),
        (cid("hop1"), cid("hop2")),
    ]


def test_the_text_names_every_file_and_who_made_it() -> None:
    shown = drawing.text(job(model="second"), [piece(0, A, "first", "u1"), piece(1, B, "other", "u2")])
    for name in ("first", "u1", "u2", "second"):
        assert cid(name)[-8:] in shown
    assert "0xAAAAAA…" in shown
    assert f"from {cid('other')[-8:]}" in shown.replace("…", "")


@pytest.mark.parametrize("why", ['ends"label', "new\nline", "back\\slash"])
def test_a_refusal_quoted_from_a_strangers_file_cannot_break_the_drawing(why: str) -> None:
    drawn = drawing.dot(job(model=None, state="void"), [piece(0, B, "first", "u2", accepted=False, why=why)])
    (line,) = [line for line in drawn.splitlines() if "refused" in line]
    assert line.count('"') == 6
    assert "\\" not in line


def test_a_void_round_counts_for_nothing() -> None:
    edges = drawing.graph(job(model=None, state="void"), [piece(0, A, "first", "u1", accepted=None)])
    assert edges == (Edge(cid("first"), cid("u1"), edges[0].label, False),)
