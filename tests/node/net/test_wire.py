"""Frames and messages: what is not one is refused, whatever it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dfl_node.net.wire import (
    MAX_HELLO_BYTES,
    MAX_PEERS_BYTES,
    Hello,
    Listed,
    WireError,
    decode_hello,
    decode_peers,
    encode_hello,
    encode_peers,
    read_frame,
    write_frame,
)
from tests.node.net.support import bound, key_of, seed_of

HELLO = Hello(
    binding=bound(1),
    nonce=bytes(range(16)),
    time_ms=1_700_000_000_000,
    gateway_port=8080,
    offers_relay=True,
    agent="dfl/0.1",
    addrs=("/ip4/127.0.0.1/tcp/1/p2p/x", "/ip6/::1/tcp/2/p2p/x"),
)


class Dribble:
    """A stream that gives a byte at a time, as a libp2p stream may."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.asked: list[int | None] = []

    async def read(self, n: int | None = None) -> bytes:
        self.asked.append(n)
        byte, self.data = self.data[:1], self.data[1:]
        return byte

    async def write(self, data: bytes) -> None:
        self.data += data


def test_a_frame_arrives_in_pieces() -> None:
    async def story() -> None:
        stream = Dribble()
        await write_frame(stream, b"hello")
        assert await read_frame(stream, 5) == b"hello"

    trio.run(story)


@pytest.mark.parametrize(
    "sent", [b"", b"\0\0\0", b"\0\0\0\x05hell", b"\0\0\0\x06hello!", b"\xff\xff\xff\xff"]
)
def test_a_bad_frame_is_refused(sent: bytes) -> None:
    async def story() -> None:
        stream = Dribble(sent)
        with pytest.raises(WireError):
            await read_frame(stream, 5)
        assert all(asked is not None and asked <= 5 for asked in stream.asked)

    trio.run(story)


def test_a_hello_survives_its_encoding() -> None:
    assert decode_hello(encode_hello(HELLO)) == HELLO
    bare = replace(HELLO, gateway_port=None, offers_relay=False, agent="", addrs=())
    assert decode_hello(encode_hello(bare)) == bare


def test_a_hello_stays_within_its_limit() -> None:
    long = replace(HELLO, agent="a" * 500, addrs=tuple("/dns/" + "x" * 245 for _ in range(50)))
    raw = encode_hello(long)
    assert len(raw) <= MAX_HELLO_BYTES
    assert len(decode_hello(raw).addrs) == 8


def test_control_characters_are_refused() -> None:
    with pytest.raises(WireError):
        decode_hello(encode_hello(replace(HELLO, agent="\x1b[2J")))


@given(st.binary(max_size=600), st.integers(0, 400), st.integers(0, 255))
def test_a_spoilt_hello_is_read_or_refused(noise: bytes, at: int, byte: int) -> None:
    raw = bytearray(encode_hello(HELLO))
    raw[at % len(raw)] = byte
    for candidate in (noise, bytes(raw), bytes(raw[:at]), bytes(raw) + noise):
        try:
            hello = decode_hello(candidate)
        except WireError:
            continue
        assert encode_hello(hello)[:20] == candidate[:20]


def test_a_list_of_peers_survives_its_encoding() -> None:
    listed = tuple(Listed(key_of(seed_of(number)), HELLO.addrs) for number in range(16))
    assert decode_peers(encode_peers(listed)) == listed
    assert decode_peers(encode_peers(())) == ()
    many = tuple(Listed(bytes(32), ("/dns/" + "x" * 245,) * 20) for _ in range(99))
    assert len(encode_peers(many)) <= MAX_PEERS_BYTES
    assert len(decode_peers(encode_peers(many))) == 16


@given(st.binary(max_size=200))
def test_bytes_are_a_list_of_peers_or_refused(raw: bytes) -> None:
    try:
        listed = decode_peers(raw)
    except WireError:
        return
    assert encode_peers(listed) == raw
