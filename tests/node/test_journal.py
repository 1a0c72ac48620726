"""The journal survives a SIGKILL at any instruction, and its first word on a round stands."""

from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dfl_ledger.errors import StoreUnavailable
from dfl_ledger.records import Cid, JobId
from dfl_node.journal import Journal, RoundStats
from dfl_node.rounds.vocabulary import Work
from dfl_node.train.trainer import Verdict

JOB = JobId(7)
PARENT = Cid.of(b"parent", 0x70)
UPDATE = Cid.of(b"update", 0x70)
MODEL = Cid.of(b"model", 0x70)


def work(round_: int = 1, *, cid: Cid = UPDATE, parent: Cid = PARENT, salt: bytes = b"\1" * 32) -> Work:
    return Work(round_, parent, cid, 64, salt)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def again(journal: Journal) -> Journal:
    """As after a restart."""
    return Journal(journal._path)


def test_a_restart_finds_the_newest_work_of_its_job(journal: Journal) -> None:
    assert journal.work(JOB) is None
    journal.record(JOB, work(1), loss=0.5, train_s=1.0)
    journal.record(JOB, work(3), loss=0.5, train_s=1.0)
    journal.record(JOB, work(2), loss=0.5, train_s=1.0)
    journal.record(JobId(8), work(9), loss=0.5, train_s=1.0)
    assert again(journal).work(JOB) == work(3)


def test_the_first_record_of_a_round_stands_for_its_salt_may_be_on_chain(journal: Journal) -> None:
    first, second = work(salt=b"\1" * 32), work(salt=b"\2" * 32, cid=MODEL)
    assert journal.record(JOB, first, loss=0.5, train_s=1.0) == first
    assert journal.record(JOB, second, loss=0.1, train_s=2.0) == first
    assert again(journal).work(JOB) == first


def test_the_same_round_from_another_parent_is_other_work(journal: Journal) -> None:
    journal.record(JOB, work(), loss=0.5, train_s=1.0)
    reorganised = work(parent=MODEL, salt=b"\2" * 32)
    assert journal.record(JOB, reorganised, loss=0.5, train_s=1.0) == reorganised
    assert again(journal).work(JOB) == reorganised


def test_the_first_promise_for_a_round_stands_for_it_may_be_in_a_commitment(journal: Journal) -> None:
    assert journal.promised(JOB) is None
    first, second = work(2), work(2, salt=b"\2" * 32, cid=MODEL)
    assert journal.promise(JOB, first) == first
    assert journal.promise(JOB, second) == first
    assert again(journal).promised(JOB) == first


def test_a_piece_can_be_promised_again_with_another_salt_to_a_later_round(journal: Journal) -> None:
    journal.record(JOB, work(1), loss=0.5, train_s=1.0)
    journal.promise(JOB, work(2))
    later = journal.promise(JOB, work(5, salt=b"\2" * 32))
    assert again(journal).promised(JOB) == later
    assert again(journal).work(JOB) == work(1), "what was trained is not touched"


WRITER = """
import sys
from pathlib import Path
from dfl_ledger.records import Cid, JobId
from dfl_node.journal import Journal
from dfl_node.rounds.vocabulary import Work

journal = Journal(Path(sys.argv[1]))
for round_ in range(1, 10_000):
    salt = round_.to_bytes(32, "big")
    work = Work(round_, Cid.of(b"p", 0x70), Cid.of(salt, 0x70), 64, salt)
    journal.record(JobId(7), work, loss=0, train_s=0)
    print(round_, flush=True)  # from here on it may be committed
"""


def test_what_was_recorded_before_a_sigkill_is_there_with_its_salt(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        recorded = [int(writer.stdout.readline()) for _ in range(5)]
        writer.send_signal(signal.SIGKILL)
        recorded += [int(line) for line in writer.stdout if line.endswith("\n")]
    assert writer.returncode == -signal.SIGKILL
    found = Journal(path).work(JOB)
    assert found is not None
    assert found.round in (recorded[-1], recorded[-1] + 1)  # killed after a record, before its word of it
    assert found.salt == found.round.to_bytes(32, "big")
    assert found.cid == Cid.of(found.salt, 0x70)
    assert Journal(path).record(JOB, replace(found, salt=bytes(32)), loss=0, train_s=0) == found


def test_what_a_model_was_made_of_is_remembered_with_the_reasons(journal: Journal) -> None:
    verdicts = (Verdict(True), Verdict(False, "a tensor holds NaN \udc80"), Verdict(False, ""))
    assert journal.verdicts(JOB, 1, MODEL) is None
    journal.aggregated(JOB, 1, MODEL, verdicts)
    assert again(journal).verdicts(JOB, 1, MODEL) == verdicts
    assert journal.verdicts(JOB, 2, MODEL) is journal.verdicts(JOB, 1, UPDATE) is None
    journal.aggregated(JOB, 1, MODEL, (Verdict(True),))
    assert journal.verdicts(JOB, 1, MODEL) == verdicts


def test_a_round_keeps_its_first_opening_and_its_first_closing(journal: Journal) -> None:
    journal.round_opened(JOB, 1, 10.0)
    journal.round_opened(JOB, 1, 11.0)
    assert journal.rounds(JOB) == (RoundStats(1, 10.0, None, None, None, None),)
    journal.record(JOB, work(), loss=0.25, train_s=1.5)
    journal.round_closed(JOB, 1, 20.0, 1000)
    again(journal).round_closed(JOB, 1, 30.0, 5)
    journal.round_opened(JOB, 2, 21.0)
    journal.round_closed(JOB, 3, 22.0, 1)  # never opened here: nothing to close
    assert journal.rounds(JOB) == (
        RoundStats(1, 10.0, 20.0, 1000, 1.5, 0.25),
        RoundStats(2, 21.0, None, None, None, None),
    )
    assert journal.rounds(JobId(8)) == ()


def test_nobody_else_may_read_it(journal: Journal) -> None:
    assert stat.S_IMODE(journal._path.stat().st_mode) == 0o600


def test_a_file_that_is_no_journal_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database, whatever its name says " * 50)
    with pytest.raises(StoreUnavailable, match=r"journal\.sqlite does not work"):
        Journal(path)


def test_a_journal_that_is_locked_too_long_is_an_error_of_ours(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **named: connect(path, **named | {"timeout": 0.01}))
    other = connect(journal._path)
    try:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match="locked"):
            journal.record(JOB, work(), loss=0, train_s=0)
    finally:
        other.close()
    assert journal.work(JOB) is None
