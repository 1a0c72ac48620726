"""`dfl-node demo`: the main job on this machine, whole, with real processes, a real chain and real digits."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfl_ledger.errors import DflError, TimedOut
from dfl_node.cli.output import Result, command_output, note, table, vnx

if TYPE_CHECKING:
    from dfl_ledger.records import JobId
    from dfl_node.localnet import LocalNet, LocalNode
    from dfl_node.train.trainer import Evaluation

PARTS = 12  # the training images are cut into so many parts, shared out evenly
KILL_IN_ROUND = 2
MAX_NODES = 12
SPEC = """
name = "digits demo"
app = "digits"
mode = "sync"

[model]
name = "cnn"

[training]
rounds = {rounds}
local_steps = 60
batch_size = 32
optimizer = "adamw"
lr = 0.002
seed = 2

[round]
min_nodes = {nodes}
quorum = {quorum}
open_s = 20
commit_s = 10
reveal_s = 6
aggregate_s = 12
settle_s = 30
challenge_s = 1

[reward]
round_budget = "100"
required_stake = "10"
valuation = "shapley"
validation = "app"
"""


@click.command()
@click.option(
    "--nodes", default=3, show_default=True, type=click.IntRange(2, MAX_NODES), help="Nodes that train."
)
@click.option(
    "--rounds", default=6, show_default=True, type=click.IntRange(1, 1000), help="Rounds to complete."
)
@click.option("--kill-one", is_flag=True, help="SIGKILL one node in the middle of a round.")
@click.option(
    "--datadir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where everything is kept; emptied first.  [default: $DFL_HOME/demo or ~/.dfl/demo]",
)
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds to wait for the job.")
@command_output
def demo(nodes: int, rounds: int, kill_one: bool, datadir: Path | None, timeout_s: float) -> Result:
    """Train digits on a network of real nodes on this machine, and pay them for it."""
    from dfl_node import logs
    from dfl_node.localnet import LocalNet

    logs.configure("console", "warning")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the network ends with us, in order
    root = (datadir or _home() / "demo").absolute()
    with LocalNet(root) as net:
        return _Demo(net, nodes, rounds, kill_one, timeout_s).run()


def _home() -> Path:
    chosen = os.environ.get("DFL_HOME")
    return Path(chosen) if chosen else Path.home() / ".dfl"


class _Demo:
    """One run, told step by step."""

    def __init__(self, net: LocalNet, nodes: int, rounds: int, kill_one: bool, timeout_s: float) -> None:
        self._net = net
        self._count = nodes
        self._rounds = rounds
        self._kill_one = kill_one
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self._told: set[str] = set()

    def run(self) -> Result:
        net = self._net
        self._say(f"a development chain runs at {net.chain.rpc_url}, its contracts are deployed")
        self._start_nodes()
        job = net.submit(SPEC.format(nodes=self._count, rounds=self._rounds, quorum=max(1, self._count - 1)))
        self._say(f"job {job} submitted: {self._rounds} rounds, 100 VNX each, in escrow")
        final = net.watch(job, _settled, timeout_s=self._timeout_s, on_change=self._tell)
        if final["phase"] != "completed":
            raise DflError(
                f"job {job} ended as {final['phase']}", help_command=self._command("job status", job)
            )
        claimed = self._claim(job)
        output = net.root / "model"
        net.cli("job", "download", str(job), "-o", str(output), "--datadir", self._datadir())
        self._say(f"the model was downloaded to {output}")
        federated, central = self._evaluate(output, final)
        data = self._data(job, final, claimed, output, federated, central)
        return Result(data, text=self._summary(data))

    # -- the steps ------------------------------------------------------------------------------------
    def _start_nodes(self) -> None:
        """The first node alone, so that the others have somebody to dial."""
        net = self._net
        for number in range(1, self._count + 1):
            first = (number - 1) * PARTS // self._count + 1
            last = number * PARTS // self._count
            node = net.add_node("--shard", f"{first}:{last}/{PARTS}", "--data", "digits")
            if number == 1:
                net.wait_ready(node)
        net.wait_ready()
        for node in net.nodes:
            self._say(f"node {node.number} is ready: wallet {node.address}, peer {node.info['peer_id']}")

    def _tell(self, job: dict[str, Any]) -> None:
        """Progress, a line for each thing that is new."""
        for row in job["rounds"]:
            number, joined = row["round"], row["contributions"]
            if joined:
                self._once(f"round {number}: {joined} contributions revealed")
            if row["model"]:
                self._once(f"round {number}: model {row['model'][:24]}… published")
            if row["state"] == "void":
                self._once(f"round {number}: void, too few contributions")
            if row["state"] == "settled":
                self._once(f"round {number}: scored and settled")
            if self._kill_one and number == KILL_IN_ROUND and row["state"] == "open":
                self._kill()

    def _kill(self) -> None:
        victim = self._net.nodes[-1]
        if not victim.killed:
            self._net.kill(victim)
            self._say(f"node {victim.number} was killed (SIGKILL) in round {KILL_IN_ROUND}")

    def _claim(self, job: JobId) -> dict[str, int]:
        """Every living node claims what it earned; waits for the challenge window of the last round."""
        claimed: dict[str, int] = {node.address: 0 for node in self._net.nodes}
        deadline = time.monotonic() + 30
        for node in self._living():
            earned = self._earned(job)
            while claimed[node.address] < earned.get(node.address, 0):
                data = self._net.cli("ledger", "claim", "--datadir", str(node.datadir))
                claimed[node.address] += int(data["total_wei"])
                if time.monotonic() > deadline:
                    raise TimedOut(f"node {node.number} could not claim all it earned")
            self._say(f"node {node.number} claimed {vnx(claimed[node.address])}")
        return claimed

    def _earned(self, job: JobId) -> dict[str, int]:
        with self._net.rows() as ledger:
            rows = ledger.contributions(job=job, limit=None)
        earned: dict[str, int] = {}
        for row in rows:
            earned[row.node] = earned.get(row.node, 0) + int(row.reward_wei or 0)
        return earned

    def _evaluate(self, output: Path, final: dict[str, Any]) -> tuple[Evaluation, Evaluation]:
        """The downloaded model and a central run with as many samples, on images the network never saw."""
        import trio

        from dfl_node import jobspec
        from dfl_node.modes.data_parallel import model_config, training_config
        from dfl_node.train.process import open_trainer

        spec = jobspec.parse(SPEC.format(nodes=self._count, rounds=self._rounds, quorum=1))
        with self._net.rows() as ledger:
            rows = ledger.contributions(job=final["job"], limit=None)
        samples = sum(row.samples for row in rows)
        weights = (output / "model.safetensors").read_bytes()

        async def run() -> tuple[Evaluation, Evaluation]:
            async with open_trainer() as trainer:
                holdout = await trainer.holdout_rows(spec.app)
                self._holdout().write_bytes(holdout)
                federated = await trainer.evaluate(model_config(spec), weights, holdout)
                central = await trainer.train_central(
                    model_config(spec), training_config(spec), spec.app, samples
                )
                return federated, central

        self._say(f"training the same model centrally on {samples} samples, to compare")
        return trio.run(run)

    # -- the result -----------------------------------------------------------------------------------
    def _data(
        self,
        job: JobId,
        final: dict[str, Any],
        claimed: dict[str, int],
        output: Path,
        federated: Evaluation,
        central: Evaluation,
    ) -> dict[str, Any]:
        net, earned, stats = self._net, self._earned(job), self._net.round_stats(job)
        rounds = []
        for row in final["rounds"]:
            lived = [s for s in stats.get(row["round"], []) if s.closed_at is not None]
            durations = [s.closed_at - s.opened_at for s in lived if s.closed_at is not None]
            rounds.append(
                {
                    "round": row["round"],
                    "duration_s": round(max(durations, default=0.0), 3),
                    "contributions": row["contributions"],
                    "bytes_sent": sum(s.bytes_sent or 0 for s in lived),
                    "state": row["state"],
                }
            )
        return {
            "job_id": job,
            "model_cid": final["model"],
            "accuracy": round(federated.accuracy, 4),
            "central_accuracy": round(central.accuracy, 4),
            "rounds": rounds,
            "nodes": [
                {
                    "address": node.address,
                    "peer_id": node.info["peer_id"],
                    "earned_wei": str(earned.get(node.address, 0)),
                    "claimed_wei": str(claimed[node.address]),
                    "killed": node.killed,
                }
                for node in net.nodes
            ],
            "contributions": sum(row["contributions"] for row in final["rounds"]),
            "output_dir": str(output),
            "datadir": str(net.root),
            "node_datadir": self._datadir(),
            "seconds": round(time.monotonic() - self._began, 1),
        }

    def _summary(self, data: dict[str, Any]) -> str:
        rounds = table(
            ("round", "seconds", "contributions", "bytes sent"),
            [
                (r["round"], f"{r['duration_s']:.2f}", r["contributions"], f"{r['bytes_sent']:,}")
                for r in data["rounds"]
            ],
        )
        nodes = table(
            ("node", "wallet", "earned", "claimed"),
            [
                (
                    f"{i}{' (killed)' if n['killed'] else ''}",
                    n["address"],
                    vnx(n["earned_wei"]),
                    vnx(n["claimed_wei"]),
                )
                for i, n in enumerate(data["nodes"], 1)
            ],
        )
        job = data["job_id"]
        looks = "\n".join(
            f"  {self._command(words, *rest)}"
            for words, rest in (
                ("job status", (job,)),
                ("ledger query --job", (job,)),
                ("ledger show", (f"{job}.1.0",)),
                ("peers", ()),
            )
        )
        return (
            f"{rounds}\n\n{nodes}\n\n"
            f"accuracy on 1,000 images the network never saw   {data['accuracy']:.4f}\n"
            f"the same model trained centrally                 {data['central_accuracy']:.4f}\n"
            f"model                                            {data['model_cid']}\n"
            f"done in {data['seconds']} s. The network has stopped, its ledgers stay. Look further with:\n\n"
            f"{looks}\n"
            f"  {_program()} eval {shlex.quote(data['output_dir'])}"
            f" --data {shlex.quote(str(self._holdout()))}"
        )

    def _holdout(self) -> Path:
        """The images the network never saw, for `dfl-node eval`."""
        return self._net.root / "holdout.npz"

    # -- small things ---------------------------------------------------------------------------------
    def _living(self) -> list[LocalNode]:
        return [node for node in self._net.nodes if not node.killed]

    def _datadir(self) -> str:
        return str(self._net.nodes[0].datadir)

    def _command(self, words: str, *rest: object) -> str:
        return " ".join([_program(), words, *map(str, rest), "--datadir", shlex.quote(self._datadir())])

    def _say(self, text: str) -> None:
        note(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._say(text)


def _name(number: int, node: dict[str, Any]) -> str:
    return f"{number} (killed)" if node["killed"] else str(number)


def _program() -> str:
    """How to call dfl-node from here: by name in an active environment, else by its path."""
    program = Path(sys.argv[0])
    if "VIRTUAL_ENV" in os.environ or program.name != "dfl-node":
        return "dfl-node"
    return os.path.relpath(program)


def _settled(job: dict[str, Any]) -> bool:
    """The job has ended, and every round with a model has its settlement and evidence."""
    if job["phase"] not in ("completed", "failed", "cancelled"):
        return False
    return all(row["state"] in ("settled", "void") for row in job["rounds"])
