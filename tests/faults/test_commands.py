"""What a user types, against real nodes: blobs across the network, and mistakes that lose nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfl_node.localnet import LocalNet, LocalNode

LISTENS_NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def net(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNet]:
    before = os.environ.get("DFL_HOME")
    os.environ["DFL_HOME"] = str(home)
    with LocalNet(tmp_path_factory.mktemp("net") / "net") as network:
        network.wait_ready(network.add_node())
        network.wait_ready(network.add_node())
        yield network
    if before is None:
        del os.environ["DFL_HOME"]
    else:
        os.environ["DFL_HOME"] = before


def run(*arguments: str, timeout_s: float = 60) -> tuple[int, dict[str, Any]]:
    """Exit code and the one JSON object of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "dfl_node", *arguments, "--json"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout_s,
        check=False,
    )
    assert "Traceback" not in done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["schema_version"] == "1"
    assert (answer["status"] == "ok") == (done.returncode == 0)
    return done.returncode, answer["data"]


def start(net: LocalNet, node: LocalNode, datadir: Path, *more: str) -> tuple[int, dict[str, Any]]:
    wallet = ("--wallet", str(node.wallet), "--password-file", str(net.root / "password"))
    return run("start", *wallet, "--datadir", str(datadir), "--no-mdns", *more)


def on_chain(net: LocalNet) -> tuple[str, ...]:
    return "--rpc-url", net.chain.rpc_url, "--deployment", str(net.chain.deployment_path)


def test_a_file_added_on_one_node_is_fetched_by_its_cid_on_another(net: LocalNet, tmp_path: Path) -> None:
    first, second = (str(node.datadir) for node in net.nodes)
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    added = net.cli("blob", "add", str(tmp_path / "file"), "--datadir", first)
    assert added["bytes"] == len(data)
    got = net.cli("blob", "get", added["cid"], "-o", str(tmp_path / "copy"), "--datadir", second)
    assert got["cid"] == added["cid"]
    assert (tmp_path / "copy").read_bytes() == data

    net.cli("blob", "pin", added["cid"], "--datadir", second)
    pinned = {blob["cid"]: blob["pinned"] for blob in net.cli("blob", "ls", "--datadir", second)["blobs"]}
    assert pinned[added["cid"]] is True
    net.cli("blob", "unpin", added["cid"], "--datadir", second)
    pinned = {blob["cid"]: blob["pinned"] for blob in net.cli("blob", "ls", "--datadir", second)["blobs"]}
    assert pinned[added["cid"]] is False


def test_a_cid_that_nobody_has_is_reported_in_time(net: LocalNet, tmp_path: Path) -> None:
    nowhere = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
    where = ("--datadir", str(net.nodes[0].datadir), "--timeout", "2")
    code, data = run("blob", "get", nowhere, "-o", str(tmp_path / "x"), *where)
    assert code == 3
    assert data["error"]["type"] == "BlobNotFound"
    assert not (tmp_path / "x").exists()


def test_a_second_node_on_one_data_directory_is_refused_and_the_first_goes_on(net: LocalNet) -> None:
    node = net.nodes[0]
    code, data = start(net, node, node.datadir, *on_chain(net))
    assert (code, data["error"]["type"]) == (2, "DatadirLocked")
    assert net.cli("status", "--datadir", str(node.datadir))["address"] == node.address


def test_a_wrong_password_starts_nothing(net: LocalNet, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("not it")
    node = net.nodes[0]
    wallet = ("--wallet", str(node.wallet), "--password-file", str(wrong))
    code, data = run("start", *wallet, "--datadir", str(tmp_path / "d"), *on_chain(net))
    assert (code, data["error"]["type"]) == (5, "WrongPassword")


def test_a_wallet_that_others_can_read_is_refused_with_the_command_that_mends_it(
    net: LocalNet, tmp_path: Path
) -> None:
    exposed = tmp_path / "key.json"
    exposed.write_bytes(net.nodes[0].wallet.read_bytes())
    exposed.chmod(0o644)
    password = ("--password-file", str(net.root / "password"))
    code, data = run(
        "start", "--wallet", str(exposed), *password, "--datadir", str(tmp_path / "d"), *on_chain(net)
    )
    assert (code, data["error"]["type"]) == (5, "KeyFileExposed")
    assert data["error"]["help"] == f"chmod 600 {exposed}"


def test_a_dead_rpc_is_named_as_such(net: LocalNet, tmp_path: Path) -> None:
    deployment = ("--deployment", str(net.chain.deployment_path))
    code, data = start(net, net.nodes[0], tmp_path / "d", "--rpc-url", LISTENS_NOWHERE, *deployment)
    assert (code, data["error"]["type"]) == (3, "ChainUnreachable")


def test_a_deployment_of_another_chain_is_refused(net: LocalNet, tmp_path: Path) -> None:
    other = json.loads(net.chain.deployment_path.read_text())
    other["chainId"] = 1
    (tmp_path / "1.json").write_text(json.dumps(other))
    where = ("--rpc-url", net.chain.rpc_url, "--deployment", str(tmp_path / "1.json"))
    code, data = start(net, net.nodes[0], tmp_path / "d", *where)
    assert (code, data["error"]["type"]) == (2, "WrongChain")


def test_a_wallet_without_funds_is_told_how_to_get_some(net: LocalNet, tmp_path: Path) -> None:
    password = ("--password-file", str(net.root / "password"))
    made = net.cli("wallet", "new", str(tmp_path / "poor.json"), "--light", *password)
    wallet = ("--wallet", str(tmp_path / "poor.json"), *password)
    code, data = run("start", *wallet, "--datadir", str(tmp_path / "d"), *on_chain(net))
    assert (code, data["error"]["type"]) == (5, "InsufficientFunds")
    assert data["error"]["help"] == f"dfl-node chain fund {made['address']}"


def test_a_node_without_rpc_url_finds_the_development_chain(net: LocalNet, tmp_path: Path) -> None:
    password = ("--password-file", str(net.root / "password"))
    made = net.cli("wallet", "new", str(tmp_path / "key.json"), "--light", *password)
    net.cli("chain", "fund", made["address"])
    command = [sys.executable, "-m", "dfl_node", "start", "--wallet", str(tmp_path / "key.json"), *password]
    command += ["--datadir", str(tmp_path / "d"), "--no-mdns", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as node:
        try:
            assert node.stdout is not None
            ready = json.loads(node.stdout.readline())
            assert ready["data"]["address"] == made["address"]
            status = net.cli("status", "--datadir", str(tmp_path / "d"))
            assert status["chain"]["id"] == 31337
        finally:
            node.terminate()
        assert node.wait(timeout=10) == 0


def add_base(net: LocalNet, tmp_path: Path) -> str:
    """A sound file of a CNN, as a base: its CID."""
    from safetensors.numpy import save

    from dfl_node.train import models
    from dfl_node.train.trainer import ModelConfig

    tensors = models.schema(ModelConfig("cnn", {})).tensors
    (tmp_path / "base").write_bytes(save({t.name: np.zeros(t.shape, np.float32) for t in tensors}))
    return str(net.cli("blob", "add", str(tmp_path / "base"), "--datadir", str(net.nodes[0].datadir))["cid"])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("rounds = 1", "rounds = 0"), "training.rounds"),
        (("rounds = 1", "rounds = 1\nsurprise = 1"), "training.surprise"),
        (("lr = 0.05", ""), "training.lr"),
        (("quorum = 1", "quorum = 3"), "round.quorum"),
        (('name = "mlp"', 'name = "mlp"\nargs = { layers = 9 }'), "model.args.layers"),
        (("min_nodes = 2", "min_nodes = 0"), "round.min_nodes"),
        (('name = "mlp"', 'name = "mlp"\nfreeze = ["*"]'), "model.freeze"),
        (
            ('app = "digits"', 'app = "digits"\nmode = "pipeline"\npipeline = { stages = 9 }'),
            "pipeline.stages",
        ),
        (('name = "mlp"', 'name = "mlp"\nbase = "{base}"'), "model.base"),  # of another architecture
    ],
)
def test_a_wrong_job_spec_is_refused_by_its_field_before_money_moves(
    net: LocalNet, tmp_path: Path, change: tuple[str, str], field: str
) -> None:
    from .conftest import SPEC

    spec = SPEC.format(rounds=1, steps=5, nodes=2, quorum=1, score_s=60)
    assert change[0] in spec
    node = net.nodes[0]
    spec = spec.replace(*change)
    if "{base}" in spec:
        spec = spec.replace("{base}", add_base(net, tmp_path))
    (tmp_path / "job.toml").write_text(spec)
    jobs_before = len(net.cli("job", "list", "--datadir", str(node.datadir))["jobs"])
    code, data = run("job", "submit", str(tmp_path / "job.toml"), "--datadir", str(node.datadir))
    assert (code, data["error"]["type"]) == (2, "SpecInvalid")
    assert field in data["error"]["what"]
    assert len(net.cli("job", "list", "--datadir", str(node.datadir))["jobs"]) == jobs_before


def test_a_stake_is_shown_unbonded_and_cannot_be_taken_before_its_delay(
    net: LocalNet, tmp_path: Path
) -> None:
    password = ("--password-file", str(net.root / "password"))
    made = net.cli("wallet", "new", str(tmp_path / "key.json"), "--light", *password)
    net.cli("chain", "fund", made["address"])
    wallet = ("--wallet", str(tmp_path / "key.json"), *password)
    command = [sys.executable, "-m", "dfl_node", "start", *wallet, "--stake", "7", *on_chain(net)]
    command += ["--datadir", str(tmp_path / "d"), "--no-mdns", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as node:
        try:
            assert node.stdout is not None
            node.stdout.readline()
        finally:
            node.terminate()

    where = (*wallet, *on_chain(net))
    assert net.cli("stake", "show", *where)["stake_wei"] == str(7 * 10**18)
    unbonded = net.cli("stake", "unbond", *where)
    assert unbonded["unbond_at"] > 0
    code, data = run("stake", "withdraw", *where)
    assert (code, data["error"]["type"]) == (1, "Reverted")
    assert "StakeLocked" in data["error"]["why"]


def test_a_requester_cancels_a_job_that_waits_for_nodes_and_has_its_money_back(
    net: LocalNet, tmp_path: Path
) -> None:
    from .conftest import SPEC

    node = net.nodes[0]
    before = net.cli("stake", "show", *_wallet(net, node))["balance_wei"]
    (tmp_path / "job.toml").write_text(SPEC.format(rounds=2, steps=5, nodes=9, quorum=9, score_s=60))
    where = ("--datadir", str(node.datadir))
    job = net.cli("job", "submit", str(tmp_path / "job.toml"), *where)["job_id"]
    net.cli("job", "cancel", str(job), *where)
    final = net.watch(job, lambda j: j["refunded_wei"] == str(60 * 10**18), timeout_s=30)
    assert final["phase"] == "cancelled"
    assert net.cli("stake", "show", *_wallet(net, node))["balance_wei"] == before


def _wallet(net: LocalNet, node: LocalNode) -> tuple[str, ...]:
    return "--wallet", str(node.wallet), "--password-file", str(net.root / "password"), *on_chain(net)


def test_the_doctor_reports_what_the_running_node_sees_of_its_network(net: LocalNet) -> None:
    found = net.cli("doctor", "--datadir", str(net.nodes[0].datadir), "--rpc-url", net.chain.rpc_url)
    health = {f["check"]: f["health"] for f in found["findings"]}
    assert (health["node"], health["chain"], health["peers"], health["listens"]) == ("ok",) * 4
    assert health["QUIC"] == "note"
