"""`dfl-node demo`: the main job on this machine, whole, with real processes, a real chain and real digits."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfl_ledger.errors import DflError, TimedOut
from dfl_node.cli.demo_jobs import JOBS, DemoJob
from dfl_node.cli.output import Result, command_output, note, table, vnx

if TYPE_CHECKING:
    from dfl_ledger.records import JobId
    from dfl_ledger.rows import ContributionRow
    from dfl_node.cli.comparison import Comparison
    from dfl_node.localnet import LocalNet, LocalNode
    from dfl_node.train.trainer import Evaluation

PARTS = 12  # the training images are cut into so many parts, shared out evenly
MAX_NODES = 12
CLAIM_S = 60.0  # for one node's claim


@click.command()
@click.option(
    "--mode", default="sync", show_default=True, type=click.Choice(tuple(JOBS)), help="How to train."
)
@click.option(
    "--nodes", type=click.IntRange(2, MAX_NODES), help="Nodes that train.  [default: 3, pipeline 4]"
)
@click.option("--rounds", type=click.IntRange(1, 1000), help="Rounds to complete.  [default: by mode]")
@click.option("--kill-one", is_flag=True, help="SIGKILL one node in the middle of a round.")
@click.option(
    "--datadir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where everything is kept; emptied first.  [default: $DFL_HOME/demo or ~/.dfl/demo]",
)
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds to wait for the job.")
@command_output
def demo(
    mode: str, nodes: int | None, rounds: int | None, kill_one: bool, datadir: Path | None, timeout_s: float
) -> Result:
    """Train digits on a network of real nodes on this machine, and pay them for it."""
    from dfl_node import logs
    from dfl_node.localnet import LocalNet

    logs.configure("console", "warning")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the network ends with us, in order
    root = (datadir or _home() / "demo").absolute()
    with LocalNet(root) as net:
        job = JOBS[mode]
        return _Demo(net, job, nodes or job.nodes, rounds or job.rounds, kill_one, timeout_s).run()


def _home() -> Path:
    chosen = os.environ.get("DFL_HOME")
    return Path(chosen) if chosen else Path.home() / ".dfl"


class _Demo:
    """One run, told step by step."""

    def __init__(
        self, net: LocalNet, job: DemoJob, nodes: int, rounds: int, kill_one: bool, timeout_s: float
    ) -> None:
        from dfl_node import jobspec

        self._net = net
        self._job = job
        self._text = job.spec(nodes=nodes, rounds=rounds, kill_one=kill_one)
        self._spec = jobspec.parse(self._text)
        self._count = nodes
        self._rounds = rounds
        self._kill_one = kill_one
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self._told: set[str] = set()
        self._settled: set[int] = set()  # rounds that were told as such
        self._killed: Killed | None = None

    def run(self) -> Result:
        from dfl_node.cli.comparison import Comparison

        net = self._net
        self._say(f"a development chain runs at {net.chain.rpc_url}, its contracts are deployed")
        self._start_nodes()
        job = net.submit(self._text)
        rounds = f"{self._rounds} {self._job.unit}s, 100 VNX each, in escrow"
        self._say(f"job {job} submitted, mode {self._job.mode}: {rounds}")
        planned = None if self._kill_one else self._job.samples(nodes=self._count, rounds=self._rounds)
        with Comparison(self._spec, planned) as comparison:
            return self._run(job, comparison)

    def _run(self, job: JobId, comparison: Comparison) -> Result:
        net = self._net
        final = net.watch(job, _settled, timeout_s=self._timeout_s, on_change=self._tell, on_look=self._look)
        if final["phase"] != "completed":
            raise DflError(
                f"job {job} ended as {final['phase']}", help_command=self._command("job status", job)
            )
        claimed = self._claim()
        output = net.root / "model"
        net.cli("job", "download", str(job), "-o", str(output), "--datadir", self._datadir())
        self._say(f"the model was downloaded to {output}")
        federated, samples = self._evaluate(output), self._samples(job)
        self._say(f"waiting for the same model trained centrally on {samples} samples, to compare")
        central = comparison.after(samples)
        data = self._data(job, final, claimed, output, federated, central)
        return Result(data, text=self._summary(data))

    # -- the steps ------------------------------------------------------------------------------------
    def _start_nodes(self) -> None:
        """All at once: who is up first lists itself in the chain's registry, and the others find it there."""
        from dfl_node.localnet import ROLES

        net = self._net
        for number in range(1, self._count + 1):
            first = (number - 1) * PARTS // self._count + 1
            last = number * PARTS // self._count
            shard = ("--shard", f"{first}:{last}/{PARTS}", "--data", "digits")
            net.add_node(*shard, roles=ROLES + (",boot" if number == 1 else ""))
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
            if row["state"] == "settled" and number not in self._settled:
                self._settled.add(number)
                self._tell_settled(job["job"], number)

    def _tell_settled(self, job: JobId, number: int) -> None:
        with self._net.rows() as ledger:
            panel = ledger.panel(job, number)
        seats = () if panel is None else panel.seats
        shown = sum(seat.revealed_tx is not None for seat in seats)
        self._say(f"round {number}: scored by {shown} of {len(seats)} evaluators, settled")

    def _look(self, job: dict[str, Any]) -> None:
        """What must be noticed at once, whether or not the ledger has anything new."""
        running = [row["round"] for row in job["rounds"] if row["state"] == "open"]
        if self._killed is not None:
            self._killed.look(job, self._pieces(job["job"]))
        elif self._kill_one and running and running[-1] >= self._job.kill_in_round:
            self._kill(job)

    def _kill(self, job: dict[str, Any]) -> None:
        """SIGKILL to a node that is at work; never to the first, which is the requester."""
        victim = self._victim(job)
        if victim is None:
            return
        pieces = self._pieces(job["job"])
        self._net.kill(victim)
        self._killed = Killed(victim.number, victim.address, job["rounds"][-1]["round"], len(pieces))
        self._say(f"node {victim.number} was killed (SIGKILL) in {self._job.unit} {self._killed.round}")

    def _victim(self, job: dict[str, Any]) -> LocalNode | None:
        """Who would be missed most: the holder of the lease, or of a stage."""
        from dfl_node.api.client import NodeClient

        others = self._net.nodes[1:]
        if self._job.mode in ("sync", "async"):
            return others[-1]
        with NodeClient(self._net.nodes[0].datadir, timeout_s=5.0) as node:
            seen = node.job(job["job"])
        activity = seen.get("live", {}).get("activity", {})
        if self._job.mode == "pipeline" and activity.get("step", 0) < 1:
            return None  # not under way yet
        at_work = activity.get("stages", seen["awaited"])
        return next((node for node in others if node.address in at_work), None)

    def _pieces(self, job: JobId) -> list[ContributionRow]:
        with self._net.rows() as ledger:
            return list(ledger.contributions(job=job, limit=None))

    def _claim(self) -> dict[str, int]:
        """Every living node claims what it earned; waits for the challenge window of the last round."""
        claimed: dict[str, int] = {node.address: 0 for node in self._net.nodes}
        self._await_evidence()
        for node in self._living():
            earned, deadline = self._earned(), time.monotonic() + CLAIM_S
            while claimed[node.address] < earned.get(node.address, 0):
                data = self._net.cli("ledger", "claim", "--datadir", str(node.datadir))
                claimed[node.address] += int(data["total_wei"])
                if time.monotonic() > deadline:
                    raise TimedOut(f"node {node.number} could not claim all it earned")
            self._say(f"node {node.number} claimed {vnx(claimed[node.address])}")
        return claimed

    def _await_evidence(self) -> None:
        """Until the ledger knows what every settlement pays to whom."""
        deadline = time.monotonic() + CLAIM_S
        with self._net.rows() as ledger:
            while ledger.index_state().missing_evidence:
                if time.monotonic() > deadline:
                    raise TimedOut("the evidence of a settlement did not come")
                time.sleep(0.1)

    def _earned(self) -> dict[str, int]:
        """What each node has earned by its work and by judging, in wei."""
        with self._net.rows() as ledger:
            return {node.address: ledger.earnings(node.address).earned_wei for node in self._net.nodes}

    def _evaluate(self, output: Path) -> Evaluation:
        """The downloaded model, on images the network never saw."""
        import trio

        from dfl_node.specrules import model_config
        from dfl_node.train.process import open_trainer

        weights = (output / "model.safetensors").read_bytes()

        async def run() -> Evaluation:
            async with open_trainer(nice=0) as trainer:
                holdout = await trainer.holdout_rows(self._spec.app)
                self._holdout().write_bytes(holdout)
                return await trainer.evaluate(model_config(self._spec), weights, holdout)

        return trio.run(run)

    def _samples(self, job: JobId) -> int:
        """How many training samples went into the model: a pipeline's stages all see the same ones."""
        pieces = self._pieces(job)
        if self._job.mode != "pipeline":
            return sum(piece.samples for piece in pieces)
        return sum({piece.round: piece.samples for piece in pieces}.values())

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
        net, earned, stats = self._net, self._earned(), self._net.round_stats(job)
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
            "mode": self._job.mode,
            "recovered": [] if self._killed is None else [self._killed.to_json(self._pieces(job))],
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
            (self._job.unit, "seconds", "contributions", "bytes sent"),
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
        recovered = "".join(f"{_recovery(r)}\n" for r in data["recovered"])
        job = data["job_id"]
        looks = "\n".join(
            f"  {self._command(words, *rest)}"
            for words, rest in (
                ("job status", (job,)),
                ("job draw", (job,)),
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
            f"{recovered}"
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


@dataclass(slots=True)
class Killed:
    """A node that died, and how the job went on without it."""

    node: int
    address: str
    round: int
    pieces: int  # that were revealed when it died
    at: float = field(default_factory=time.monotonic)
    seconds: float | None = None

    def look(self, job: dict[str, Any], pieces: list[ContributionRow]) -> None:
        """Recovered is: the next piece of somebody else's work is on chain, or the round's model is."""
        published = any(row["round"] == self.round and row["model"] for row in job["rounds"])
        if self.seconds is None and (published or any(p.node != self.address for p in pieces[self.pieces :])):
            self.seconds = time.monotonic() - self.at

    def to_json(self, pieces: list[ContributionRow]) -> dict[str, Any]:
        since = [p for p in pieces[self.pieces :] if p.round == self.round and p.node != self.address]
        return {
            "node": self.node,
            "address": self.address,
            "round": self.round,
            "replaced_by": [piece.node for piece in since[:1]],
            "seconds": None if self.seconds is None else round(self.seconds, 2),
        }


def _recovery(found: dict[str, Any]) -> str:
    after = "not at all" if found["seconds"] is None else f"{found['seconds']} s later"
    return f"node {found['node']} died in round {found['round']}; work went on {after}"


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
