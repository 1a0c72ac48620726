"""Seeds of random schedules: some for every change, all of them for the long suite."""

from __future__ import annotations

from typing import Any

import pytest


def seeds(count: int, *, fast: int) -> list[Any]:
    """Values for `parametrize`; those from `fast` on are `long`. A seed is all that a failure needs."""
    return [
        pytest.param(seed, id=f"seed-{seed}", marks=pytest.mark.long if seed >= fast else ())
        for seed in range(count)
    ]
