"""When what was earned in an audited job is paid: after an audit, to members in standing. Pure.

Updates that an audit would not pass are worth something until it comes: those of a little-is-enough attack
lower the loss nearly as honest ones do. So a round's reward is withheld until its member has passed an audit
of that round or a later one, and by then was worth something in all: only positive worths are paid, so that
work which does harm on the average would be paid for its luck. At the end of a job everybody with something
withheld is audited once, in a round that is drawn (`exit_audit`). Who fails an audit, or is left out of the
aggregate, loses what is withheld; it stays in escrow.

An honest member loses nothing by this but time. One that cheats in a share s of its rounds is found with
probability s at the end alone, and then has worked for nothing in all rounds since its last audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dfl_node.value import audit, standing

MEASURED = (
    standing.WINDOW
)  # rounds that a member must have been measured in before it is paid, but at the end


@dataclass(frozen=True, slots=True)
class Account:
    """One member's money in a job. Methods return what follows; nothing changes in place."""

    payable_wei: int = 0
    withheld: tuple[tuple[int, int], ...] = ()  # (round, wei), in rising order of rounds
    void_wei: int = 0

    @property
    def withheld_wei(self) -> int:
        return sum(wei for _, wei in self.withheld)

    def earned(self, round_: int, wei: int) -> Account:
        """Raises ValueError for a round that is not after the last one."""
        if wei < 0 or (self.withheld and round_ <= self.withheld[-1][0]):
            raise ValueError(f"{wei} wei of round {round_} after {self.withheld[-1:]}")
        return replace(self, withheld=(*self.withheld, (round_, wei))) if wei else self

    def passed(self, round_: int, worths: Sequence[int]) -> Account:
        """An audit of this round passed; `worths` are all that its member was measured to be worth so far."""
        if len(worths) < MEASURED or sum(worths) <= 0:
            return self
        due = sum(wei for earned_in, wei in self.withheld if earned_in <= round_)
        left = tuple(entry for entry in self.withheld if entry[0] > round_)
        return replace(self, payable_wei=self.payable_wei + due, withheld=left)

    def forfeited(self) -> Account:
        """An audit failed, or its work was found to do harm."""
        return Account(self.payable_wei, (), self.void_wei + self.withheld_wei)

    def exit_audit(self, draw: int) -> int | None:
        """The round that is audited when the job ends; None if nothing is withheld."""
        chosen = audit.drawn(draw, len(self.withheld), 1)
        return self.withheld[chosen[0]][0] if chosen else None

    def ended(self, worths: Sequence[int]) -> Account:
        """The exit audit passed: however short the job was, all is paid, or nothing for work that in all did
        harm."""
        if sum(worths) <= 0:
            return self.forfeited()
        return Account(self.payable_wei + self.withheld_wei, (), self.void_wei)
