"""The deployment file: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.contracts import CONTRACTS, load
from dfl_ledger.deploy import Deployment, check_links, created_address, deploy, find_deployment
from dfl_ledger.devchain import CHAIN_ID, DevChain, treasury
from dfl_ledger.errors import InsufficientFunds, UsageError, VerificationFailed
from dfl_ledger.records import Address
from dfl_ledger.rpc import Rpc
from tests.ledger.conftest import ChainWorld

DEPLOYMENT = Deployment(
    31337,
    Address("0x5FbDB2315678afecb367f032d93F642f64180aa3"),
    Address("0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512"),
    Address("0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"),
    Address("0xCf7Ed3AccA5a467e9e704C703E8D87F634fB0Fc9"),
    Address("0xDc64a140Aa3E981100a9becA4E685f962f0cF6C9"),
    Address("0x5FC8d32690cc91D4c39d9d3abcBD16989F875707"),
    5,
)


def fields() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DEPLOYMENT.to_json())
    return found


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deployments" / "31337.json"
    DEPLOYMENT.write(path)
    assert Deployment.read(path) == DEPLOYMENT
    assert [entry.name for entry in path.parent.iterdir()] == ["31337.json"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"chainId": None}, "chainId"),
        ({"chainId": True}, "chainId"),
        ({"chainId": 0}, "chainId"),
        ({"chainId": "31337"}, "chainId"),
        ({"deployBlock": -1}, "deployBlock"),
        ({"deployBlock": 1.5}, "deployBlock"),
        ({"more": 1}, "unknown more"),
        ({"contracts": []}, "not an object"),
        ({"contracts": {}}, "lacks AssetRegistry, NodeRegistry"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        Deployment.from_json(json.dumps(fields() | change))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["chainId", "deployBlock", "contracts"])
def test_a_missing_field_is_named(name: str) -> None:
    left = fields()
    del left[name]
    with pytest.raises(UsageError, match=f"lacks {name}"):
        Deployment.from_json(json.dumps(left))


@pytest.mark.parametrize(
    "address",
    [
        DEPLOYMENT.token.lower(),
        DEPLOYMENT.token[:-1] + "4",
        DEPLOYMENT.token[:-1],
        DEPLOYMENT.token[2:],
        "",
        None,
        5,
        DEPLOYMENT.jobs,
    ],
)
def test_an_address_is_eip55_and_its_contracts_own(address: object) -> None:
    left = fields()
    left["contracts"]["VnxToken"] = address
    with pytest.raises(UsageError):
        Deployment.from_json(json.dumps(left))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 60_000, b" " * 100_000])
def test_what_is_no_deployment_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        Deployment.read(path)


def test_finding(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    with pytest.raises(UsageError, match="no deployment known on chain 31337"):
        find_deployment(31337, [near, far])
    DEPLOYMENT.write(far / "deployments" / "31337.json")
    assert find_deployment(31337, [near, far]) == DEPLOYMENT
    DEPLOYMENT.write(near / "deployments" / "1.json")
    with pytest.raises(UsageError, match="is for chain 31337"):
        find_deployment(1, [near])


def test_addresses_follow_from_the_nonce() -> None:
    """https://eips.ethereum.org/EIPS/eip-161: the first ones of an account that every anvil has."""
    sender = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    found = [created_address(sender, nonce) for nonce in range(6)]
    assert found == list(DEPLOYMENT.addresses.values())
    # lengths of a nonce in RLP: a byte of its own up to 127, then with a prefix, then two bytes
    assert created_address(sender, 127) == "0x5fc748f1FEb28d7b76fa1c6B07D8ba2d5535177c"
    assert len({created_address(sender, nonce) for nonce in (0, 127, 128, 255, 256, 65_536)}) == 6


def test_deploying(dev: DevChain) -> None:
    found = deploy(dev.rpc_url, treasury(), unbond_delay_s=77, min_evaluator_stake_wei=7)
    rpc = Rpc(dev.rpc_url)
    try:

        def read(name: str, function: str, *args: object) -> object:
            abi = load(name)
            call = {"to": found.addresses[name], "data": "0x" + abi.encode(function, *args).hex()}
            return abi.decode_result(function, rpc.as_bytes(rpc.call("eth_call", call, "latest")))[0]

        assert found.chain_id == CHAIN_ID
        assert read("VnxToken", "balanceOf", treasury().address) == 10**27
        assert read("NodeRegistry", "unbondDelay") == 77
        assert read("NodeRegistry", "minEvaluatorStake") == 7
        assert read("RewardDistributor", "jobs") == found.jobs
        assert read("TrainingJobs", "registry") == found.registry
        assert read("ScoreBoard", "jobs") == found.jobs
        check_links(rpc, found)
        strangers = replace(found, board=dev.deployment().board)
        with pytest.raises(VerificationFailed, match="does not belong"):
            check_links(rpc, strangers)
        for address in found.addresses.values():
            before = rpc.call("eth_getCode", address, hex(found.deploy_block - 1))
            assert before == "0x"
    finally:
        rpc.close()


def test_deploying_without_coin(world: ChainWorld) -> None:
    with pytest.raises(InsufficientFunds, match="deploy VnxToken"):
        deploy(world.dev.rpc_url, world.account(native_wei=1), unbond_delay_s=1)


def test_the_artefacts_are_complete() -> None:
    for name in CONTRACTS:
        abi = load(name)
        assert len(abi.bytecode) > 1000
        assert abi.functions
        assert abi.events or name == "VnxToken"
