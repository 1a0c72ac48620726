"""What comes over a line or in a file is built only of what it must be made of."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest

from dfl_ledger import codec
from dfl_ledger.errors import VerificationFailed
from dfl_ledger.records import Address, Cid, JobId
from dfl_node.modes.pipeline import frames
from dfl_node.modes.pipeline.files import Record, StageFile, StageHeader
from dfl_node.modes.pipeline.frames import End, Frame, Loss, Tensor
from dfl_node.modes.pipeline.messages import (
    Ask,
    Beat,
    Call,
    Go,
    Kept,
    Message,
    Offer,
    Reached,
    Ready,
    Refusal,
    Trouble,
    pack,
    unpack,
)
from dfl_node.modes.pipeline.plan import Finish, Plan, Point, Turn
from dfl_node.train.stage import Array

A, B = Address("A"), Address("B")
CID = Cid.of(b"file", 0x70)
POINT = Point(3, A, 8, ("x",), (A, B), (CID, CID), (0.5, 0.25))
TURN = Turn(1, A, (A, B), 0, "the run begins", 0.0)
FINISH = Finish(4, POINT, (A, B))
MESSAGES: list[Message] = [
    Ask(1, 2, CID, 3),
    Call(1, 2, CID, 3, 0, "above"),
    Offer(3, 1 << 40, 1e9, POINT, None, (TURN,)),
    Offer(3, 0, 0.0, None, FINISH, ()),
    Refusal(2, True),
    Ready(1, 0),
    Kept(1, 0, 4, CID),
    Trouble(1, 0, 1, "misbehaved", "NaN"),
    Beat(1, 4, False),
    Plan(1, A, ("x",), (A, B), 0, (), 10),
    Go(1),
    Reached(POINT, (TURN,)),
    FINISH,
]
FRAMES: list[Frame] = [
    Tensor(3, 1, Array((2, 3), "F32", bytes(24))),
    Tensor(0, 0, Array((5,), "I64", bytes(40))),
    Loss(2, 1, 0.75),
    End(7),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_come_back_as_they_went(message: Message) -> None:
    assert unpack(pack(message)) == message


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"kind": "go"},
        {"kind": "go", "body": {}},
        {"kind": "go", "body": {"epoch": -1}},
        {"kind": "go", "body": {"epoch": True}},
        {"kind": "go", "body": {"epoch": 1, "more": 1}},
        {"kind": "go", "body": {"epoch": "1"}},
        {"kind": 3, "body": {}},
        {"kind": "unheard", "body": {}},
        {"kind": "trouble", "body": {"epoch": 1, "stage": 0, "blames": 0, "kind": "x", "why": "y" * 401}},
        {"kind": "kept", "body": {"epoch": 1, "stage": 0, "step": 4, "cid": str(CID)}},
    ],
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(VerificationFailed):
        unpack(codec.encode(value))


@pytest.mark.parametrize("seed", range(50))
def test_damaged_messages_and_frames_are_refused_and_nothing_else(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    for body, read in [(pack(m), unpack) for m in MESSAGES] + [
        (frames.encode(f), frames.decode)  # type: ignore[list-item]
        for f in FRAMES
    ]:
        damaged = bytearray(body)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            read(bytes(damaged[: draw.randint(0, len(damaged))]))
        except VerificationFailed:
            continue


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_frames_come_back_as_they_went(frame: Frame) -> None:
    assert frames.decode(frames.encode(frame)) == frame


@pytest.mark.parametrize(
    "body",
    [
        b"",
        frames.encode(End(1)) + b"x",
        frames.encode(FRAMES[0])[:-1],
        frames.encode(Loss(1, 1, float("nan"))),
        struct.pack("<BIIBB2I", 0, 1, 1, 0, 2, 1 << 31, 1 << 31),  # 2^64 bytes, it says
        struct.pack("<BIIBB", 0, 1, 1, 0, 255),
        struct.pack("<BIIBB", 0, 1, 1, 9, 0),
        struct.pack("<BII", 7, 1, 1),
    ],
)
def test_frames_that_are_none_are_refused(body: bytes) -> None:
    with pytest.raises(VerificationFailed):
        frames.decode(body)


# -- files --------------------------------------------------------------------------------------------------
HEADER = StageHeader(JobId(1), 2, CID, 3, A, ("x",), 1, 8)


def test_a_stage_file_is_its_header_and_the_snapshot() -> None:
    file = StageFile(HEADER, b"snapshot")
    assert StageFile.decode(file.encode()) == file


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xff\xff\xff" + bytes(100),
        struct.pack("<I", 4) + b"abcd",
        struct.pack("<I", 1) + codec.encode({}) + b"snapshot",
        struct.pack("<I", 100_000) + bytes(100_000),
    ],
)
def test_a_stage_file_of_anybody_is_refused_by_its_header(data: bytes) -> None:
    with pytest.raises(VerificationFailed):
        StageFile.decode(data)


def test_a_record_comes_back_as_it_went_and_nothing_else_is_one() -> None:
    record = Record(JobId(1), 2, CID, FINISH, (replace(POINT, losses=()),), (TURN,), (0.5, 0.25))
    assert Record.decode(record.encode()) == record
    for bad in (codec.encode({}), codec.encode([]), pack(FINISH), b"junk"):
        with pytest.raises(VerificationFailed):
            Record.decode(bad)
