"""The worker process: how it dies, what it may take, and that nothing of it outlives or blocks the node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from dfl_ledger.errors import DflError, UsageError
from dfl_node.train import process
from dfl_node.train.frames import Frame
from dfl_node.train.process import ProcessTrainer, Progress, WorkerDied, open_trainer
from dfl_node.train.trainer import Assignment, DataConfig, ModelConfig, WeightedUpdate
from dfl_node.value.scoring import Scores
from tests.conformance.trainer import DATA, LIMIT, MODEL, TRAINING, assignment

WITHIN_S = 180.0  # on a machine that may be busy
CNN = ModelConfig("cnn", {})
FOREVER = replace(TRAINING, local_steps=100_000)
MIB = 1 << 20


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(WITHIN_S):
            await story()

    trio.run(bounded)


async def endless(trainer: ProcessTrainer) -> Assignment:
    parent = await trainer.init_model(MODEL, 1)
    return replace(assignment(parent), training=FOREVER)


def is_alive(pid: int) -> bool:
    """Not gone, and not a zombie whose parent has yet to look."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def gone(pid: int) -> None:
    with trio.fail_after(10):
        while is_alive(pid):  # noqa: ASYNC110  nobody tells when somebody else's child ends
            await trio.sleep(0.01)


def memory_mib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) // 1024
    raise AssertionError(field)


def test_sigkill_in_mid_training_costs_one_assignment() -> None:
    async def main() -> None:
        pids: list[int] = []

        def kill(_: Progress) -> None:
            pid = trainer.pid
            if pid is not None and not pids:
                pids.append(pid)
                os.kill(pid, signal.SIGKILL)

        async with open_trainer(on_progress=kill) as trainer:
            work = await endless(trainer)
            with pytest.raises(WorkerDied, match="died during `train`: killed by SIGKILL"):
                await trainer.train(work)
            assert trainer.pid is None
            update = await trainer.train(assignment(work.parent))
            assert update.samples == TRAINING.local_steps * TRAINING.batch_size
            assert trainer.pid not in (None, *pids)
        assert not is_alive(pids[0])

    run(main)


def test_cancelled_training_stops_at_once() -> None:
    async def main() -> None:
        scope = trio.CancelScope()
        pids: list[int | None] = []

        def cancel(_: Progress) -> None:
            pids.append(trainer.pid)
            scope.cancel()

        async with open_trainer(on_progress=cancel) as trainer:
            work = await endless(trainer)
            with scope:
                await trainer.train(work)
            assert scope.cancelled_caught
            assert pids[0] is not None
            assert not is_alive(pids[0])
            assert await trainer.init_model(MODEL, 1) == work.parent

    run(main)


def test_a_worker_that_died_idle_is_replaced_without_a_word() -> None:
    async def main() -> None:
        async with open_trainer() as trainer:
            parent = await trainer.init_model(MODEL, 1)
            first = trainer.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            while trainer.pid is not None:  # noqa: ASYNC110  the kernel takes its time
                await trio.sleep(0.01)
            assert await trainer.init_model(MODEL, 1) == parent
            assert trainer.pid != first

    run(main)


def test_closing_ends_a_request_under_way() -> None:
    async def main() -> None:
        under_way = trio.Event()
        async with (
            open_trainer(on_progress=lambda _: under_way.set()) as trainer,
            trio.open_nursery() as nursery,
        ):
            work = await endless(trainer)
            pid = trainer.pid
            assert pid is not None

            async def train() -> None:
                with pytest.raises(WorkerDied):
                    await trainer.train(work)

            nursery.start_soon(train)
            await under_way.wait()
            await trainer.aclose()
            assert not is_alive(pid)

    run(main)


def test_two_workers_do_the_same_work_bit_for_bit() -> None:
    async def work() -> list[object]:
        async with open_trainer() as trainer:
            config = replace(TRAINING, local_steps=4, optimizer="adamw", lr=0.002)
            parent = await trainer.init_model(CNN, 5)
            deltas = []
            for node in (1, 2):
                todo = Assignment(1, 1, parent, CNN, config, DATA, node)
                deltas.append(WeightedUpdate((await trainer.train(todo)).delta, 64))
            rows = await trainer.validation_rows("digits")
            result = await trainer.aggregate(CNN, parent, deltas, max_update_bytes=LIMIT)
            scores = await trainer.score(CNN, parent, deltas, rows, method="shapley", max_update_bytes=LIMIT)
            return [parent, deltas, rows, result, scores]

    async def main() -> None:
        assert await work() == await work()

    run(main)


def test_training_need_not_wait_for_scoring() -> None:
    """A score of 2^n evaluations lets training in between, and survives that training's cancellation."""

    async def main() -> None:
        order: list[str] = []
        scope = trio.CancelScope()
        async with open_trainer(on_progress=lambda _: scope.cancel()) as trainer:
            parent = await trainer.init_model(MODEL, 1)
            rows = await trainer.validation_rows("digits")
            work = [await trainer.train(replace(assignment(parent), node_seed=n)) for n in range(1, 9)]
            updates = [WeightedUpdate(update.delta, update.samples) for update in work]

            async def score() -> Scores:
                found = await trainer.score(
                    MODEL, parent, updates, rows, method="shapley", max_update_bytes=LIMIT
                )
                order.append("scored")
                return found

            undisturbed = await score()
            results = []

            async def score_disturbed() -> None:
                results.append(await score())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(score_disturbed)
                await trio.testing.wait_all_tasks_blocked()
                await trainer.train(assignment(parent))
                order.append("trained")
                with scope:
                    await trainer.train(replace(assignment(parent), training=FOREVER))
                order.append("cancelled")
            assert order == ["scored", "trained", "cancelled", "scored"]
            assert results == [undisturbed]

    run(main)


NODE = """
import trio
import trio.testing
from dfl_node.train.process import open_trainer
from tests.node.train.test_process import endless

async def main():
    async with open_trainer(on_progress=lambda _: print("worker", trainer.pid, flush=True)) as trainer:
        await trainer.train(await endless(trainer))

trio.run(main)
"""


def test_worker_ends_when_its_node_is_killed() -> None:
    async def main() -> None:
        node = subprocess.Popen([sys.executable, "-c", NODE], stdout=subprocess.PIPE)  # noqa: ASYNC220
        try:
            assert node.stdout is not None
            line = b""
            while not line.startswith(b"worker"):
                line = await trio.to_thread.run_sync(node.stdout.readline, abandon_on_cancel=True)
            worker = int(line.split()[1])
            assert is_alive(worker)
        finally:
            node.kill()
            node.wait()
            node.stdout.close()  # type: ignore[union-attr]
        await gone(worker)

    run(main)


def test_ctrl_c_is_for_the_node_to_decide() -> None:
    async def main() -> None:
        told: list[Progress] = []

        def interrupt(progress: Progress) -> None:
            if trainer.pid is not None and not told:
                os.kill(trainer.pid, signal.SIGINT)
            told.append(progress)

        async with open_trainer(on_progress=interrupt) as trainer:
            parent = await trainer.init_model(CNN, 1)
            work = Assignment(1, 1, parent, CNN, replace(TRAINING, local_steps=120), DATA, 1)
            update = await trainer.train(work)
        assert told
        assert told[0].step < 120
        assert update.samples == 120 * TRAINING.batch_size

    run(main)


def test_memory_is_bounded() -> None:
    async def main() -> None:
        async with open_trainer(max_memory_bytes=700 * MIB) as trainer:
            parent = await trainer.init_model(CNN, 1)
            greedy = Assignment(1, 1, parent, CNN, replace(TRAINING, batch_size=65_536), DATA, 1)
            with (
                structlog.testing.capture_logs(),
                pytest.raises(DflError, match="the trainer ran out of memory"),
            ):
                await trainer.train(greedy)
            assert await trainer.init_model(CNN, 1) == parent

    run(main)


def test_digits_fit_in_300_mib() -> None:
    """The node itself takes the rest of its 450 MB."""

    async def main() -> None:
        async with open_trainer() as trainer:
            parent = await trainer.init_model(CNN, 1)
            config = replace(TRAINING, batch_size=32, optimizer="adamw", lr=0.002)
            work = Assignment(1, 1, parent, CNN, config, DataConfig("digits", None, (1, 4, 12), None), 1)
            deltas = [(await trainer.train(replace(work, node_seed=n))).delta for n in (1, 2, 3)]
            rows = await trainer.validation_rows("digits")
            updates = [WeightedUpdate(delta, 1) for delta in deltas]
            await trainer.score(CNN, parent, updates, rows, method="shapley", max_update_bytes=LIMIT)
            assert trainer.pid is not None
            assert memory_mib(trainer.pid, "VmHWM") < 300

    run(main)


def test_worker_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFL_PASSWORD", "open sesame")

    async def main() -> None:
        async with open_trainer() as trainer:
            await trainer.holdout_rows("digits")
            environment = Path(f"/proc/{trainer.pid}/environ")
            assert b"sesame" not in environment.read_bytes()  # noqa: ASYNC240  it is no file on disk

    run(main)


def test_errors_keep_their_type() -> None:
    async def main() -> None:
        async with open_trainer() as trainer:
            with pytest.raises(UsageError, match="no application 'nobody' is installed"):
                await trainer.validation_rows("nobody")
            parent = await trainer.init_model(MODEL, 1)
            wild = replace(assignment(parent), training=replace(TRAINING, lr=1e30, local_steps=20))
            with pytest.raises(DflError, match="training diverged"):
                await trainer.train(wild)

    run(main)


def test_central_training_reports_on_the_holdout() -> None:
    async def main() -> None:
        async with open_trainer() as trainer:
            found = await trainer.train_central(MODEL, replace(TRAINING, lr=0.1), "digits", 3200)
            assert found.samples == 1000
            assert found.accuracy > 0.2
            assert found == await trainer.train_central(MODEL, replace(TRAINING, lr=0.1), "digits", 3200)

    run(main)


# -- workers that misbehave -----------------------------------------------------------------------------
async def ask_impostor(program: str) -> None:
    """An exchange with some other program in the worker's place."""
    child = await trio.lowlevel.open_process(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    worker = process._Worker(child)
    try:
        await worker.exchange(Frame({"op": "warm"}), None)
    finally:
        await worker.kill()
        with suppress(ProcessLookupError):
            child.kill()


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os; os.write(1, b'\\xff' * 8); input()", "broke the protocol: a header of 4294967295 bytes"),
        ("import os; os.write(1, b'\\0\\0\\0\\2{}'); input()", "broke the protocol: a malformed header"),
        (
            "import os, json; t = json.dumps({'payloads': [1 << 60]}).encode();"
            "os.write(1, len(t).to_bytes(4, 'big') + t); input()",
            "broke the protocol: too many or too large payloads",
        ),
        ("raise SystemExit('no such module')", "exit code 1, no such module"),
    ],
)
def test_nonsense_from_a_worker(program: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_DYING_S", 0.5)

    async def main() -> None:
        with structlog.testing.capture_logs(), pytest.raises(WorkerDied, match=why):
            await ask_impostor(program)

    run(main)


def test_a_flood_on_stderr_reaches_the_log_only_in_part() -> None:
    async def main() -> None:
        flood = "import sys\nfor _ in range(20000): print('x' * 99, file=sys.stderr)"
        with structlog.testing.capture_logs() as logs, pytest.raises(WorkerDied, match="exit code 0"):
            await ask_impostor(flood)
        logged = sum(len(entry["line"]) for entry in logs if entry["log_level"] == "warning")
        assert 0 < logged <= process.MAX_STDERR_BYTES

    run(main)


def test_the_node_side_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, dfl_node.train.process, dfl_node.train.memory, dfl_node.train.application as a;"
        "import dfl_node.train.models as m; from dfl_node.train.trainer import ModelConfig;"
        "m.check(ModelConfig('cnn', {'width': 3})); a.load_application('digits');"
        "print({'torch', 'numpy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_an_aggregation_waits_for_a_slice_of_a_training_and_not_for_the_whole() -> None:
    async def main() -> None:
        order: list[str] = []
        under_way = trio.Event()
        async with (
            open_trainer(on_progress=lambda _: under_way.set()) as trainer,
            trio.open_nursery() as nursery,
        ):
            work = await endless(trainer)

            async def train() -> None:
                await trainer.train(replace(work, time_budget_s=4.0))
                order.append("trained")

            nursery.start_soon(train)
            await under_way.wait()
            await trainer.aggregate(MODEL, work.parent, [], max_update_bytes=1 << 30)
            order.append("aggregated")
        assert order == ["aggregated", "trained"]

    run(main)


def test_a_training_in_slices_is_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut by other requests or not: the same bytes."""

    async def main() -> None:
        async with open_trainer() as trainer:
            parent = await trainer.init_model(MODEL, 1)
            work = replace(assignment(parent), training=replace(TRAINING, local_steps=400))
            alone = await trainer.train(work)
            cut: list[bytes] = []

            async def train() -> None:
                cut.append((await trainer.train(work)).delta)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(train)
                for _ in range(6):
                    await trainer.init_model(MODEL, 2)
            assert cut == [alone.delta]

    run(main)
