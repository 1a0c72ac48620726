"""Whether this node may be drawn to judge rounds, and which seats it leaves empty.

Anybody may create a job whose scoring nobody could be in time for, and live on the bonds of those it draws;
so a node says which seats it takes before anybody may draw it.
"""

from __future__ import annotations

import structlog

from dfl_ledger.ledger import Ledger

log = structlog.get_logger(__name__)

LEAST_WINDOW_S = 5  # of each phase of scoring
RISKED_PART = 4  # an offence costs at most one part in so many of the stake


def enter_panels(ledger: Ledger, stake_wei: int, *, willing: bool) -> None:
    """Be drawn to judge rounds, or not any longer: whoever is drawn and stays silent loses a bond. Blocks."""
    listed, least_wei = ledger.is_evaluator(ledger.address), ledger.min_evaluator_stake_wei()
    if willing and not listed and stake_wei >= max(least_wei, 1):
        _limit_seats(ledger, max(least_wei, stake_wei // RISKED_PART))
        ledger.enlist()
        log.info("enlisted as an evaluator", stake_wei=str(stake_wei))
    elif willing and not listed:
        log.info(
            "too little stake to judge rounds",
            staked_wei=str(stake_wei),
            required_wei=str(least_wei),
            help="dfl-node start --stake VNX …",
        )
    elif listed and not willing:
        ledger.delist()
        log.info("no evaluator any longer")


def _limit_seats(ledger: Ledger, most_bond_wei: int) -> None:
    """Not anew if the limits are these already: new ones hold for no panel that is drawn before."""
    me, head = ledger.address, ledger.head()

    def declined(window_s: int, bond_wei: int) -> bool:
        return ledger.may_decline(me, head, window_s, bond_wei)

    hasty, dear = declined(LEAST_WINDOW_S - 1, most_bond_wei), declined(LEAST_WINDOW_S, most_bond_wei + 1)
    if hasty and dear and not declined(LEAST_WINDOW_S, most_bond_wei):
        return
    ledger.limit_seats(LEAST_WINDOW_S, most_bond_wei)
    log.info("seats limited", least_window_s=LEAST_WINDOW_S, most_bond_wei=str(most_bond_wei))
