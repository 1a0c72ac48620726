"""Keys on disk: the wallet (keystore V3, holds money) and the node key (Ed25519, names the peer).

Both files are created 0600 and refused when others can read them. A keystore may come from anywhere, so its
key derivation is measured before it is run: a crafted one could otherwise take all memory or all day.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfl_ledger.errors import KeyFileExposed, UsageError, WalletError, WrongPassword
from dfl_ledger.records import Address

if TYPE_CHECKING:
    from dfl_ledger.accounts import LocalAccount

MAX_KEY_FILE_BYTES = 64 * 1024
MAX_PASSWORD_BYTES = 1024
STANDARD_SCRYPT_N = 2**18  # 256 MiB, about a second
LIGHT_SCRYPT_N = 2**13  # 8 MiB, milliseconds: a stolen file is guessed 32 times faster
MAX_SCRYPT_BYTES = 512 * 1024 * 1024  # 128 * n * r
MAX_SCRYPT_WORK = 2**24  # n * r * p; the standard's is 2**21
MAX_PBKDF2_ROUNDS = 10_000_000
_SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_NODE_KEY = "node.key"


# -- private files -----------------------------------------------------------------------------------------
def read_private(path: Path, *, what: str, max_bytes: int = MAX_KEY_FILE_BYTES) -> bytes:
    """A secret file's bytes.

    Raises WalletError if it cannot be read or is too large, KeyFileExposed if group or others have any right
    on it. The rights are those of the file that was opened, so that it cannot be swapped in between.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as bad:
        raise WalletError(f"cannot read the {what} {path}", why=bad.strerror or str(bad)) from bad
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise WalletError(f"cannot read the {what} {path}", why="it is not a regular file")
        if status.st_mode & 0o077:
            raise KeyFileExposed(
                f"the {what} {path} is open to other users",
                why=f"its mode is {stat.S_IMODE(status.st_mode):04o}; only its owner may have rights on it",
                help_command=f"chmod 600 {shlex.quote(str(path))}",
            )
        data = b""
        while len(data) <= max_bytes and (part := os.read(fd, max_bytes + 1 - len(data))):
            data += part
    finally:
        os.close(fd)
    if len(data) > max_bytes:
        raise WalletError(f"cannot read the {what} {path}", why=f"it is larger than {max_bytes} bytes")
    return data


def write_private(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a 0600 file that appears whole or not at all. Raises FileExistsError unless `replace`."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        if replace:
            scratch.replace(path)
        else:
            path.hardlink_to(scratch)  # unlike a rename, this refuses to overwrite
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()


# -- wallet ------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Keystore:
    """A keystore V3 whose form has been checked; the secret inside is still encrypted."""

    path: Path
    address: Address | None  # as the file claims, EIP-55; the standard makes it optional
    content: Mapping[str, Any] = field(repr=False)

    def unlock(self, password: str) -> LocalAccount:
        """Decrypt. Takes about a second and up to 512 MiB: run it in a thread, once.

        Raises WrongPassword, or WalletError if the key inside is not that of the address outside.
        """
        from eth_keyfile.keyfile import decode_keyfile_json

        from dfl_ledger.accounts import Account  # before eth_keyfile: see there

        try:
            key = decode_keyfile_json(dict(self.content), password.encode())
        except ValueError as bad:
            raise WrongPassword(
                f"cannot unlock the wallet {self.path}",
                why="the password is wrong, or the file is damaged",
                help_command=f"dfl-node wallet show {shlex.quote(str(self.path))}",
            ) from bad
        account = _account(key, Account)
        if self.address is not None and self.address != str(account.address):
            raise WalletError(
                f"the wallet {self.path} is not what it says",
                why=f"it claims {self.address} and holds the key of {account.address}",
            )
        return account


def read_keystore(path: Path) -> Keystore:
    """Raises WalletError for anything but a keystore V3 of sane cost, KeyFileExposed."""
    return parse_keystore(read_private(path, what="wallet"), path)


def parse_keystore(data: bytes, path: Path) -> Keystore:
    """`path` is for the messages only. Raises WalletError."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as bad:
        raise _bad_keystore(path, "it is not JSON") from bad
    content = _lower_keys(content, path)
    if content.get("version") != 3:
        raise _bad_keystore(path, f"its version is {content.get('version')!r:.20}, not 3")
    crypto = _lower_keys(content.get("crypto"), path, "crypto")
    parameters = _lower_keys(crypto.get("kdfparams"), path, "crypto.kdfparams")
    cipher_parameters = _lower_keys(crypto.get("cipherparams"), path, "crypto.cipherparams")
    if crypto.get("cipher") != "aes-128-ctr":
        raise _bad_keystore(path, f"its cipher is {crypto.get('cipher')!r:.20}, not aes-128-ctr")
    _hex(crypto, "ciphertext", path, size=32)
    _hex(crypto, "mac", path, size=32)
    _hex(cipher_parameters, "iv", path, size=16)
    _hex(parameters, "salt", path)
    _check_cost(str(crypto.get("kdf")), parameters, path)
    claimed = content.get("address")
    address = None
    if claimed is not None:
        if not isinstance(claimed, str) or not re.fullmatch(r"(0x)?[0-9a-fA-F]{40}", claimed):
            raise _bad_keystore(path, "its address is not 20 bytes in hex")
        address = checksum_address(claimed)
    checked = {**crypto, "kdfparams": parameters, "cipherparams": cipher_parameters}
    return Keystore(path, address, {"version": 3, "crypto": checked})


def create_wallet(path: Path, password: str, *, light: bool = False, key: bytes | None = None) -> Address:
    """Write a new keystore, of a fresh key or the given 32 bytes. Raises WalletError if `path` exists."""
    from dfl_ledger.accounts import Account

    if path.exists() or path.is_symlink():
        raise _exists(path)
    account = _account(secrets.token_bytes(32) if key is None else key, Account)
    n = LIGHT_SCRYPT_N if light else STANDARD_SCRYPT_N
    keystore = Account.encrypt(account.key, password, kdf="scrypt", iterations=n)
    try:
        write_private(path, json.dumps(keystore, indent=2).encode() + b"\n")
    except FileExistsError as bad:
        raise _exists(path) from bad
    except OSError as bad:
        raise WalletError(f"cannot write the wallet {path}", why=bad.strerror or str(bad)) from bad
    return Address(account.address)


def parse_private_key(text: str) -> bytes:
    """32 bytes from hex, with or without 0x. Raises WalletError, which never shows the text."""
    digits = text.strip().removeprefix("0x").removeprefix("0X")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
        raise WalletError("this is not a private key", why="a private key is 32 bytes: 64 hex digits")
    key = bytes.fromhex(digits)
    if not 0 < int.from_bytes(key, "big") < _SECP256K1_ORDER:
        raise WalletError("this is not a private key", why="the number is outside the curve's order")
    return key


def read_password_file(path: Path) -> str:
    """The file's text without its last newline. Raises KeyFileExposed, WalletError."""
    data = read_private(path, what="password file", max_bytes=MAX_PASSWORD_BYTES)
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as bad:
        raise WalletError(f"cannot read the password file {path}", why="it is not UTF-8 text") from bad


def checksum_address(text: str) -> Address:
    """EIP-55 form of 20 bytes in hex. Raises UsageError, also for mixed case with a wrong checksum."""
    from eth_utils.address import is_checksum_address, to_checksum_address

    if not re.fullmatch(r"(0x)?[0-9a-fA-F]{40}", text):
        raise UsageError(
            f"{text[:60]!r} is not an address",
            why="an address is 0x and 40 hex digits",
            help_command="dfl-node wallet show FILE",
        )
    address = Address(to_checksum_address("0x" + text.removeprefix("0x")))
    body = text.removeprefix("0x")
    if body not in (body.lower(), body.upper()) and not is_checksum_address("0x" + body):
        raise UsageError(
            f"{text} has a wrong checksum",
            why=f"by EIP-55 it would be {address}",
            help_command="dfl-node wallet show FILE",
        )
    return address


def _account(key: bytes, factory: Any) -> LocalAccount:
    account: LocalAccount = factory.from_key(key)
    return account


def _exists(path: Path) -> WalletError:
    return WalletError(
        f"{path} exists already",
        why="a wallet is never overwritten: it may hold money",
        help_command=f"dfl-node wallet show {shlex.quote(str(path))}",
    )


def _bad_keystore(path: Path, why: str) -> WalletError:
    return WalletError(f"{path} is not a wallet", why=why, help_command="dfl-node wallet new FILE")


def _lower_keys(value: Any, path: Path, name: str = "") -> dict[str, Any]:
    """Old wallets write `Crypto`."""
    if not isinstance(value, dict):
        raise _bad_keystore(path, f"{name or 'it'} is not a JSON object")
    return {key.lower(): item for key, item in value.items()}


def _hex(table: Mapping[str, Any], name: str, path: Path, size: int | None = None) -> None:
    value = table.get(name)
    digits = value.removeprefix("0x") if isinstance(value, str) else ""
    if not re.fullmatch(r"([0-9a-fA-F]{2}){1,64}", digits) or size not in (None, len(digits) // 2):
        raise _bad_keystore(path, f"its {name} is not {size or '1 to 64'} bytes in hex")


def _check_cost(kdf: str, parameters: Mapping[str, Any], path: Path) -> None:
    def number(name: str, high: int) -> int:
        value = parameters.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
            raise _bad_keystore(path, f"its {kdf} parameter {name} is not from 1 to {high}")
        return value

    if parameters.get("dklen") != 32:
        raise _bad_keystore(path, "its derived key has not 32 bytes")
    match kdf:
        case "scrypt":
            n, r, p = number("n", 2**22), number("r", 64), number("p", 64)
            if n & (n - 1) or n == 1:
                raise _bad_keystore(path, f"its scrypt parameter n = {n} is not a power of two")
            if 128 * n * r > MAX_SCRYPT_BYTES or n * r * p > MAX_SCRYPT_WORK:
                raise _bad_keystore(
                    path, f"scrypt with n={n}, r={r}, p={p} would take {128 * n * r >> 20} MiB, {p} times"
                )
        case "pbkdf2":
            number("c", MAX_PBKDF2_ROUNDS)
            if parameters.get("prf") != "hmac-sha256":
                raise _bad_keystore(path, "its pbkdf2 function is not hmac-sha256")
        case _:
            raise _bad_keystore(path, f"its key derivation is {kdf!r:.20}, not scrypt or pbkdf2")


# -- node key ----------------------------------------------------------------------------------------------
def node_key_path(datadir: Path) -> Path:
    return datadir / _NODE_KEY


@dataclass(frozen=True, slots=True)
class NodeKey:
    """The Ed25519 key behind the node's peer id."""

    seed: bytes = field(repr=False)  # 32 bytes

    @property
    def public(self) -> bytes:
        """32 bytes: the raw public key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()


def load_node_key(datadir: Path) -> NodeKey:
    """The node's key, made on the first call. Raises KeyFileExposed, WalletError."""
    path = node_key_path(datadir)
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            write_private(path, secrets.token_bytes(32))
    seed = read_private(path, what="node key")
    if len(seed) != 32:
        raise WalletError(
            f"{path} is not a node key",
            why=f"it has {len(seed)} bytes, not 32; a new one costs the node its peer id, and no money",
            help_command=f"rm {shlex.quote(str(path))}",
        )
    return NodeKey(seed)
