"""What lies between the twin's peers: time, losses, partitions. Knows no channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import trio

from .channel import PeerId


class Fault(Enum):
    """What can be wrong between two peers."""

    DROP = "what one sends the other is lost"
    DELAY = "what one sends the other comes late"
    PARTITION = "neither can reach the other"


@dataclass(frozen=True, slots=True)
class _Injected:
    fault: Fault
    delay_s: float


class Links:
    """The ways between any two peers, both directions alike."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s
        self._latencies: dict[frozenset[PeerId], float] = {}
        self._faults: dict[frozenset[PeerId], _Injected] = {}
        self._groups: dict[PeerId, int] = {}
        self._frozen: set[PeerId] = set()
        self._thawed = trio.Event()

    def set_latency(self, one: PeerId, other: PeerId, latency_s: float) -> None:
        self._latencies[frozenset((one, other))] = latency_s

    def inject(self, fault: Fault, one: PeerId, other: PeerId, delay_s: float) -> None:
        self._faults[frozenset((one, other))] = _Injected(fault, delay_s)

    def divide(self, groups: Iterable[Iterable[PeerId]]) -> None:
        self._groups = {peer: number for number, group in enumerate(groups, 1) for peer in group}

    def freeze(self, peer: PeerId) -> None:
        self._frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        self._frozen.discard(peer)
        self._thawed.set()
        self._thawed = trio.Event()

    def heal(self, one: PeerId, other: PeerId) -> None:
        self._faults.pop(frozenset((one, other)), None)

    def heal_all(self) -> None:
        self._faults.clear()
        self._groups.clear()

    def are_cut(self, one: PeerId, other: PeerId) -> bool:
        """Nothing goes through, and both notice."""
        return self._has(Fault.PARTITION, one, other) or self._groups.get(one) != self._groups.get(other)

    def lose(self, one: PeerId, other: PeerId) -> bool:
        """Nothing goes through, and nobody notices."""
        return self._has(Fault.DROP, one, other)

    def hold(self, one: PeerId, other: PeerId) -> bool:
        """Nothing goes through until one of the two is thawed."""
        return one in self._frozen or other in self._frozen

    def delay_s(self, one: PeerId, other: PeerId) -> float:
        injected = self._faults.get(frozenset((one, other)))
        late_s = injected.delay_s if injected and injected.fault is Fault.DELAY else 0.0
        return late_s + self._latencies.get(frozenset((one, other)), self._latency_s)

    async def travel(self, one: PeerId, other: PeerId) -> None:
        """The way from one to the other: takes its time, or never ends."""
        if self.are_cut(one, other) or self.lose(one, other):
            await trio.sleep_forever()
        await trio.sleep(self.delay_s(one, other))
        while self.hold(one, other):
            await self._thawed.wait()
        if self.are_cut(one, other):  # since it set out
            await trio.sleep_forever()

    def _has(self, fault: Fault, one: PeerId, other: PeerId) -> bool:
        injected = self._faults.get(frozenset((one, other)))
        return injected is not None and injected.fault is fault
