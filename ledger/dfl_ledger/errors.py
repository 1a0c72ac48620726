"""Every error a user can meet, and the exit code that goes with it.

    DflError                      1   failed or reverted
    ├── UsageError                2   the command, a file or a job spec is wrong
    │   └── SpecInvalid           2   names the field of the job spec
    ├── Unreachable               3
    │   ├── ChainUnreachable      3   the RPC endpoint does not answer
    │   │   └── RangeTooLarge     3   it does not give the events of so many blocks at once
    │   ├── PeerUnreachable       3
    │   ├── StoreUnavailable      3   the block store or the Kubo RPC does not answer
    │   ├── BlobNotFound          3   nobody we know has these bytes
    │   └── NodeNotRunning        3   no node runs on this data directory
    ├── TimedOut                  4
    ├── WalletError               5   password, permissions, or funds
    │   ├── WrongPassword         5
    │   ├── KeyFileExposed        5
    │   └── InsufficientFunds     5
    ├── VerificationFailed        6
    │   ├── CidMismatch           6   the bytes are not what the CID names
    │   ├── UpdateRefused         6   NaN, Inf, wrong shape, too large, not safetensors
    │   ├── BindingInvalid        6   a peer's wallet binding does not verify
    │   ├── PeerMisbehaved        6   a peer broke the protocol
    │   └── ReorgTooDeep          6   the chain replaced blocks that counted as final
    ├── Reverted                  1   a contract refused; carries the decoded custom error
    ├── WrongChain                2   the RPC serves another chain id
    └── DatadirLocked             2   another node runs on this data directory

A message says what and why; `help_command` is the one command that helps.
"""

from __future__ import annotations

from typing import Any, ClassVar


class DflError(Exception):
    """Root of the tree. `what` and `why` are for people; `help_command` is one command to run next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", help_command: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.help_command = help_command

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" if self.why else self.what


class UsageError(DflError):
    """The command line, a configuration value or a file's form is wrong."""

    exit_code = 2


class SpecInvalid(UsageError):
    """A job spec has an unknown, missing or impossible field."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"job spec field `{field}`", why=why, help_command="dfl-node job check FILE")
        self.field = field


class WrongChain(UsageError):
    """The RPC endpoint serves another chain than the deployment or the peer expects."""


class DatadirLocked(UsageError):
    """Another node holds the lock of this data directory."""


class Unreachable(DflError):
    exit_code = 3


class ChainUnreachable(Unreachable):
    """The RPC endpoint refuses, times out, or answers with something that is not JSON-RPC."""


class RangeTooLarge(ChainUnreachable):
    """The RPC endpoint refuses to give the events of so many blocks at once: ask for half of them."""


class PeerUnreachable(Unreachable):
    """A peer could not be dialled, or hung up before it answered."""


class StoreUnavailable(Unreachable):
    """The block store or the IPFS daemon behind it does not work."""


class BlobNotFound(Unreachable):
    """Nobody we know has these bytes."""


class NodeNotRunning(Unreachable):
    """No node runs on this data directory."""


class TimedOut(DflError):
    """A wait reached its deadline; the message names what was waited for."""

    exit_code = 4


class WalletError(DflError):
    exit_code = 5


class WrongPassword(WalletError):
    """The keystore's MAC does not match."""


class KeyFileExposed(WalletError):
    """A key file can be read by group or others."""


class InsufficientFunds(WalletError):
    """The wallet cannot pay for gas, stake or escrow."""


class VerificationFailed(DflError):
    exit_code = 6


class CidMismatch(VerificationFailed):
    """The bytes received do not hash to the CID asked for."""


class UpdateRefused(VerificationFailed):
    """A model file is not what the job's schema says: NaN, Inf, shape, dtype, size or format."""


class BindingInvalid(VerificationFailed):
    """A peer's EIP-712 wallet binding does not verify."""


class PeerMisbehaved(VerificationFailed):
    """A peer broke the protocol. Never carries what the peer sent beyond a short repr."""

    def __init__(self, peer: str, why: str) -> None:
        super().__init__(f"peer {peer} misbehaved", why=why, help_command="dfl-node peers")
        self.peer = peer


class ReorgTooDeep(VerificationFailed):
    """The chain replaced more blocks than the ledger can take back: what it says may never have happened."""


class Reverted(DflError):
    """A contract refused the transaction. `error` is the custom error's name, `args_` its arguments."""

    def __init__(self, call: str, error: str, args_: dict[str, Any]) -> None:
        shown = ", ".join(f"{name}={value}" for name, value in args_.items())
        super().__init__(f"{call} was refused by the contract", why=f"{error}({shown})")
        self.call = call
        self.error = error
        self.args_ = args_
