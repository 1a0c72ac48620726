"""The wallet's signature over a node key."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from dfl_ledger.errors import BindingInvalid
from dfl_ledger.records import Address
from dfl_node.net.binding import (
    BINDING_BYTES,
    Binding,
    decode_binding,
    encode_binding,
    peer_id_of,
    peer_key_of,
    verify_binding,
)
from tests.node.net.support import CHAIN_ID, REGISTRY, bound, key_of, seed_of, wallet_of

OTHER = Address("0x" + "11" * 20)


def verified(binding: Binding) -> Address:
    return verify_binding(binding, peer_key=key_of(seed_of(1)), chain_id=CHAIN_ID, registry=REGISTRY)


def test_a_binding_names_its_wallet() -> None:
    assert verified(bound(1)) == wallet_of(1).address


def test_it_is_the_typed_data_any_wallet_would_sign() -> None:
    typed = {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "NodeBinding": [{"name": "peerKey", "type": "bytes32"}],
        },
        "primaryType": "NodeBinding",
        "domain": {"name": "dfl", "version": "1", "chainId": CHAIN_ID, "verifyingContract": REGISTRY},
        "message": {"peerKey": key_of(seed_of(1))},
    }
    signed = Account.sign_message(encode_typed_data(full_message=typed), wallet_of(1).key)
    assert bytes(signed.signature) == bound(1).signature


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda binding: replace(binding, peer_key=key_of(seed_of(2))), "another node key"),
        (lambda binding: replace(binding, chain_id=1), "chain 1"),
        (lambda binding: replace(binding, registry=OTHER), "registry"),
        (lambda binding: replace(binding, address=OTHER), "signature"),
        (lambda binding: replace(binding, signature=bytes(65)), "signature"),
        (lambda binding: replace(binding, signature=binding.signature[:64]), "signature"),
        (lambda binding: replace(binding, signature=bound(2).signature), "signature"),
        (lambda binding: replace(binding, signature=other_half(binding.signature)), "signature"),
    ],
)
def test_anything_else_is_refused(spoil, reason: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BindingInvalid, match=reason):
        verified(spoil(bound(1)))


def other_half(signature: bytes) -> bytes:
    """The same signature with v as 0 or 1: one form is enough."""
    return signature[:64] + bytes((signature[64] - 27,))


def test_a_binding_survives_its_encoding() -> None:
    raw = encode_binding(bound(1))
    assert len(raw) == BINDING_BYTES == 146
    assert decode_binding(raw) == bound(1)


@given(st.binary(max_size=300))
def test_bytes_are_a_binding_or_refused(raw: bytes) -> None:
    try:
        binding = decode_binding(raw)
    except BindingInvalid:
        return
    assert encode_binding(binding) == raw
    with pytest.raises(BindingInvalid):
        verify_binding(binding, peer_key=binding.peer_key, chain_id=CHAIN_ID, registry=REGISTRY)


def test_peer_ids_are_those_of_libp2p() -> None:
    for number in range(20):
        key_pair = create_new_key_pair(seed_of(number))
        peer_id = peer_id_of(key_pair.public_key.to_bytes())
        assert peer_id == str(ID.from_pubkey(key_pair.public_key))
        assert peer_key_of(peer_id) == key_pair.public_key.to_bytes()


@pytest.mark.parametrize(
    "text", ["", "x" * 61, "0OIl", "12D3KooW", "QmRiin9tG1B8Mtt1jDYm6uuouJGuwt4LN8NtsB9XWDgJuA", "z" * 60]
)
def test_other_peer_ids_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="peer id"):
        peer_key_of(text)
