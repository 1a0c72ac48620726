"""The wallet says which node key is its own: an EIP-712 signature that every peer checks before it talks.

Typed data (https://eips.ethereum.org/EIPS/eip-712): domain {name "dfl", version "1", chainId, registry as
verifyingContract}, message NodeBinding(bytes32 peerKey). Losing the node key loses no money, and a binding
for one chain or registry is worth nothing on another.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from dfl_ledger.errors import BindingInvalid
from dfl_ledger.records import Address

from .channel import PeerId

_VERSION = 1
_LAYOUT = struct.Struct(">B20s32sQ20s65s")  # version, wallet, peer key, chain id, registry, signature
BINDING_BYTES = _LAYOUT.size
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# An Ed25519 peer id is the identity multihash of the key's protobuf: type 1 (Ed25519), 32 bytes of data.
# https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
_PEER_ID_PREFIX = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
_PEER_ID_BYTES = len(_PEER_ID_PREFIX) + 32


class Signer(Protocol):
    """The part of eth_account's LocalAccount that signs."""

    @property
    def address(self) -> Any: ...

    def sign_message(self, signable_message: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Binding:
    """A wallet's statement that a node key acts for it."""

    address: Address
    peer_key: bytes  # 32 bytes: raw Ed25519 public key
    chain_id: int
    registry: Address
    signature: bytes  # 65 bytes: r, s, v


def peer_id_of(peer_key: bytes) -> PeerId:
    """The libp2p peer id of a raw Ed25519 public key. Raises ValueError unless it has 32 bytes."""
    if len(peer_key) != 32:
        raise ValueError(f"an Ed25519 public key has 32 bytes, not {len(peer_key)}")
    raw = _PEER_ID_PREFIX + peer_key
    number = int.from_bytes(raw, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    leading_zeros = len(raw) - len(raw.lstrip(b"\0"))
    return PeerId("1" * leading_zeros + digits)


def peer_key_of(peer_id: str) -> bytes:
    """The raw Ed25519 public key inside a peer id. Raises ValueError for any other kind of peer id."""
    if not peer_id or len(peer_id) > 60 or any(char not in _BASE58 for char in peer_id):
        raise ValueError(f"not a peer id in base58: {peer_id[:64]!r}")
    number = 0
    for char in peer_id:
        number = number * 58 + _BASE58.index(char)
    if number.bit_length() > 8 * _PEER_ID_BYTES:
        raise ValueError(f"not an Ed25519 peer id: {peer_id!r}")
    raw = number.to_bytes(_PEER_ID_BYTES, "big")
    key = raw[len(_PEER_ID_PREFIX) :]
    if not raw.startswith(_PEER_ID_PREFIX) or peer_id_of(key) != peer_id:
        raise ValueError(f"not an Ed25519 peer id: {peer_id!r}")
    return key


def sign_binding(account: Signer, *, peer_key: bytes, chain_id: int, registry: Address) -> Binding:
    """Bind a node key to the account's wallet."""
    signed = account.sign_message(_typed_data(peer_key, chain_id, registry))
    return Binding(Address(str(account.address)), peer_key, chain_id, registry, bytes(signed.signature))


def verify_binding(binding: Binding, *, peer_key: bytes, chain_id: int, registry: Address) -> Address:
    """The wallet that signed.

    Raises BindingInvalid, naming what is wrong: another node key, another chain, another registry, or a
    signature that is not the wallet's.
    """
    what = "the peer's wallet binding does not verify"
    if binding.peer_key != peer_key:
        raise BindingInvalid(what, why="it binds another node key")
    if binding.chain_id != chain_id:
        raise BindingInvalid(
            what, why=f"the peer is on chain {binding.chain_id}, this node on chain {chain_id}"
        )
    if binding.registry.lower() != registry.lower():
        raise BindingInvalid(
            what, why=f"the peer uses the registry {binding.registry}, this node uses {registry}"
        )
    signer = _signer_of(binding)
    if signer is None or signer.lower() != binding.address.lower():
        raise BindingInvalid(what, why=f"the signature is not that of {binding.address}")
    return signer


def encode_binding(binding: Binding) -> bytes:
    """Fixed layout, BINDING_BYTES long."""
    return _LAYOUT.pack(
        _VERSION,
        _raw_address(binding.address),
        binding.peer_key,
        binding.chain_id,
        _raw_address(binding.registry),
        binding.signature,
    )


def decode_binding(raw: bytes) -> Binding:
    """Raises BindingInvalid unless the bytes are exactly one binding. The signature is not checked here."""
    if len(raw) != BINDING_BYTES:
        raise BindingInvalid(
            "the peer's wallet binding is malformed", why=f"{len(raw)} bytes, not {BINDING_BYTES}"
        )
    version, address, peer_key, chain_id, registry, signature = _LAYOUT.unpack(raw)
    if version != _VERSION:
        raise BindingInvalid("the peer's wallet binding is malformed", why=f"version {version}")
    return Binding(_checksummed(address), peer_key, chain_id, _checksummed(registry), signature)


@lru_cache(maxsize=512)
def _signer_of(binding: Binding) -> Address | None:
    from dfl_ledger.accounts import Account  # half a second: only when a peer is met

    # eth_account would also take a signature of another length or with another v; one form is enough.
    if len(binding.signature) != 65 or binding.signature[64] not in (27, 28):
        return None
    message = _typed_data(binding.peer_key, binding.chain_id, binding.registry)
    try:
        return Address(str(Account.recover_message(message, signature=binding.signature)))
    except Exception:  # the signature is a stranger's bytes: whatever it breaks, it is not valid
        return None


def _typed_data(peer_key: bytes, chain_id: int, registry: Address) -> Any:
    from eth_account.messages import encode_typed_data  # as above

    return encode_typed_data(
        {"name": "dfl", "version": "1", "chainId": chain_id, "verifyingContract": registry},
        {"NodeBinding": [{"name": "peerKey", "type": "bytes32"}]},
        {"peerKey": peer_key},
    )


def _raw_address(address: Address) -> bytes:
    raw = bytes.fromhex(address.removeprefix("0x"))
    if len(raw) != 20:
        raise ValueError(f"not an Ethereum address: {address!r}")
    return raw


def _checksummed(raw: bytes) -> Address:
    from eth_utils.address import to_checksum_address  # as above

    return Address(str(to_checksum_address(raw)))
