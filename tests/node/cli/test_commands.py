"""The commands that speak to a node, or read what it left, each with its exit codes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.errors import (
    BlobNotFound,
    InsufficientFunds,
    TimedOut,
    UpdateRefused,
    VerificationFailed,
)
from dfl_ledger.indexer import Indexer
from dfl_ledger.records import Cid
from dfl_node.api.service import BUNDLE_FILES
from dfl_node.cli import job as job_module
from dfl_node.datadir import NodeFile, ledger_path, write_node_file, write_peers
from dfl_node.train.trainer import Evaluation
from tests.ledger.fake_chain import FakeChain, JobStory, address

SPEC = """
name = "digits"
app = "digits"
[model]
name = "cnn"
[training]
rounds = 2
local_steps = 4
batch_size = 8
lr = 0.1
[round]
min_nodes = 3
[reward]
round_budget = "10"
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(SPEC)
    return path


class Story:
    """A job's history in the ledger of a data directory."""

    def __init__(self, datadir: Path) -> None:
        self.datadir = datadir
        self.chain = FakeChain()
        self.job = JobStory(self.chain)
        datadir.mkdir(exist_ok=True, mode=0o700)
        self.index = Indexer(ledger_path(datadir), self.chain.ledger, deployment_key="t", start_block=1)

    def settled_round(self) -> None:
        self.job.whole_round()
        evidence = self.job.evidence()
        cid = self.job.settle(evidence)
        self.read()
        self.index.add_evidence(evidence, cid)

    def read(self) -> None:
        while self.index.step():
            pass


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told = Story(tmp_path / "node")
    yield told
    told.index.close()


# -- status and peers --------------------------------------------------------------------------------------
def test_status_gives_what_the_contract_names(run: Any, fake_node: Any) -> None:
    told = run("status", "--datadir", fake_node.datadir, "--json")
    names = {"address", "peer_id", "multiaddrs", "http_url", "peers", "chain", "jobs"}
    assert names <= set(told.data)
    assert set(told.data["chain"]) == {"id", "head", "indexed"}
    assert set(told.data["peers"][0]) >= {"peer_id", "address", "found_by", "latency_ms"}
    assert "head 12" in run("status", "--datadir", fake_node.datadir).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("blob", "ls"),
        ("blob", "pin", str(Cid.of(b""))),
        ("ledger", "claim"),
        ("ledger", "query"),
        ("job", "list"),
        ("job", "download", "1"),
        ("job", "watch", "1"),
    ],
)
def test_without_a_node_there_is_a_command_that_helps(
    run: Any, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    told = run(*arguments, "--datadir", tmp_path / "none", "--json")
    assert (told.exit_code, told.error["type"]) == (3, "NodeNotRunning")
    assert "dfl-node start" in told.error["help"]


def test_the_default_data_directory_is_in_dfl_home(run: Any, tmp_path: Path) -> None:
    told = run("status", "--json")
    assert str(tmp_path / "home" / "node") in told.error["what"]
    assert "--datadir" not in told.error["help"]


def test_a_silent_node_is_a_timeout(run: Any, fake_node: Any) -> None:
    fake_node.service.hangs.add("status")
    assert run("status", "--datadir", fake_node.datadir, "--timeout", 0.2, "--json").exit_code == 4


def test_a_node_with_a_bug_is_a_failure_of_the_node(run: Any, fake_node: Any) -> None:
    fake_node.service.fails["status"] = KeyError("inside")
    told = run("status", "--datadir", fake_node.datadir, "--json")
    assert told.exit_code == 1
    assert "inside" not in json.dumps(told.data["error"]["why"])


def test_peers_of_a_running_and_of_a_stopped_node(run: Any, fake_node: Any, tmp_path: Path) -> None:
    told = run("peers", "--datadir", fake_node.datadir, "--json")
    assert told.data["running"] is True
    assert [p["found_by"] for p in told.data["peers"]] == ["boot"]
    assert "1.2 ms" in run("peers", "--datadir", fake_node.datadir).stdout
    stopped = tmp_path / "stopped"
    write_peers(stopped, told.data["peers"])
    told = run("peers", "--datadir", stopped, "--json")
    assert (told.exit_code, told.data["running"]) == (0, False)
    assert told.data["peers"][0]["last_seen"] is True
    assert "saw last" in told.stderr


def test_what_a_peer_is_called_cannot_steer_the_terminal(run: Any, tmp_path: Path) -> None:
    write_peers(tmp_path, [{"peer_id": "\x1b[2J", "address": "\x07", "found_by": "boot", "latency_ms": None}])
    assert "\x1b" not in run("peers", "--datadir", tmp_path).stdout


# -- blobs -------------------------------------------------------------------------------------------------
def test_a_blob_goes_in_and_comes_out(run: Any, fake_node: Any, tmp_path: Path) -> None:
    place = ("--datadir", fake_node.datadir, "--json")
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(100_000))
    stored = run("blob", "add", source, *place)
    assert stored.data == {"cid": str(Cid.of(source.read_bytes())), "bytes": 100_000}
    cid = stored.data["cid"]
    got = run("blob", "get", cid, "-o", target, *place)
    assert (got.data["cid"], got.data["bytes"]) == (cid, 100_000)
    assert target.read_bytes() == source.read_bytes()
    assert run("blob", "get", cid, "-o", target, *place).exit_code == 2
    assert run("blob", "get", cid, "-o", target, "--force", *place).exit_code == 0
    assert [b["cid"] for b in run("blob", "ls", *place).data["blobs"]] == [cid]
    assert run("blob", "unpin", cid, *place).data["pinned"] is False
    assert run("blob", "unpin", cid, *place).exit_code == 3
    assert run("blob", "pin", cid, *place).data["pinned"] is True
    assert cid in run("blob", "ls", "--datadir", fake_node.datadir).stdout


def test_bad_blobs(run: Any, fake_node: Any, tmp_path: Path) -> None:
    place = ("--datadir", fake_node.datadir, "--json")
    assert run("blob", "add", tmp_path / "missing", *place).exit_code == 2
    assert run("blob", "get", "nonsense", "-o", tmp_path / "x", *place).exit_code == 2
    unknown = str(Cid.of(b"nobody has this"))
    told = run("blob", "get", unknown, "-o", tmp_path / "x", *place)
    assert (told.exit_code, told.error["type"]) == (3, "BlobNotFound")
    fake_node.service.fails["get_blob"] = VerificationFailed("wrong bytes")
    assert run("blob", "get", unknown, "-o", tmp_path / "x", *place).exit_code == 6
    assert not (tmp_path / "x").exists()
    assert run("blob", "get", unknown, "-o", tmp_path / "no" / "x", *place).exit_code == 6


# -- jobs --------------------------------------------------------------------------------------------------
def test_a_job_is_checked_here_first_and_submitted(run: Any, fake_node: Any, spec: Path) -> None:
    place = ("--datadir", fake_node.datadir, "--json")
    checked = run("job", "check", spec, *place)
    assert checked.data["checked_by_node"] is True
    assert checked.data["budget_wei"] == str(20 * 10**18)
    assert run("job", "submit", spec, *place).data == {"job_id": 1}
    assert fake_node.service.submitted == [SPEC]
    spec.write_text(SPEC.replace("lr = 0.1", "lr = 0.1\nlearning_rate = 1"))
    refused = run("job", "submit", spec, *place)
    assert (refused.exit_code, refused.error["type"]) == (2, "SpecInvalid")
    assert "training.learning_rate" in refused.error["what"]
    spec.write_text(SPEC.replace('name = "cnn"', ""))
    assert "model.name" in run("job", "check", spec, *place).error["what"]
    spec.write_text("not toml [")
    assert run("job", "submit", spec, *place).exit_code == 2
    assert run("job", "submit", spec.with_name("missing"), *place).exit_code == 2
    assert len(fake_node.service.submitted) == 1


def test_a_spec_is_checked_without_a_node_too(run: Any, spec: Path, tmp_path: Path) -> None:
    told = run("job", "check", spec, "--json")
    assert (told.exit_code, told.data["checked_by_node"]) == (0, False)


def test_a_poor_wallet_cannot_submit(run: Any, fake_node: Any, spec: Path) -> None:
    fake_node.service.fails["submit_job"] = InsufficientFunds(
        "the wallet holds 0 VNX", why="the job costs 20"
    )
    told = run("job", "submit", spec, "--datadir", fake_node.datadir, "--json")
    assert (told.exit_code, told.error["type"]) == (5, "InsufficientFunds")


def test_jobs_are_read_while_no_node_runs(run: Any, story: Story) -> None:
    story.job.create()
    story.settled_round()
    place = ("--datadir", story.datadir)
    listed = run("job", "list", *place, "--json").data["jobs"]
    assert [(j["job_id"], j["phase"], j["completed"]) for j in listed] == [(1, "aggregate", 1)]
    shown = run("job", "status", "1", *place, "--json").data
    assert shown["job_id"] == 1
    assert [(r["round"], r["state"], r["paid_wei"]) for r in shown["rounds"]] == [(1, "settled", str(10**18))]
    human = run("job", "status", "1", *place).stdout
    assert "1 of 3" in human
    assert "1 VNX" in human
    unknown = run("job", "status", "9", *place, "--json")
    assert unknown.exit_code == 2
    assert unknown.error["help"] == "dfl-node job list"


@pytest.mark.parametrize(("phase", "exit_code"), [(5, 0), (6, 1), (7, 1)])
def test_watching_an_ended_job(run: Any, story: Story, phase: int, exit_code: int) -> None:
    story.job.create()
    story.settled_round()
    story.job.end(phase)
    story.read()
    told = run("job", "watch", "1", "--datadir", story.datadir, "--json")
    assert told.exit_code == exit_code
    assert told.data["completed"] == 1


def test_watching_tells_each_change_and_ends_with_the_job(
    run: Any, story: Story, fake_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_node.service.job_answers = [{"awaited": ["0xaaaaaaaaaa1", "0xbbbbbbbbbb2"]}]
    story.job.create()
    story.job.open_round()
    story.read()
    steps = iter([story.job.contribute, story.job.publish, story.job.end])

    def next_step(_: float) -> None:
        next(steps)()
        story.read()

    monkeypatch.setattr(job_module.time, "sleep", next_step)
    told = run("job", "watch", "1", "--datadir", story.datadir, "--json")
    assert (told.exit_code, told.data["phase"]) == (0, "completed")
    lines = [line for line in told.stderr.splitlines() if "round 1" in line]
    assert len(lines) == 3
    assert "commit  0 of 3 committed  waits for 0xaaaaaaaa…, 0xbbbbbbbb… until 00:03:20 UTC" in lines[0]
    assert "is void" in lines[0]


def test_watching_shows_loss_speed_and_spend(
    run: Any, story: Story, fake_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = {"loss": 0.51234, "validation_loss": 0.6, "samples_per_s": 1234.5}
    live["activity"] = {"step": 7, "of": 90}
    fake_node.service.job_answers = [{"live": live}]
    story.job.create()
    story.settled_round()
    story.read()

    def end(_: float) -> None:
        story.job.end()
        story.read()

    monkeypatch.setattr(job_module.time, "sleep", end)
    told = run("job", "watch", "1", "--datadir", story.datadir, "--json")
    (line,) = [line for line in told.stderr.splitlines() if "samples" in line]
    assert "step 7 of 90  loss 0.5123  validation loss 0.6000  1234 samples/s  spent " in line
    assert " VNX of " in line


def test_watching_gives_up_in_time_and_shows_what_it_saw(run: Any, story: Story, fake_node: Any) -> None:
    fake_node.service.job_answers = [{}]
    story.job.create()
    story.job.open_round()
    story.read()
    told = run("job", "watch", "1", "--datadir", story.datadir, "--timeout", 0.05, "--json")
    assert (told.exit_code, told.error["type"]) == (4, "TimedOut")
    assert told.data["phase"] == "commit"


def test_watching_ends_when_the_node_does(run: Any, story: Story) -> None:
    story.job.create()
    story.read()
    write_node_file(story.datadir, NodeFile("http://127.0.0.1:1", 2**22 + 1, "t"))
    told = run("job", "watch", "1", "--datadir", story.datadir, "--json")
    assert (told.exit_code, told.error["type"]) == (3, "NodeNotRunning")


def test_a_job_that_never_appears_is_unknown(
    run: Any, story: Story, fake_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "_APPEAR_S", 0.05)
    assert run("job", "watch", "7", "--datadir", story.datadir, "--json").exit_code == 2


def test_a_download_is_whole_and_overwrites_nothing_unasked(run: Any, fake_node: Any, tmp_path: Path) -> None:
    place = ("--datadir", fake_node.datadir, "--json")
    target = tmp_path / "models" / "mine"
    done = run("job", "download", "3", "-o", target, *place)
    assert done.data["path"] == str(target)
    assert sorted(p.name for p in target.iterdir()) == sorted(BUNDLE_FILES)
    assert (target / "config.json").read_text() == "config.json of job 3"
    (target / "notes").write_text("mine")
    assert run("job", "download", "4", "-o", target, *place).exit_code == 2
    assert (target / "config.json").read_text() == "config.json of job 3"
    assert run("job", "download", "4", "-o", target, "--force", *place).exit_code == 0
    assert (target / "config.json").read_text() == "config.json of job 4"
    assert (target / "notes").read_text() == "mine"
    fake_node.service.fails["download"] = BlobNotFound("nobody has the model")
    assert run("job", "download", "5", "-o", tmp_path / "five", *place).exit_code == 3
    assert not (tmp_path / "five").exists()
    assert [p.name for p in target.parent.iterdir()] == ["mine"]


# -- ledger ------------------------------------------------------------------------------------------------
def test_every_contribution_is_listed_with_what_it_earned(run: Any, story: Story) -> None:
    story.job.create()
    story.settled_round()
    story.settled_round()
    place = ("--datadir", story.datadir, "--json")
    rows = run("ledger", "query", *place).data["contributions"]
    assert [row["id"] for row in rows] == ["1.1.0", "1.1.1", "1.1.2", "1.2.0", "1.2.1", "1.2.2"]
    columns = {"node", "job", "round", "kind", "cid", "parent", "samples", "score", "reward_wei", "tx"}
    assert columns <= set(rows[0])
    assert [row["reward_wei"] for row in rows[:3]] == [str(75 * 10**16), str(25 * 10**16), "0"]
    only = run(
        "ledger", "query", "--node", address(2).lower(), "--round", 2, "--job", 1, "--kind", "update", *place
    )
    assert [row["id"] for row in only.data["contributions"]] == ["1.2.1"]
    assert len(run("ledger", "query", "--limit", 1, *place).data["contributions"]) == 1
    assert run("ledger", "query", "--job", 2, *place).data["contributions"] == []
    assert run("ledger", "query", "--node", "0x12", *place).exit_code == 2
    assert run("ledger", "query", "--kind", "gift", *place).exit_code == 2
    assert "0.75 VNX" in run("ledger", "query", "--datadir", story.datadir).stdout


def test_one_contribution_and_what_paid_it(run: Any, story: Story) -> None:
    story.job.create()
    story.settled_round()
    story.job.whole_round()
    story.read()
    place = ("--datadir", story.datadir, "--json")
    shown = run("ledger", "show", "1.1.2", *place).data
    assert (shown["accepted"], shown["settlement"]["round"]) == (False, 1)
    assert "norm 12.5" in run("ledger", "show", "1.1.2", "--datadir", story.datadir).stdout
    assert run("ledger", "show", "1.2.0", *place).data["settlement"] is None
    assert run("ledger", "show", "1.9.0", *place).exit_code == 2
    assert run("ledger", "show", "nonsense", *place).exit_code == 2


def test_claims_go_through_the_node(run: Any, fake_node: Any) -> None:
    told = run("ledger", "claim", "--job", 4, "--datadir", fake_node.datadir, "--json")
    assert told.data == {"claims": [{"job": 4, "paid_wei": "5"}], "total_wei": "5"}
    fake_node.service.fails["claim"] = TimedOut("the claim was not mined")
    assert run("ledger", "claim", "--datadir", fake_node.datadir, "--json").exit_code == 4


# -- eval --------------------------------------------------------------------------------------------------
@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    class FakeTrainer:
        async def evaluate(self, model: Any, weights: bytes, data: bytes) -> Evaluation:
            if data == b"refused":
                raise UpdateRefused("the data are not an NPZ file")
            return Evaluation(0.97, math.nan if data == b"nan" else 0.1, 500)

    @asynccontextmanager
    async def open_trainer() -> Any:
        yield FakeTrainer()

    monkeypatch.setattr("dfl_node.train.process.open_trainer", open_trainer)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text('{"architecture": "cnn", "args": {}, "app": "digits"}')
    (tmp_path / "data.npz").write_bytes(b"rows")
    return folder


def test_a_model_is_measured(run: Any, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    told = run("eval", model, "--data", data, "--json")
    assert told.data == {"accuracy": 0.97, "loss": 0.1, "samples": 500}
    assert "0.97" in run("eval", model, "--data", data).stdout
    data.write_bytes(b"nan")
    assert run("eval", model, "--data", data, "--json").data["loss"] is None


def test_bad_models_and_data(run: Any, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    assert run("eval", model, "--data", tmp_path / "missing", "--json").exit_code == 2
    data.write_bytes(b"refused")
    assert run("eval", model, "--data", data, "--json").exit_code == 6
    for text in ("", "[]", "{}", '{"architecture": 1, "args": {}}', '{"architecture": "cnn", "args": []}'):
        (model / "config.json").write_text(text)
        assert run("eval", model, "--data", data, "--json").exit_code == 6
    assert run("eval", tmp_path / "nothing", "--data", data, "--json").exit_code == 2


# -- doctor ------------------------------------------------------------------------------------------------
def test_the_doctor_says_what_does_not_work(run: Any, fake_node: Any, tmp_path: Path) -> None:
    told = run("doctor", "--datadir", fake_node.datadir, "--json")
    found = {f["check"]: f for f in told.data["findings"]}
    assert found["node"]["health"] == "ok"
    assert found["index"]["detail"] == "1 blocks behind"
    assert found["reachable"]["health"] == "note"  # what the running node says of its network
    dead = run("doctor", "--datadir", tmp_path / "none", "--rpc-url", "http://127.0.0.1:1", "--json")
    found = {f["check"]: f for f in dead.data["findings"]}
    assert dead.exit_code == 1
    assert found["chain"]["health"] == "problem"
    assert found["node"]["health"] == "warning"
    assert "dfl-node start" in found["node"]["help"]


# -- chain -------------------------------------------------------------------------------------------------
def test_without_a_development_chain_nobody_is_funded(run: Any) -> None:
    told = run("chain", "fund", address(1), "--json")
    assert (told.exit_code, told.error["type"]) == (3, "ChainUnreachable")
    assert told.error["help"] == "dfl-node chain dev"


@pytest.mark.parametrize("arguments", [("0x12",), (address(1), "--vnx", "many")])
def test_bad_funding(run: Any, arguments: tuple[str, ...]) -> None:
    assert run("chain", "fund", *arguments, "--json").exit_code == 2


def test_a_dead_rpc_and_a_bad_url(run: Any, tmp_path: Path) -> None:
    wallet = tmp_path / "key.json"
    options = ("--wallet", wallet, "--out", tmp_path / "deployments", "--json")
    dead = run("chain", "deploy", "--rpc-url", "http://127.0.0.1:1", *options)
    assert (dead.exit_code, dead.error["type"]) == (3, "ChainUnreachable")
    assert run("chain", "deploy", "--rpc-url", "ftp://x", *options).exit_code == 2
