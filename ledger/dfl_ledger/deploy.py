"""Put the contracts on a chain, and remember where they are: `deployments/<chainId>.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eth_utils.address import is_checksum_address, to_checksum_address
from eth_utils.crypto import keccak

from dfl_ledger.contracts import CONTRACTS, load
from dfl_ledger.errors import ChainUnreachable, UsageError, VerificationFailed
from dfl_ledger.records import Address

if TYPE_CHECKING:
    from dfl_ledger.accounts import LocalAccount
    from dfl_ledger.rpc import Rpc
    from dfl_ledger.transactions import FeePolicy, Writer

_MAX_FILE_BYTES = 64 << 10
_HELP = "dfl-node chain deploy"
MIN_EVALUATOR_STAKE_WEI = 10**18


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where the six contracts are. Events before `deploy_block` are not ours."""

    chain_id: int
    token: Address
    registry: Address
    assets: Address
    jobs: Address
    board: Address
    distributor: Address
    deploy_block: int

    @property
    def addresses(self) -> dict[str, Address]:
        """By contract name."""
        own = (self.token, self.registry, self.assets, self.jobs, self.board, self.distributor)
        return dict(zip(CONTRACTS, own, strict=True))

    def to_json(self) -> str:
        fields = {
            "chainId": self.chain_id,
            "deployBlock": self.deploy_block,
            "contracts": self.addresses,
        }
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Deployment:
        """Strict: raises UsageError for anything unknown, missing or not EIP-55."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _invalid("not JSON") from error
        outer = _exactly(fields, ("chainId", "deployBlock", "contracts"), "the file")
        contracts = _exactly(outer["contracts"], CONTRACTS, "`contracts`")
        token, registry, assets, jobs, board, distributor = (
            _address(name, contracts[name]) for name in CONTRACTS
        )
        if len({token, registry, assets, jobs, board, distributor}) < len(CONTRACTS):
            raise _invalid("two contracts have one address")
        return cls(
            _natural("chainId", outer["chainId"], 1),
            token,
            registry,
            assets,
            jobs,
            board,
            distributor,
            _natural("deployBlock", outer["deployBlock"], 0),
        )

    @classmethod
    def read(cls, path: Path) -> Deployment:
        """Raises UsageError when the file is missing or not valid."""
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise UsageError(
                f"cannot read {path}", why=error.strerror or str(error), help_command=_HELP
            ) from error
        if len(raw) > _MAX_FILE_BYTES:
            raise _invalid("too large")
        try:
            return cls.from_json(raw.decode())
        except UnicodeDecodeError as error:
            raise _invalid("not UTF-8") from error

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(self.to_json(), encoding="utf-8")
        partial.replace(path)


def find_deployment(chain_id: int, search: Sequence[Path]) -> Deployment:
    """The first `deployments/<chainId>.json` below the given folders.

    Raises UsageError when there is none, when one is not valid, or when its chain id is not its name's.
    """
    paths = [folder / "deployments" / f"{chain_id}.json" for folder in search]
    for path in paths:
        if path.exists():
            deployment = Deployment.read(path)
            if deployment.chain_id != chain_id:
                raise _invalid(f"{path} is for chain {deployment.chain_id}")
            return deployment
    raise UsageError(
        f"no deployment known on chain {chain_id}",
        why=f"looked for {', '.join(str(path) for path in paths)}",
        help_command=_HELP,
    )


def deploy(
    rpc_url: str,
    account: LocalAccount,
    *,
    unbond_delay_s: int,
    min_evaluator_stake_wei: int = MIN_EVALUATOR_STAKE_WEI,
    fees: FeePolicy | None = None,
) -> Deployment:
    """Deploy all six contracts; `account` becomes the treasury that holds the whole VNX supply.

    They know each other from their first block on, for good: nobody can give one a false partner later. So
    their addresses are computed before any of them exists, and what became of it is checked in the end.
    Raises ChainUnreachable, InsufficientFunds, Reverted, TimedOut, VerificationFailed.
    """
    # web3 is slow to import, and reading a deployment file does not need it.
    from dfl_ledger.rpc import Rpc
    from dfl_ledger.transactions import FeePolicy, Writer

    rpc = Rpc(rpc_url)
    try:
        chain_id = rpc.quantity("eth_chainId")
        deploy_block = rpc.quantity("eth_blockNumber") + 1
        nonce = rpc.quantity("eth_getTransactionCount", account.address, "pending")
        token, registry, assets, jobs, board, distributor = (
            created_address(account.address, nonce + place) for place in range(len(CONTRACTS))
        )
        planned = Deployment(chain_id, token, registry, assets, jobs, board, distributor, deploy_block)
        arguments: dict[str, tuple[object, ...]] = {
            "VnxToken": (account.address,),
            "NodeRegistry": (
                *(token, unbond_delay_s, min_evaluator_stake_wei),
                *(jobs, board, distributor),
            ),
            "AssetRegistry": (),
            "TrainingJobs": (token, registry, assets, board, distributor),
            "ScoreBoard": (registry, jobs),
            "RewardDistributor": (token, registry, assets, jobs, board),
        }
        writer = Writer(rpc, chain_id, account, fees or FeePolicy())
        for name in CONTRACTS:
            created, wanted = _create(writer, name, *arguments[name]), planned.addresses[name]
            if created != wanted:
                raise VerificationFailed(
                    f"{name} was created at {created}",
                    why=f"the others expect it at {wanted}: this wallet sent something else in between",
                    help_command=_HELP,
                )
        check_links(rpc, planned)
        return planned
    finally:
        rpc.close()


def created_address(sender: str, nonce: int) -> Address:
    """Where a contract that this account creates with this nonce comes to lie: keccak256(rlp([sender,
    nonce])).
    """
    raw = nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    short = raw if len(raw) == 1 and raw[0] < 0x80 else bytes((0x80 + len(raw),)) + raw
    items = bytes((0x80 + 20,)) + bytes.fromhex(sender[2:]) + short
    return Address(to_checksum_address(keccak(bytes((0xC0 + len(items),)) + items)[12:]))


_LINKS = {
    "NodeRegistry": {
        "token": "VnxToken",
        "jobs": "TrainingJobs",
        "board": "ScoreBoard",
        "distributor": "RewardDistributor",
    },
    "TrainingJobs": {
        "token": "VnxToken",
        "registry": "NodeRegistry",
        "assets": "AssetRegistry",
        "board": "ScoreBoard",
        "distributor": "RewardDistributor",
    },
    "ScoreBoard": {"registry": "NodeRegistry", "jobs": "TrainingJobs"},
    "RewardDistributor": {
        "token": "VnxToken",
        "registry": "NodeRegistry",
        "assets": "AssetRegistry",
        "jobs": "TrainingJobs",
        "board": "ScoreBoard",
    },
}


def check_links(rpc: Rpc, deployment: Deployment) -> None:
    """Raises VerificationFailed unless each contract names the others as this deployment does."""
    for name, partners in _LINKS.items():
        abi, own = load(name), deployment.addresses[name]
        for getter, partner in partners.items():
            data = "0x" + abi.encode(getter).hex()
            answer = rpc.call("eth_call", {"to": own, "data": data}, "latest")
            try:
                found = str(abi.decode_result(getter, rpc.as_bytes(answer))[0])
            except ValueError:
                found = "something else"
            if found != deployment.addresses[partner]:
                raise VerificationFailed(
                    f"{name} does not belong to this deployment",
                    why=f"its {getter} is {found}, not {deployment.addresses[partner]}",
                    help_command=_HELP,
                )


def code_missing(rpc: Rpc, deployment: Deployment) -> list[str]:
    """The contracts whose address holds no code."""
    return [
        name
        for name, address in deployment.addresses.items()
        if not rpc.as_bytes(rpc.call("eth_getCode", address, "latest"))
    ]


def _create(writer: Writer, name: str, *args: object) -> Address:
    mined = writer.send(f"deploy {name}", None, load(name).encode_deploy(*args))
    if not mined.created:
        raise ChainUnreachable("the chain gave no contract address", why=f"receipt {mined.receipt.tx}")
    return Address(to_checksum_address(mined.created))


def _exactly(value: object, names: Sequence[str], where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _invalid(f"{where} is not an object")
    if missing := sorted(set(names) - set(value)):
        raise _invalid(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(set(value) - set(names)):
        raise _invalid(f"{where} has unknown {', '.join(unknown)}")
    return value


def _natural(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _invalid(f"`{name}` is not a whole number from {least}")
    return value


def _address(name: str, value: object) -> Address:
    if not isinstance(value, str) or not is_checksum_address(value):
        raise _invalid(f"`{name}` is not an EIP-55 address")
    return Address(value)


def _invalid(why: str) -> UsageError:
    return UsageError("the deployment file is not valid", why=why, help_command=_HELP)
