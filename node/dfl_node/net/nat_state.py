"""Whether others can dial this node. Apart from `nat`, so that it can be spoken of without libp2p."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Reachability(Enum):
    """Whether others can dial this node."""

    PUBLIC = "public"
    PRIVATE = "private"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Reach:
    """What is known about it, and from what."""

    state: Reachability
    why: str
