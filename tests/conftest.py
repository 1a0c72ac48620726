"""What holds for every test: no promise of time on a busy machine, the same examples in each run, what may
run beside what, and where files go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("dfl", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dfl")

HERE = Path(__file__).parent
MEMORY = Path("/dev/shm")  # noqa: S108 - pytest makes a directory of its own in there, 0700
ROOM_BYTES = 4 << 30  # a run leaves less than one


def pytest_configure() -> None:
    """Files in memory where there is room: journals sync each line, which on a disk is most of a test's time.

    Nothing is proven less by it: a process that is killed loses no write, synced or not.
    """
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `pytest -n`: a file stays on one worker, where its fixtures live. Tests that start many processes
    are in a group of their own, `networks`: one such test keeps a small machine busy."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(HERE).as_posix()))
