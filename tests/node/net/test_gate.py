"""Who gets a place: decided without a socket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dfl_ledger.records import Address
from dfl_node.net.channel import FoundBy, Peer, PeerId
from dfl_node.net.config import NetLimits
from dfl_node.net.gate import Admitted, Gate, Refused, Seat, Stage
from dfl_node.net.peerbook import PeerBook

LIMITS = NetLimits(
    max_connections=6,
    max_connections_per_ip=4,
    max_pending=4,
    max_pending_per_ip=2,
    max_unverified=3,
    hello_s=5.0,
)


def admit(gate: Gate, ip: str, now_s: float, stage: Stage = Stage.PENDING) -> Seat:
    verdict = gate.admit(ip, now_s)
    assert isinstance(verdict, Admitted)
    verdict.seat.stage = stage
    return verdict.seat


def test_a_newcomer_displaces_the_oldest_silent_socket_of_its_address() -> None:
    gate = Gate(LIMITS)
    oldest, _ = admit(gate, "a", 0), admit(gate, "a", 1)
    verdict = gate.admit("a", 2)
    assert isinstance(verdict, Admitted)
    assert verdict.evicted is oldest


def test_a_crowd_of_silent_sockets_makes_way_for_others() -> None:
    gate = Gate(LIMITS)
    oldest = admit(gate, "a", 0)
    for ip in ("a", "b", "c"):
        admit(gate, ip, 1)
    verdict = gate.admit("d", 2)
    assert isinstance(verdict, Admitted)
    assert verdict.evicted is oldest  # of the busiest address


def test_one_address_gets_so_many_connections() -> None:
    gate = Gate(LIMITS)
    for _ in range(4):
        admit(gate, "a", 0, Stage.VERIFIED)
    assert isinstance(gate.admit("a", 1), Refused)
    assert isinstance(gate.admit("b", 1), Admitted)


def test_who_never_said_hello_makes_way_when_it_is_full() -> None:
    gate = Gate(LIMITS)
    mute = admit(gate, "a", 0, Stage.UNVERIFIED)
    admit(gate, "b", 1, Stage.UNVERIFIED)
    admit(gate, "c", 2, Stage.UNVERIFIED)
    assert isinstance(gate.admit("d", 3), Refused)  # each still has its time for a hello
    verdict = gate.admit("d", 5)
    assert isinstance(verdict, Admitted)
    assert verdict.evicted is mute


def test_verified_peers_are_never_displaced() -> None:
    gate = Gate(LIMITS)
    for number in range(6):
        admit(gate, str(number), 0, Stage.VERIFIED)
    assert isinstance(gate.admit("z", 1000), Refused)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(Stage), st.booleans()), max_size=60))
def test_the_limits_hold_whatever_comes(arrivals: list[tuple[str, Stage, bool]]) -> None:
    gate = Gate(LIMITS)
    for now, (ip, stage, leaves) in enumerate(arrivals):
        verdict = gate.admit(ip, float(now))
        if isinstance(verdict, Admitted):
            assert verdict.evicted is None or verdict.evicted.stage is not Stage.VERIFIED
            verdict.seat.stage = stage
            if leaves:
                gate.leave(verdict.seat)
        seats = list(gate.seats.values())
        assert len(seats) <= LIMITS.max_connections
        assert sum(seat.stage is Stage.PENDING for seat in seats) <= LIMITS.max_pending
        for address in "abcde":
            assert sum(seat.ip == address for seat in seats) <= LIMITS.max_connections_per_ip


def peer(name: str, found_by: FoundBy = FoundBy.INBOUND) -> Peer:
    return Peer(PeerId(name), Address("0x" + "11" * 20), (), None, found_by)


def test_a_refusal_lapses() -> None:
    book = PeerBook(refused_s=10.0, max_strikes=2)
    book.refuse(PeerId("a"), "wrong chain", 0.0)
    assert book.refusal(PeerId("a"), 9.9) == "wrong chain"
    assert book.refusal(PeerId("a"), 10.0) is None
    for number in range(5000):
        book.refuse(PeerId(str(number)), "flood", 20.0)
    assert book.refusal(PeerId("0"), 21.0) is None  # only so many are remembered
    assert book.refusal(PeerId("4999"), 21.0) == "flood"


def test_the_first_way_of_finding_a_peer_is_kept() -> None:
    book = PeerBook(refused_s=10.0, max_strikes=2)
    book.expect(PeerId("a"), FoundBy.MDNS)
    assert book.welcome(peer("a"), relay=True, skew_s=0.0).found_by is FoundBy.MDNS
    assert book.welcome(peer("a", FoundBy.DHT), relay=True, skew_s=0.0).found_by is FoundBy.MDNS
    book.measured(PeerId("a"), 0.25)
    assert book.welcome(peer("a"), relay=False, skew_s=0.0).latency_s == 0.25
    assert book.relays == set()
    assert book.gone(PeerId("a")) is not None
    assert book.gone(PeerId("a")) is None


def test_strikes_count_until_the_peer_is_gone() -> None:
    book = PeerBook(refused_s=10.0, max_strikes=2)
    book.welcome(peer("a"), relay=False, skew_s=0.0)
    assert not book.strike(PeerId("a"))
    assert book.strike(PeerId("a"))
    book.gone(PeerId("a"))
    assert not book.strike(PeerId("a"))
