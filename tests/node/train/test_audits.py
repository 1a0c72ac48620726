"""Audits by the trainer with a process of its own: what a machine may not change, and 10,000 honest ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import trio

from dfl_node.train import evaluation, local_sgd, models, network
from dfl_node.train.aggregators import arrays
from dfl_node.train.evaluation import Inputs
from dfl_node.train.process import open_trainer
from dfl_node.train.rows import Rows, commitment, read_npz, write_npz
from dfl_node.train.tensors import State
from dfl_node.train.trainer import ModelConfig, Recomputed, TrainingConfig
from dfl_node.value import audit
from tests.conformance.trainer import MODEL, TRAINING, assignment
from tests.conformance.trainer_audit import described

WITHIN_S = 240.0  # two workers are started, on a machine that may be busy


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(WITHIN_S):
            await main()

    trio.run(limited)


def test_the_reference_does_not_depend_on_a_nodes_threads() -> None:
    """A node that gives two threads works and audits as one that gives one, bit for bit."""

    async def main() -> None:
        found = []
        for threads in (1, 2):
            async with open_trainer(threads=threads) as trainer:
                model = replace(MODEL, args={"hidden": 256})
                parent = await trainer.init_model(model, 1)
                work = replace(assignment(parent), model=model, training=TRAINING, reference=True)
                update = await trainer.train(work)
                shard = await trainer.shard(work.data)
                again = await trainer.recompute(described(work, shard, update.samples), update.delta)
                assert again == Recomputed(update.delta, 0.0)
                found.append((update.delta, shard))
        assert found[0] == found[1]

    run(main)


def test_a_training_and_an_audit_take_turns() -> None:
    """Neither loses the other's place, and both give what they give alone."""

    async def main() -> None:
        async with open_trainer() as trainer:
            parent = await trainer.init_model(MODEL, 1)
            work = replace(assignment(parent), training=replace(TRAINING, local_steps=400))
            alone = await trainer.train(work)
            told = described(work, await trainer.shard(work.data), alone.samples)
            other = replace(told, node_seed=2)
            expected = await trainer.recompute(other, alone.delta)
            made: list[bytes] = []

            async def train() -> None:
                made.append((await trainer.train(work)).delta)

            async def check() -> None:
                assert await trainer.recompute(other, alone.delta) == expected

            async with trio.open_nursery() as nursery:
                nursery.start_soon(train)
                nursery.start_soon(check)
            assert made == [alone.delta]

    run(main)


# -- the rows -----------------------------------------------------------------------------------------
def rows_of(seed: int, n: int = 12, kind: type[np.generic] = np.uint8) -> Rows:
    random = np.random.RandomState(seed)
    return Rows(random.randint(0, 256, (n, 14, 14)).astype(kind), random.randint(0, 10, n).astype(np.int64))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_commitment_is_of_the_rows_and_not_of_a_file(kind: type[np.generic]) -> None:
    rows = rows_of(1, kind=kind)
    read = read_npz(write_npz(rows))
    assert commitment(read) == commitment(rows)
    assert commitment(Rows(np.asfortranarray(rows.X), rows.y)) == commitment(rows)


def test_a_commitment_changes_with_anything_that_changes_the_work() -> None:
    rows = rows_of(1)
    pixel, label = rows.X.copy(), rows.y.copy()
    pixel[3, 4, 5] ^= 1
    label[3] = 9 - label[3]
    turned = np.roll(np.arange(len(rows)), 1)
    others = (
        Rows(pixel, rows.y),
        Rows(rows.X, label),
        rows.take(turned),  # another order makes other batches
        Rows(rows.X[:-1], rows.y[:-1]),
        Rows(rows.X.astype(np.float32), rows.y),  # read as they are, and not divided by 255
        Rows(rows.X.reshape(len(rows), 7, 28), rows.y),
    )
    assert len({commitment(other) for other in (rows, *others)}) == len(others) + 1


# -- the work -----------------------------------------------------------------------------------------
SMALL = ModelConfig("mlp", {"hidden": 4, "features": 14 * 14})


def worked(inputs: Inputs, parent: State, config: TrainingConfig, seed: tuple[int, ...]) -> State:
    """Parent minus trained, as the worker makes it."""
    net = network.start(SMALL, None)
    evaluation.set_state(net, parent)
    local_sgd.train(
        net,
        inputs,
        config,
        steps=config.local_steps,
        seed=local_sgd.seed_words(*seed),
        progress=lambda step, loss: None,
    )
    trained = evaluation.get_state(net)
    return {name: parent[name] - trained[name] for name in parent}


def false_bans(audits: int) -> int:
    """Honest work by nodes that give one thread or two, on rows and parents of their own; audited on one, as
    rows that went through a file, by the declared samples."""
    kind, bans = models.kind(SMALL), 0
    parent = {
        name: tensor.copy() for name, tensor in evaluation.get_state(network.start(SMALL, None)).items()
    }
    threads = torch.get_num_threads()
    try:
        for number in range(audits):
            rows = rows_of(number)
            steps = 1 + number % 3
            config = replace(
                TRAINING, local_steps=steps, batch_size=8, optimizer=("sgd", "adamw")[number % 2]
            )
            seed = (1, number, number % 20, 1)
            torch.set_num_threads(1 + number % 2)
            sent = worked(evaluation.inputs_of(rows, kind), parent, config, seed)
            torch.set_num_threads(1)
            opened = evaluation.inputs_of(read_npz(write_npz(rows)), kind)
            again = replace(config, local_steps=audit.steps_of(steps * 8, config))
            found = arrays.relative_distance(sent, worked(opened, parent, again, seed))
            bans += bool(audit.objection(found))
            if number % 100 == 0:  # now and then from somewhere else
                parent = {name: parent[name] - delta for name, delta in sent.items()}
    finally:
        torch.set_num_threads(threads)
    return bans


def test_honest_audits_ban_nobody() -> None:
    assert false_bans(100) == 0


@pytest.mark.long
def test_ten_thousand_honest_audits_ban_nobody() -> None:
    assert false_bans(10_000) == 0


def test_time_is_no_part_of_the_work() -> None:
    """A clock that runs, stands or jumps; a budget that ends the loop or not: steps are all that counts."""
    kind = models.kind(SMALL)
    inputs = evaluation.inputs_of(rows_of(1), kind)

    def train(clock: Callable[[], float], budget_s: float | None, steps: int) -> tuple[int, bytes]:
        net = network.start(SMALL, None)
        done = local_sgd.train(
            net,
            inputs,
            TRAINING,
            steps=steps,
            seed=local_sgd.seed_words(1, 2, 3, 4),
            progress=lambda step, loss: None,
            budget_s=budget_s,
            clock=clock,
        )
        return done.steps, b"".join(tensor.tobytes() for tensor in evaluation.get_state(net).values())

    ticks = iter(range(1000))
    slow = train(lambda: float(next(ticks)), 3.0, 6)
    assert slow[0] < 6
    assert train(lambda: 0.0, None, slow[0]) == slow
    assert train(lambda: 0.0, 3.0, 6)[0] == 6
    assert train(lambda: 0.0, None, 6) == train(lambda: 0.0, 3.0, 6)
