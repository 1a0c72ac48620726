"""What holds for every test: no promise of time on a busy machine, the same examples in each run, what may
run beside what, and where files go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("dfl", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dfl")

# These run networks of real processes, which mostly wait: two lanes, in each one network at a time.
LANES = {
    "networks that fail": (
        "faults/test_auditing",
        "faults/test_commands",
        "faults/test_datasets",
        "faults/test_modes",
        "faults/test_processes",
    ),
    "networks that work": (
        "interop/test_job_on_kubo",
        "interop/test_kubo_bitswap",
        "interop/test_kubo_rpc",
        "modes/test_demo",
        "modes/test_examples",
        "node/cli/test_demo",
        "packaging/test_wheel",
    ),
}
LANE_OF = {f"tests/{file}.py": lane for lane, files in LANES.items() for file in files}
MEMORY = Path("/dev/shm")  # noqa: S108 - pytest makes a directory of its own in there, 0700
ROOM_BYTES = 4 << 30  # a run leaves less than one


def pytest_configure() -> None:
    """Files in memory where there is room: journals sync each line, which on a disk is most of a test's time.

    Nothing is proven less by it: a process that is killed loses no write, synced or not.
    """
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


class _Lanes(LoadScopeScheduling):
    """For `pytest -n`: a file stays on one worker, where its fixtures live; so does a lane of networks."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return LANE_OF.get(file, file)


@pytest.hookimpl(optionalhook=True)  # also without xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _Lanes(config, log)
