"""What the stories' jobs promise."""

from __future__ import annotations

from dfl_ledger.memory_chain import ETHER

T0 = 1_750_000_000  # Unix seconds when a story begins
SCORE_S = 20
STAKE_WEI = 10 * ETHER  # of each node
BUDGET_WEI = 10**18 + 1  # a round's; odd, so that a division leaves a remainder
JUDGING_WEI = BUDGET_WEI * 500 // 10_000  # of it, what is for those who judge
COMPUTE_WEI = BUDGET_WEI - JUDGING_WEI
SPEC = """
name = "story"
app = "digits"
[model]
name = "mlp"
[training]
rounds = {rounds}
local_steps = 5
batch_size = 8
lr = 0.1
max_update_bytes = 4096
[round]
min_nodes = {min_nodes}
quorum = {quorum}
open_s = 40
commit_s = 30
reveal_s = 20
aggregate_s = 40
settle_s = {settle_s}
challenge_s = 10
[reward]
round_budget = "1.000000000000000001"
valuation = "shapley"
score_s = 20
"""
