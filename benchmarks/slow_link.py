"""A link with latency and limited bandwidth in front of a loopback server.

``python -m benchmarks.slow_link PORT TARGET_PORT`` forwards TCP connections. It runs as a separate process,
so that its work does not count toward the measured process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from dataclasses import dataclass

_CHUNK = 64 << 10
_IN_FLIGHT = 32


@dataclass(frozen=True)
class Link:
    """The properties of a link. Each direction has the full bandwidth."""

    latency: float = 0.010
    """Seconds, one way."""
    bandwidth: float = 50e6
    """Bytes per second, shared by all connections."""


class Line:
    """One direction of a link. Computes when bytes leave it, given when they arrive.

    Args:
        bandwidth: bytes per second.
    """

    def __init__(self, bandwidth: float) -> None:
        self._bandwidth = bandwidth
        self._free_at = 0.0

    def departure_time(self, now: float, size: int) -> float:
        """Return when the last of ``size`` bytes that arrive at ``now`` leaves the line.

        >>> line = Line(bandwidth=100)
        >>> [line.departure_time(now, 50) for now in (0.0, 0.0, 9.0)]
        [0.5, 1.0, 9.5]
        """
        self._free_at = max(now, self._free_at) + size / self._bandwidth
        return self._free_at


class Proxy:
    """Forwards connections to a server, byte for byte, at the speed of the link.

    Args:
        target_port: port of the server on loopback.
        link: latency and bandwidth.
    """

    def __init__(self, target_port: int, link: Link) -> None:
        self._target_port = target_port
        self._link = link
        self._up, self._down = Line(link.bandwidth), Line(link.bandwidth)

    async def serve(self, port: int) -> asyncio.Server:
        """Listen on a loopback port. Port 0 picks a free one."""
        return await asyncio.start_server(self._forward, "127.0.0.1", port)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            # Opening a connection takes one round trip.
            await asyncio.sleep(2 * self._link.latency)
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target_port)
            await asyncio.gather(
                self._carry(reader, to_server, self._up),
                self._carry(from_server, writer, self._down),
                return_exceptions=True,
            )
            to_server.close()
        writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line) -> None:
        # Bounded, so that a sender that is faster than the link waits.
        in_transit: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)
        delivery = asyncio.ensure_future(self._deliver(in_transit, writer))
        now = asyncio.get_running_loop().time
        try:
            while data := await reader.read(_CHUNK):
                departure = line.departure_time(now(), len(data))
                await in_transit.put((departure + self._link.latency, data))
        finally:
            await in_transit.put((0.0, b""))
            await delivery

    async def _deliver(
        self, in_transit: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        now = asyncio.get_running_loop().time
        broken = False
        while True:
            arrival, data = await in_transit.get()
            if not data:
                break
            if broken:
                continue  # the receiver is gone, but the sender must not block on a full queue
            await asyncio.sleep(arrival - now())
            try:
                writer.write(data)
                await writer.drain()
            except OSError:
                broken = True
        with contextlib.suppress(OSError):
            # The other direction may still be sending.
            writer.write_eof()


async def forward_forever(port: int, target_port: int, link: Link) -> None:
    """Serve until the process ends."""
    server = await Proxy(target_port, link).serve(port)
    await server.serve_forever()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("target_port", type=int)
    parser.add_argument("--latency", type=float, default=Link.latency, help="seconds, one way")
    parser.add_argument("--bandwidth", type=float, default=Link.bandwidth, help="bytes per second, each way")
    arguments = parser.parse_args()
    link = Link(arguments.latency, arguments.bandwidth)
    asyncio.run(forward_forever(arguments.port, arguments.target_port, link))


if __name__ == "__main__":
    main()
