"""What holds for every test: no promise of time on a busy machine, and the same examples in each run."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("dfl", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dfl")
