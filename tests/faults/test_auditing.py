"""Real nodes, a real chain, real digits: every payment can be explained, recomputed and exported."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.records import JobId
from dfl_node.localnet import LocalNet

from .test_processes import DONE_S, EVIDENCE_S, earnings, ended, spec, start

ROUNDS = 2
ALL = [
    *("evidence", "chain", "medians", "score tree", "rewards", "cumulative", "reward tree"),
    *("model", "scores", "payouts"),
]


@dataclass
class Audited:
    net: LocalNet
    job: JobId
    datadir: Path  # of a node that has every file of round 1


def run(*arguments: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, data, and what people read."""
    command = [sys.executable, "-m", "dfl_node", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    return done.returncode, json.loads(done.stdout)["data"], done.stderr.decode()


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    """Three nodes whose job has ended, one of which has claimed; they run on."""
    folder = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFL_HOME", str(folder / "home"))
        with LocalNet(folder / "net") as net:
            start(net, 3)
            job = net.submit(spec(rounds=ROUNDS))
            net.watch(job, ended, timeout_s=DONE_S)
            assert len(earnings(net, job)) == 3
            claimer, deadline = net.nodes[0], time.monotonic() + EVIDENCE_S
            with net.rows() as rows:
                while rows.earnings(claimer.address).claimed_wei == 0:
                    assert time.monotonic() < deadline
                    net.cli("ledger", "claim", "--datadir", str(claimer.datadir))
                    time.sleep(0.2)
                found = rows.job(job)
            assert found is not None
            (publisher,) = (n for n in net.nodes if n.address == found.rounds[0].aggregator)
            yield Audited(net, job, publisher.datadir)


def test_a_contribution_is_explained(audited: Audited) -> None:
    code, told, text = run("ledger", "explain", f"{audited.job}.1.0", "--datadir", audited.datadir)
    assert code == 0, text
    assert told["contribution"]["id"] == f"{audited.job}.1.0"
    pot, weight, total = (int(told[name]) for name in ("pot_wei", "weight", "total_weight"))
    assert int(told["reward_wei"]) == pot * weight // total
    assert told["formula"] == f"{pot} wei * {weight} // {total} = {told['reward_wei']} wei" or not weight
    assert len(told["judgements"]) == 3
    assert told["median"] in [judged["score"] for judged in told["judgements"] if judged["counts"]]
    assert told["settlement_tx"].startswith("0x")
    assert told["settler"]
    assert (told["claim_tx"] is None) == bool(told["reason"])
    for said in ("formula", "settled in", told["contribution"]["cid"]):
        assert said in text


def test_an_address_is_explained(audited: Audited) -> None:
    me = audited.net.nodes[0].address
    code, told, text = run("ledger", "explain", me, "--datadir", audited.datadir)
    assert code == 0, text
    own = [row for row in told["contributions"] if row["contribution"]["job"] == audited.job]
    assert [row["contribution"]["round"] for row in own] == [1, 2]
    assert {row["contribution"]["node"] for row in told["contributions"]} == {me}
    assert {row["evaluator"] for row in told["evaluations"]} == {me}
    lines = told["contributions"] + told["evaluations"]
    assert sum(int(row["reward_wei"]) for row in lines) == int(told["earnings"]["earned_wei"])
    paid = [row for row in own if int(row["reward_wei"])]
    assert paid
    assert all(row["claim_tx"] and not row["reason"] for row in paid)


@pytest.mark.parametrize("what", ["job", "settlement", "claim"])
def test_a_payment_is_verified_through_the_running_node(audited: Audited, what: str) -> None:
    with audited.net.rows() as rows:
        settlement = rows.settlements(audited.job)[0]["tx"]
        claim = rows.claims(audited.net.nodes[0].address)[0]
    target = {
        "job": f"{audited.job}",
        "settlement": settlement,
        "claim": claim.tx,
    }[what]
    code, told, text = run("ledger", "verify", target, "--datadir", audited.datadir)
    assert code == 0, text
    assert told["rounds"] == {"job": [1, 2], "claim": [claim.round]}.get(what, [1])
    for number in told["rounds"]:
        done = [check["check"] for check in told["checks"] if check["round"] == number]
        assert done == ALL
    assert "verified" in text


def copy_of(audited: Audited, to: Path, *without: str) -> Path:
    """The data directory of a node that has stopped."""
    copy = to / "node"
    shutil.copytree(audited.datadir, copy, ignore=shutil.ignore_patterns("node.json", "lock", *without))
    return copy


def test_a_payment_is_verified_from_the_disk_of_a_stopped_node(audited: Audited, tmp_path: Path) -> None:
    copy = copy_of(audited, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (copy / "store").rglob("*") if path.is_file()}
    code, told, text = run("ledger", "verify", f"{audited.job}.1.2", "--datadir", copy)  # a contribution
    assert (code, len(told["checks"])) == (0, len(ALL)), text
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing of it is written


FORGERIES = {
    "a payment": ("UPDATE claims SET amount_wei = '5'", "payouts"),
    "a contribution": ("UPDATE contributions SET samples = '7' WHERE idx = 1", "contributions[1]"),
    "a total": ("UPDATE settlements SET total_wei = '1'", "the check of its reward tree"),
    "a root": ("UPDATE settlements SET root = '0x' || hex(zeroblob(32))", "settled is root 0x0000"),
    "weights": ("UPDATE settlements SET weights = '1'", "the check of its score tree"),
    "a vector": ("UPDATE seats SET vector = zeroblob(length(vector)) WHERE seat = 1", "its ballots[1]"),
    "a model": ("UPDATE rounds SET model = (SELECT spec FROM jobs)", "its model is"),
    "a verdict": ("UPDATE contributions SET accepted = 0, why = 'no' WHERE idx = 0", "ledger"),
    "a leaf": ("UPDATE leaves SET reward_wei = '1'", "ledger"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_the_first_mismatch_is_told_with_exit_code_6(audited: Audited, tmp_path: Path, what: str) -> None:
    statement, said = FORGERIES[what]
    copy = copy_of(audited, tmp_path)
    db = sqlite3.connect(copy / "ledger.sqlite")
    db.execute(statement)
    db.commit()
    db.close()
    with audited.net.rows() as rows:
        round_ = rows.claims(audited.net.nodes[0].address)[0].round if what == "a payment" else 1
    code, told, text = run("ledger", "verify", f"{audited.job}.{round_}", "--datadir", copy)
    assert code == 6, text
    assert said in told["error"]["what"] + told["error"]["why"]


def test_what_is_not_to_be_had_is_not_called_a_forgery(audited: Audited, tmp_path: Path) -> None:
    copy = copy_of(audited, tmp_path, "store")
    code, told, _ = run("ledger", "verify", f"{audited.job}", "--datadir", copy)
    assert (code, told["error"]["type"]) == (3, "BlobNotFound")
    assert "dfl-node start" in told["error"]["help"]


def test_everything_is_exported(audited: Audited, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    code, told, text = run("ledger", "export", "--csv", out, "--datadir", audited.datadir)
    assert code == 0, text
    raw = out.read_bytes()
    assert raw.count(b"\r\n") == 1 + told["rows"] == raw.count(b"\n")
    with out.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["job"] == str(audited.job)]
    assert len(rows) == 2 * 3 * ROUNDS  # everybody trains and judges
    with audited.net.rows() as ledger:
        real = ledger.contributions(job=audited.job, limit=None)
        settled = ledger.job(audited.job)
    assert settled is not None
    own = [row for row in rows if row["kind"] == "update"]
    assert [row["id"] for row in own] == [c.id for c in real]
    assert [int(row["reward_wei"]) for row in own] == [c.reward_wei for c in real]
    assert [float(row["score"]) for row in own] == [c.score for c in real]
    assert sum(int(row["reward_wei"]) for row in rows) == settled.settled_wei
    assert run("ledger", "export", "--csv", out, "--datadir", audited.datadir)[0] == 2
    assert run("ledger", "export", "--csv", out, "--force", "--datadir", audited.datadir)[0] == 0


def test_the_lag_is_shown(audited: Audited) -> None:
    _, told, text = run("ledger", "query", "--datadir", audited.datadir)
    assert told["index"]["behind_blocks"] == 0
    assert "behind the head" in text
    chain = run("status", "--datadir", audited.datadir)[1]["chain"]
    assert (chain["behind_blocks"], chain["behind_s"]) == (0, 0)
    assert chain["head"] == chain["indexed"]


def test_a_job_whose_validation_rows_are_sealed_is_scored_on_them_and_verified(audited: Audited) -> None:
    net = audited.net
    job = net.submit(spec(rounds=ROUNDS, steps=5) + "sealed = true\n")
    final = net.watch(job, ended, timeout_s=DONE_S)
    assert final["completed"] == ROUNDS
    with net.rows() as rows:
        keys = rows.shard_keys(job)
        opened = [
            rows.unsealed(job, published["round"]) for published in final["rounds"] if published["model"]
        ]
    assert [found.position for found in opened if found is not None and found.in_time] == [0, 1]
    for node in net.nodes:
        log = node.log.read_text()
        assert "Traceback" not in log
        assert not any(key.hex() in log for key in keys)
    code, told, text = run("ledger", "verify", f"{job}", "--datadir", audited.datadir)
    assert code == 0, text
    for number in told["rounds"]:
        done = {check["check"]: check["detail"] for check in told["checks"] if check["round"] == number}
        assert list(done) == ALL
        assert "shapley" in done["scores"]
