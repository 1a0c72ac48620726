"""A shard opened to a jury: each juror reads it, nobody else does, and nothing in it can be changed."""

from __future__ import annotations

import pytest

from dfl_ledger.errors import UsageError, VerificationFailed
from dfl_ledger.records import Address, JobId
from dfl_node.identity import NodeKey
from dfl_node.value import boxes

JURORS = tuple(NodeKey(bytes([n]) * 32) for n in range(3))
STRANGER = NodeKey(b"s" * 32)
NODE = Address("0x" + "1" * 40)
HERE = boxes.context(JobId(1), 2, 0, 0, NODE)
ROWS = b"rows of a shard " * 500


def sealed() -> bytes:
    return boxes.seal(ROWS, [juror.public for juror in JURORS], HERE, made_in=7)


def test_every_juror_reads_the_rows_at_its_own_seat() -> None:
    file = boxes.read(sealed())
    assert file.made_in == 7
    for seat, juror in enumerate(JURORS):
        assert file.keys[seat] == juror.public
        assert file.open(seat, juror.seed, HERE) == ROWS


def test_nobody_else_reads_them() -> None:
    data = sealed()
    assert ROWS[:32] not in data
    file = boxes.read(data)
    for seat in range(3):
        with pytest.raises(VerificationFailed, match="another key"):
            file.open(seat, STRANGER.seed, HERE)
    with pytest.raises(VerificationFailed, match="another key"):
        file.open(0, JURORS[1].seed, HERE)
    with pytest.raises(VerificationFailed, match="no box"):
        file.open(3, STRANGER.seed, HERE)


def test_a_box_opens_nothing_in_another_audit() -> None:
    places = [(JobId(2), 2, 0, 0), (JobId(1), 3, 0, 0), (JobId(1), 2, 1, 0), (JobId(1), 2, 0, 1)]
    file = boxes.read(sealed())
    for place in places:
        with pytest.raises(VerificationFailed, match="another audit"):
            file.open(0, JURORS[0].seed, boxes.context(*place, NODE))


def test_every_changed_byte_is_noticed() -> None:
    data = sealed()
    ends = (*range(0, 17 + 3 * 112, 5), len(data) - 1, len(data) - len(ROWS))
    for at in ends:
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(VerificationFailed):
            boxes.read(changed).open(0, JURORS[0].seed, HERE)


@pytest.mark.parametrize(
    "data", [b"", b"dfl boxes 1\n", b"dfl boxes 1\n\x00" + bytes(200), b"PK" + bytes(500)]
)
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationFailed):
        boxes.read(data)


def test_a_truncated_file_is_refused() -> None:
    data = sealed()
    for length in (16, 40, 200, 300, len(data) - 1):
        with pytest.raises(VerificationFailed):
            boxes.read(data[:length]).open(0, JURORS[0].seed, HERE)


def test_a_juror_who_registered_no_key_keeps_none_of_the_others_from_judging() -> None:
    keys = [JURORS[0].public, b"\xff" * 32, JURORS[2].public]
    file = boxes.read(boxes.seal(ROWS, keys, HERE, made_in=1))
    assert file.open(0, JURORS[0].seed, HERE) == file.open(2, JURORS[2].seed, HERE) == ROWS
    with pytest.raises(VerificationFailed):
        file.open(1, JURORS[1].seed, HERE)


def test_more_rows_than_a_jury_takes_are_not_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "MAX_ROWS_BYTES", len(ROWS) - 1)
    with pytest.raises(UsageError, match="too many"):
        sealed()
