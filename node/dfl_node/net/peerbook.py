"""What is known about peers: verified, refused, and where they can be dialled. Pure; time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace

from .channel import FoundBy, Peer, PeerId

_MAX_REFUSED = 1024


@dataclass(slots=True)
class PeerBook:
    """Verified peers are those connected now; refusals outlive the connection for a while."""

    refused_s: float
    max_strikes: int
    verified: dict[PeerId, Peer] = field(default_factory=dict)
    relays: set[PeerId] = field(default_factory=set)  # verified peers that offer to relay
    clock_skew_s: dict[PeerId, float] = field(default_factory=dict)  # their clock minus ours
    _refused: OrderedDict[PeerId, tuple[float, str]] = field(default_factory=OrderedDict)
    _strikes: dict[PeerId, int] = field(default_factory=dict)
    _found_by: dict[PeerId, FoundBy] = field(default_factory=dict)

    def welcome(self, peer: Peer, *, relay: bool, skew_s: float) -> Peer:
        """A valid hello. The way a peer was found first is kept while it is connected."""
        known = self.verified.get(peer.peer_id)
        found_by = known.found_by if known else self._found_by.pop(peer.peer_id, peer.found_by)
        latency_s = peer.latency_s if peer.latency_s is not None or known is None else known.latency_s
        peer = replace(peer, found_by=found_by, latency_s=latency_s)
        self.verified[peer.peer_id] = peer
        self.clock_skew_s[peer.peer_id] = skew_s
        (self.relays.add if relay else self.relays.discard)(peer.peer_id)
        self._refused.pop(peer.peer_id, None)
        return peer

    def expect(self, peer_id: PeerId, found_by: FoundBy) -> None:
        """We are about to dial this peer because it was found so."""
        self._found_by[peer_id] = found_by

    def expected(self, peer_id: PeerId) -> FoundBy | None:
        return self._found_by.get(peer_id)

    def forget_expectation(self, peer_id: PeerId) -> None:
        self._found_by.pop(peer_id, None)

    def measured(self, peer_id: PeerId, latency_s: float) -> None:
        peer = self.verified.get(peer_id)
        if peer is not None:
            self.verified[peer_id] = replace(peer, latency_s=latency_s)

    def gone(self, peer_id: PeerId) -> Peer | None:
        """The last connection to the peer is closed."""
        self.relays.discard(peer_id)
        self.clock_skew_s.pop(peer_id, None)
        self._strikes.pop(peer_id, None)
        return self.verified.pop(peer_id, None)

    def refuse(self, peer_id: PeerId, why: str, now_s: float) -> None:
        self._refused[peer_id] = (now_s + self.refused_s, why)
        self._refused.move_to_end(peer_id)
        while len(self._refused) > _MAX_REFUSED:
            self._refused.popitem(last=False)

    def refusal(self, peer_id: PeerId, now_s: float) -> str | None:
        """Why the peer is refused at the moment, or None."""
        until_s, why = self._refused.get(peer_id, (now_s, ""))
        if until_s <= now_s:
            self._refused.pop(peer_id, None)
            return None
        return why

    def strike(self, peer_id: PeerId) -> bool:
        """One more violation; True when it was one too many."""
        self._strikes[peer_id] = self._strikes.get(peer_id, 0) + 1
        return self._strikes[peer_id] >= self.max_strikes
