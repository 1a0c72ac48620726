"""The in-memory twin of libraries/Panels.sol: where a panel stands, and what it judges."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfl_ledger.records import NOBODY, Address, PanelPhase, PanelState, Seat


@dataclass
class Panel:
    """A panel's storage."""

    started_at: int = 0
    draw_block: int = 0  # before the draw, 0 stands for the round's own
    window_s: int = 0  # 0 before the draw
    audits: int = 0
    datasets: int = 0
    contributions: int = 0
    payees: int = 0  # one more than the highest payee number among those who committed
    seed: bytes = bytes(32)
    seats: list[Seat] = field(default_factory=list)
    vectors: dict[int, bytes] = field(default_factory=dict)  # by seat
    committed: set[int] = field(default_factory=set)
    revealed: set[int] = field(default_factory=set)
    punished: set[int] = field(default_factory=set)
    penalized: set[int] = field(default_factory=set)

    @property
    def is_drawn(self) -> bool:
        """True once it has its seats, if only none."""
        return self.window_s > 0

    def phase(self, now: int, started_at: int, window_s: int) -> PanelPhase:
        early = now < started_at + window_s
        if not self.is_drawn:
            return PanelPhase.COMMIT if early else PanelPhase.DONE
        if early and len(self.committed) < len(self.seats):
            return PanelPhase.COMMIT
        late = now >= started_at + 2 * window_s
        return PanelPhase.DONE if late or self.committed == self.revealed else PanelPhase.REVEAL

    def phase_now(self, now: int) -> PanelPhase:
        """Of one that is drawn."""
        return self.phase(now, self.started_at, self.window_s)

    def subjects(self, number: int) -> int:
        """Scores of a vector: panel 0 scores a round, the others are juries."""
        return self.model_subject + 1 if number == 0 else 1

    def audit_subject(self, audit: int) -> int:
        return self.contributions + self.datasets + audit

    @property
    def model_subject(self) -> int:
        return self.audit_subject(self.audits)

    def seat_of(self, account: Address) -> tuple[int, bool] | None:
        """The account's seat, and whether it showed its scores."""
        for number, seat in enumerate(self.seats):
            if seat.evaluator == account:
                return number, number in self.revealed
        return None


NO_PANEL = PanelState(PanelPhase.NONE, 0, 0, 0, 0, 0, 0, 0, 0, 0, bytes(32))


@dataclass
class AuditRecord:
    """A failed audit's storage."""

    node: Address = NOBODY
    appeal_until: int = 0
    appealed: bool = False
    decided: bool = False
