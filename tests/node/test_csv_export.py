"""Cells that a spreadsheet shows and does not run."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from dfl_ledger.records import JobId
from dfl_ledger.rows import ContributionRow
from dfl_node import csv_export
from tests.ledger.fake_chain import address

ROW = ContributionRow(
    id="1.2.0",
    node=address(1),
    job=JobId(1),
    round=2,
    kind="update",
    cid="bafy",
    parent="bafyparent",
    samples=640,
    score=-0.000000001,
    reward_wei=10**30,
    accepted=True,
    why="",
    tx="0x11",
    block=7,
)


@pytest.mark.parametrize(
    "hostile",
    ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", '=HYPERLINK("x")'],
)
def test_a_formula_gets_an_apostrophe(hostile: str) -> None:
    assert csv_export.harmless(hostile) == f"'{hostile}"
    (_, row) = csv.reader(
        io.StringIO(csv_export.text([csv_export.of_contribution(replace(ROW, why=hostile))]), newline="")
    )
    assert row[csv_export.COLUMNS.index("why")] == f"'{hostile}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, ""), (-0.000000001, "-0.000000001"), (True, "true"), (0, "0"), ("-5", "-5"), ("a=b", "a=b")],
)
def test_everything_else_stays_as_it_is(value: object, shown: str) -> None:
    assert csv_export.harmless(value) == shown


def test_the_form_is_that_of_rfc_4180() -> None:
    text = csv_export.text([csv_export.of_contribution(replace(ROW, why='says "no", and\r\nmore'))])
    assert text.startswith(",".join(csv_export.COLUMNS) + "\r\n")
    assert text.endswith("\r\n")
    assert '"says ""no"", and\r\nmore"' in text
    assert str(10**30) in text
