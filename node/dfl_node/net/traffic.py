"""Bytes per protocol, as the application sees them: inside TLS and yamux, multistream not counted."""

from __future__ import annotations

from dataclasses import dataclass, field

from libp2p.abc import INetStream


@dataclass(slots=True)
class Traffic:
    """What one protocol carried."""

    sent: int = 0  # bytes
    received: int = 0  # bytes


@dataclass(slots=True)
class Meter:
    """Counts every stream it is shown."""

    by_protocol: dict[str, Traffic] = field(default_factory=dict)

    def watch(self, stream: INetStream, protocol: str) -> None:
        """Count what this stream reads and writes from now on.

        The two methods are replaced on the stream itself: the library's protocols look at many attributes of
        its streams, which a wrapper would have to repeat.
        """
        traffic = self.by_protocol.setdefault(protocol, Traffic())
        read, write = stream.read, stream.write

        async def counted_read(n: int | None = None) -> bytes:
            data = await read(n)
            traffic.received += len(data)
            return data

        async def counted_write(data: bytes) -> None:
            await write(data)
            traffic.sent += len(data)

        stream.read = counted_read  # type: ignore[method-assign]
        stream.write = counted_write  # type: ignore[method-assign]

    def snapshot(self) -> dict[str, Traffic]:
        return {name: Traffic(traffic.sent, traffic.received) for name, traffic in self.by_protocol.items()}
