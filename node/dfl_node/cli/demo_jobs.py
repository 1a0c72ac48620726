"""The jobs that `dfl-node demo` submits: the same digits, the same CNN, four ways to train it."""

from __future__ import annotations

from dataclasses import dataclass

_SPEC = """
name = "digits demo"
app = "digits"
mode = "{mode}"

[model]
name = "cnn"

[training]
rounds = {rounds}
local_steps = {steps}
batch_size = {batch}
optimizer = "adamw"
lr = {lr}
seed = 2

[round]
min_nodes = {nodes}
quorum = {quorum}
open_s = 20
commit_s = {commit_s}
reveal_s = 6
aggregate_s = 12
settle_s = 30
challenge_s = 3
{of_mode}
[reward]
round_budget = "100"
required_stake = "10"
bond = "5"
validation = "app"
evaluators = 3
score_s = {score_s}

[reward.shares]
evaluators = 5
"""


@dataclass(frozen=True, slots=True)
class DemoJob:
    """How a mode is shown: with how many nodes, for how long, and what a round is there."""

    mode: str
    nodes: int
    rounds: int
    unit: str  # what a round is called
    steps: int
    batch: int
    commit_s: int
    lr: float = 0.002
    kill_in_round: int = 2

    def spec(self, *, nodes: int, rounds: int, kill_one: bool = False) -> str:
        quorum, of_mode = max(1, nodes - 1), ""
        if self.mode == "async":  # one node may die and the buffer fills all the same
            of_mode = f"\n[async]\nsize = {quorum}\n"
            quorum = max(1, quorum - 1)
        elif self.mode == "pipeline":
            quorum = min(2, nodes - 1)
            of_mode = f"\n[pipeline]\nstages = {quorum}\nmicro_batches = 2\nsnapshot_steps = 10\n"
        return _SPEC.format(
            mode=self.mode,
            rounds=rounds,
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            nodes=nodes,
            quorum=quorum,
            commit_s=self.commit_s,
            score_s=15 if kill_one else 60,  # a dead evaluator's seat costs its window
            of_mode=of_mode,
        )

    def samples(self, *, nodes: int, rounds: int) -> int:
        """That go into the model if nobody is late: a pipeline's stages all see the same ones."""
        pieces = {"async": max(1, nodes - 1), "pipeline": 1}.get(self.mode, nodes)
        return rounds * pieces * self.steps * self.batch


# Windows are wide, because a training that half of one cannot hold is cut short: on a busy machine a model is
# made later, and not worse. A death costs at most one window.
JOBS = {
    job.mode: job
    for job in (
        DemoJob("sync", nodes=3, rounds=5, unit="round", steps=45, batch=32, commit_s=16),
        DemoJob("async", nodes=3, rounds=11, unit="buffer", steps=60, batch=32, commit_s=16),
        DemoJob("pipeline", nodes=4, rounds=5, unit="run", steps=90, batch=64, commit_s=60),
        DemoJob("chained", nodes=3, rounds=6, unit="lap", steps=40, batch=32, commit_s=15, lr=0.001),
    )
}
