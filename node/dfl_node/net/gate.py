"""Who may hold a socket: a pure decision, taken before a byte of a stranger is read.

A socket is *pending* until its handshake is over, *unverified* until its hello, then *verified*. Silent
sockets are what a flood is made of, so a newcomer never waits for them: when the room for pending sockets is
full, the oldest pending one of the busiest address gives way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from .config import NetLimits


class Stage(Enum):
    PENDING = "handshake"
    UNVERIFIED = "no hello yet"
    VERIFIED = "hello verified"


@dataclass(slots=True, eq=False)
class Seat:
    """One inbound socket's place."""

    ip: str
    since_s: float
    stage: Stage = Stage.PENDING


@dataclass(frozen=True, slots=True)
class Admitted:
    seat: Seat
    evicted: Seat | None  # must be closed to make room


@dataclass(frozen=True, slots=True)
class Refused:
    why: str


@dataclass(slots=True)
class Gate:
    """The seats of the inbound sockets. No clock and no socket in here."""

    limits: NetLimits
    seats: dict[int, Seat] = field(default_factory=dict)

    def admit(self, ip: str, now_s: float) -> Admitted | Refused:
        """A seat for a new socket from `ip`, perhaps at the cost of another."""
        evicted = self._crowded_out(ip)
        if evicted is None:
            if self._count(ip=ip) >= self.limits.max_connections_per_ip:
                return Refused(f"{self.limits.max_connections_per_ip} connections from {ip} already")
            if len(self.seats) >= self.limits.max_connections or (
                self._count(Stage.UNVERIFIED) >= self.limits.max_unverified
            ):
                evicted = self._idle(now_s)
                if evicted is None:
                    return Refused(f"all {self.limits.max_connections} places for connections are taken")
        if evicted is not None:
            self.leave(evicted)
        seat = Seat(ip, now_s)
        self.seats[id(seat)] = seat
        return Admitted(seat, evicted)

    def leave(self, seat: Seat) -> None:
        """The socket is closed. Idempotent."""
        self.seats.pop(id(seat), None)

    def _count(self, stage: Stage | None = None, ip: str | None = None) -> int:
        return sum(
            (stage is None or seat.stage is stage) and (ip is None or seat.ip == ip)
            for seat in self.seats.values()
        )

    def _crowded_out(self, ip: str) -> Seat | None:
        """The pending seat that must give way to a newcomer from `ip`, if pending seats are full."""
        pending = [seat for seat in self.seats.values() if seat.stage is Stage.PENDING]
        mine = [seat for seat in pending if seat.ip == ip]
        if len(mine) >= self.limits.max_pending_per_ip:
            return min(mine, key=lambda seat: seat.since_s)
        if len(pending) >= self.limits.max_pending:
            busiest, _ = Counter(seat.ip for seat in pending).most_common(1)[0]
            return min((seat for seat in pending if seat.ip == busiest), key=lambda seat: seat.since_s)
        return None

    def _idle(self, now_s: float) -> Seat | None:
        """The oldest connection that had its time for a hello and did not say it."""
        idle = [
            seat
            for seat in self.seats.values()
            if seat.stage is Stage.UNVERIFIED and now_s - seat.since_s >= self.limits.hello_s
        ]
        return min(idle, key=lambda seat: seat.since_s, default=None)
