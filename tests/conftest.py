"""What holds for every test: no promise of time on a busy machine, the same examples in each run, and what
may run beside what."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("dfl", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dfl")

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `pytest -n`: a file stays on one worker, where its fixtures live. Tests that start many processes
    are in a group of their own, `networks`: one such test keeps a small machine busy."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(HERE).as_posix()))
