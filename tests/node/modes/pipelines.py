"""What stories about pipelines share: a spec, and what must be true of their models whatever happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfl_ledger.records import Cid, Event, JobId, Kind
from dfl_node.journal import Journal
from dfl_node.modes.pipeline.files import Record, StageFile
from dfl_node.specrules import model_config
from dfl_node.train.memory import MemoryTrainer
from tests.node.modes.machines import is_absence

if TYPE_CHECKING:
    from tests.node.modes.world import World

PIPELINE = """
name = "story"
app = "digits"
mode = "pipeline"
[model]
name = "cnn"
[training]
rounds = {rounds}
local_steps = {steps}
batch_size = 8
lr = 0.1
max_update_bytes = 4096
[pipeline]
stages = {stages}
micro_batches = 4
snapshot_steps = {snapshot_steps}
[round]
min_nodes = {min_nodes}
quorum = {quorum}
open_s = 40
commit_s = {commit_s}
reveal_s = 20
aggregate_s = 40
settle_s = {settle_s}
challenge_s = 10
[reward]
round_budget = "1.000000000000000001"
"""


async def submit(
    world: World,
    *,
    rounds: int = 1,
    stages: int = 2,
    nodes: int = 4,
    steps: int = 20,
    snapshot_steps: int = 4,
    commit_s: int = 60,
) -> JobId:
    return await world.submit(
        text=PIPELINE,
        rounds=rounds,
        min_nodes=nodes,
        quorum=stages,
        stages=stages,
        steps=steps,
        snapshot_steps=snapshot_steps,
        commit_s=commit_s,
    )


async def check_models(world: World) -> None:
    """Each published model is the restacked stages that its aggregator accepted, one of each."""
    spec, trainer = world.spec(), MemoryTrainer()
    assert spec.pipeline is not None
    model = model_config(spec)
    for event in world.job_events("ModelPublished"):
        round_, published = int(str(event.args["round"])), _cid(event.args["model"])
        (machine,) = (m for m in world.machines.values() if m.address == event.args["aggregator"])
        verdicts = Journal(machine.path / "journal.sqlite").verdicts(JobId(1), round_, published)
        assert verdicts is not None
        files = [
            StageFile.decode(world.blob(_cid(row.args["update"])) or b"")
            for row in pieces(world, round_, Kind.STAGE)
            if verdicts[int(str(row.args["index"]))].accepted
        ]
        files.sort(key=lambda file: file.header.stage)
        assert [file.header.stage for file in files] == list(range(spec.pipeline.stages))
        again = await trainer.restack(
            model, files[0].header.cuts, [file.snapshot for file in files], max_update_bytes=4096
        )
        assert world.blob(published) == again, f"round {round_}"
        if world.is_settled(round_):
            for entry, verdict in zip(world.evidence(round_).entries, verdicts, strict=True):
                assert entry.accepted is verdict.accepted or is_absence(verdict.why)


def pieces(world: World, round_: int, kind: Kind) -> list[Event]:
    """What was revealed, as events."""
    return [
        event
        for event in world.job_events("ContributionRevealed")
        if (event.args["round"], event.args["kind"]) == (round_, int(kind))
    ]


def record(world: World, round_: int = 1) -> Record:
    """The feed's account of a round."""
    (event,) = pieces(world, round_, Kind.FEED)
    return Record.decode(world.blob(_cid(event.args["update"])) or b"")


def _cid(digest: object) -> Cid:
    return Cid.from_digest(bytes.fromhex(str(digest).removeprefix("0x")))


def activity(world: World) -> dict[str, object]:
    """What the node that conducts says of the run, or {}."""
    told = [n.jobs[JobId(1)].activity() for n in world.running.values() if JobId(1) in n.jobs]
    return next((t for t in told if "feed" in str(t.get("role"))), {})


def name_of(world: World, address: object) -> str:
    (name,) = (m.name for m in world.machines.values() if m.address == address)
    return name


async def until_step(world: World, step: int) -> None:
    """Losses of so many steps of the current run are known."""
    await world.until(lambda: int(str(activity(world).get("step", 0))) >= step, f"step {step} is done")


def holder(world: World, stage: int) -> str:
    """The machine that holds a stage now."""
    stages = activity(world)["stages"]
    assert isinstance(stages, list)
    return name_of(world, stages[stage])


def conductor(world: World) -> str:
    return name_of(world, activity(world)["conductor"])
