"""Wallet and node key files: what is written, what is refused, and that nothing secret shows."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.errors import KeyFileExposed, UsageError, WalletError, WrongPassword
from dfl_node import identity
from dfl_node.identity import (
    checksum_address,
    create_wallet,
    load_node_key,
    parse_keystore,
    parse_private_key,
    read_keystore,
    read_password_file,
    write_private,
)

KEY = bytes(range(1, 33))
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def keystore(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("wallet") / "key.json"
    create_wallet(path, PASSWORD, light=True, key=KEY)
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def test_a_wallet_is_written_0600_and_unlocks_with_its_password_only(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    address = create_wallet(path, PASSWORD, light=True, key=KEY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key.json"]
    wallet = read_keystore(path)
    assert wallet.address == address
    assert bytes(wallet.unlock(PASSWORD).key) == KEY
    with pytest.raises(WrongPassword):
        wallet.unlock("wrong")
    assert wallet.content["crypto"]["ciphertext"] not in repr(wallet)


def test_the_standard_cost_is_the_standard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from eth_account import Account

    asked: dict[str, Any] = {}
    monkeypatch.setattr(Account, "encrypt", lambda key, password, **how: asked.update(how) or {})
    create_wallet(tmp_path / "key.json", PASSWORD)
    assert asked == {"kdf": "scrypt", "iterations": 2**18}


def test_two_wallets_are_two_keys(tmp_path: Path) -> None:
    made = {create_wallet(tmp_path / name, PASSWORD, light=True) for name in ("a", "b")}
    assert len(made) == 2


@pytest.mark.parametrize("link", [False, True])
def test_nothing_is_overwritten(tmp_path: Path, link: bool) -> None:
    path = tmp_path / "key.json"
    path.symlink_to(tmp_path / "nowhere") if link else path.write_text("mine")
    with pytest.raises(WalletError, match="exists already"):
        create_wallet(path, PASSWORD, light=True)
    with pytest.raises(FileExistsError):
        write_private(path, b"x")
    assert link or path.read_text() == "mine"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610])
def test_an_exposed_key_file_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "my key.json"
    create_wallet(path, PASSWORD, light=True)
    path.chmod(mode)
    with pytest.raises(KeyFileExposed) as refused:
        read_keystore(path)
    assert refused.value.exit_code == 5
    assert refused.value.help_command == f"chmod 600 '{path}'"
    path.chmod(0o400)
    assert read_keystore(path)


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "large"])
def test_what_is_not_a_small_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key.json"
    match kind:
        case "directory":
            path.mkdir(mode=0o700)
        case "fifo":  # opening it must not wait for a writer
            os.mkfifo(path, 0o600)
        case "large":
            write_private(path, bytes(identity.MAX_KEY_FILE_BYTES + 1))
    with pytest.raises(WalletError):
        read_keystore(path)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", "null", "{}", '{"version": 4}', '{"version": 3}', "[" * 60_000, "\xff"]
)
def test_what_is_not_a_keystore_is_refused(text: str) -> None:
    with pytest.raises(WalletError, match="is not a wallet"):
        parse_keystore(text.encode("latin-1"), Path("key.json"))


def _with(content: dict[str, Any], path: str, value: Any) -> bytes:
    copy = json.loads(json.dumps(content))
    *outer, last = path.split(".")
    table = copy
    for name in outer:
        table = table[name]
    if value is ...:
        del table[last]
    else:
        table[last] = value
    return json.dumps(copy).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", "3"),
        ("address", "0x12"),
        ("crypto", []),
        ("crypto.cipher", "aes-256-cbc"),
        ("crypto.cipherparams", None),
        ("crypto.cipherparams.iv", "00"),
        ("crypto.ciphertext", ...),
        ("crypto.ciphertext", "00" * 33),
        ("crypto.mac", 12),
        ("crypto.kdf", "argon2"),
        ("crypto.kdfparams.salt", "00" * 65),
        ("crypto.kdfparams.dklen", 2**31),
        ("crypto.kdfparams.n", 2**22),  # 4 GiB with r = 8
        ("crypto.kdfparams.n", 3),
        ("crypto.kdfparams.n", True),
        ("crypto.kdfparams.n", 8192.0),
        ("crypto.kdfparams.r", 2**20),
        ("crypto.kdfparams.p", 2**20),
        ("crypto.kdfparams.p", 0),
        ("crypto.kdfparams.n", ...),
    ],
)
def test_a_crafted_keystore_is_refused_before_its_key_is_derived(
    keystore: dict[str, Any], path: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def derive(*_: object) -> None:
        pytest.fail("the key derivation ran")

    monkeypatch.setattr("eth_keyfile.keyfile.decode_keyfile_json", derive)
    with pytest.raises(WalletError, match="is not a wallet"):
        parse_keystore(_with(keystore, path, value), Path("key.json"))


@pytest.mark.parametrize(("c", "prf"), [(2**40, "hmac-sha256"), (0, "hmac-sha256"), (1000, "hmac-md5")])
def test_crafted_pbkdf2_is_refused_too(keystore: dict[str, Any], c: int, prf: str) -> None:
    parameters = {"c": c, "prf": prf, "dklen": 32, "salt": "00" * 16}
    crypto = keystore["crypto"] | {"kdf": "pbkdf2", "kdfparams": parameters}
    with pytest.raises(WalletError):
        parse_keystore(json.dumps(keystore | {"crypto": crypto}).encode(), Path("key.json"))


def test_a_pbkdf2_wallet_with_capital_names_unlocks(tmp_path: Path) -> None:
    from eth_account import Account

    content = Account.encrypt(KEY, PASSWORD, kdf="pbkdf2", iterations=1000)
    old = {"Crypto" if name == "crypto" else name: value for name, value in content.items()}
    wallet = parse_keystore(json.dumps(old).encode(), tmp_path)
    assert bytes(wallet.unlock(PASSWORD).key) == KEY


def test_a_wallet_that_claims_another_address_is_refused(keystore: dict[str, Any]) -> None:
    lying = parse_keystore(_with(keystore, "address", "00" * 20), Path("key.json"))
    with pytest.raises(WalletError, match="not what it says"):
        lying.unlock(PASSWORD)


@pytest.mark.parametrize(
    "text",
    ["", "0x", "12", "g" * 64, "00" * 32, "ff" * 32, "01" * 33, f"{identity._SECP256K1_ORDER:064x}"],
)
def test_what_is_not_a_private_key_is_refused_and_never_shown(text: str) -> None:
    with pytest.raises(WalletError) as refused:
        parse_private_key(text)
    assert len(text) < 8 or text not in str(refused.value)


def test_a_private_key_is_read_with_and_without_0x() -> None:
    assert parse_private_key(f" 0x{KEY.hex()}\n") == parse_private_key(KEY.hex().upper()) == KEY


@pytest.mark.parametrize(
    ("data", "password"),
    [(b"a b\n", "a b"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), ("ü".encode(), "ü"), (b"", "")],
)
def test_a_password_file_loses_its_last_newline_only(tmp_path: Path, data: bytes, password: str) -> None:
    path = tmp_path / "password"
    write_private(path, data)
    assert read_password_file(path) == password


def test_a_bad_password_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "password"
    write_private(path, b"\xff")
    with pytest.raises(WalletError, match="UTF-8"):
        read_password_file(path)
    path.chmod(0o644)
    with pytest.raises(KeyFileExposed):
        read_password_file(path)


def test_addresses_are_eip55() -> None:
    good = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    assert checksum_address(good.lower()) == checksum_address(good[2:]) == checksum_address(good) == good
    for bad in ("0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "0x12", "vitalik.eth", good + "0"):
        with pytest.raises(UsageError):
            checksum_address(bad)


def test_the_node_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    key = load_node_key(tmp_path)
    path = identity.node_key_path(tmp_path)
    assert len(key.seed) == len(key.public) == 32
    assert load_node_key(tmp_path) == key
    assert "seed" not in repr(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(KeyFileExposed):
        load_node_key(tmp_path)


def test_a_damaged_node_key_is_said_to_be_one(tmp_path: Path) -> None:
    write_private(identity.node_key_path(tmp_path), b"short")
    with pytest.raises(WalletError, match="is not a node key"):
        load_node_key(tmp_path)
