"""The ledger: who did what, what it was worth, and what was paid for it. No torch, no libp2p."""
