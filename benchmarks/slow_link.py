"""A link with latency and limited bandwidth in front of a loopback server.

``python -m benchmarks.slow_link PORT TARGET_PORT`` forwards TCP connections, as a process of its own, so that
its work is not that of the process which is measured.
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
    """What a link can do, in each direction by itself."""

    latency: float = 0.010
    """Seconds one way."""
    bandwidth: float = 50e6
    """Bytes a second, of all connections together."""


class Line:
    """One direction of a link: says when bytes are through, given when they come.

    Args:
        bandwidth: bytes a second.
    """

    def __init__(self, bandwidth: float) -> None:
        self._bandwidth = bandwidth
        self._free_at = 0.0

    def through_at(self, now: float, size: int) -> float:
        """Return when the last of ``size`` bytes that come at ``now`` has left the line.

        >>> line = Line(bandwidth=100)
        >>> [line.through_at(now, 50) for now in (0.0, 0.0, 9.0)]
        [0.5, 1.0, 9.5]
        """
        self._free_at = max(now, self._free_at) + size / self._bandwidth
        return self._free_at


class Proxy:
    """Forwards connections to a server, byte for byte, as slowly as the link is.

    Args:
        target_port: of the server, on loopback.
        link: how slow.
    """

    def __init__(self, target_port: int, link: Link) -> None:
        self._target_port = target_port
        self._link = link
        self._up, self._down = Line(link.bandwidth), Line(link.bandwidth)

    async def serve(self, port: int) -> asyncio.Server:
        """Begin to listen on a loopback port (0: a free one)."""
        return await asyncio.start_server(self._forward, "127.0.0.1", port)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            # A connection is made by one journey there and back.
            await asyncio.sleep(2 * self._link.latency)
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
            await asyncio.gather(
                self._carry(reader, back, self._up),
                self._carry(there, writer, self._down),
                return_exceptions=True,
            )
            back.close()
        writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line) -> None:
        # Bounded, so that a sender that is faster than the link has to wait.
        travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)
        arriving = asyncio.ensure_future(self._deliver(travelling, writer))
        now = asyncio.get_running_loop().time
        try:
            while data := await reader.read(_CHUNK):
                through = line.through_at(now(), len(data))
                await travelling.put((through + self._link.latency, data))
        finally:
            await travelling.put((0.0, b""))
            await arriving

    async def _deliver(
        self, travelling: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        now = asyncio.get_running_loop().time
        broken = False
        while True:
            arrival, data = await travelling.get()
            if not data:
                break
            if broken:
                continue  # nobody is there any more, but the sender must not wait for ever
            await asyncio.sleep(arrival - now())
            try:
                writer.write(data)
                await writer.drain()
            except OSError:
                broken = True
        with contextlib.suppress(OSError):
            # The other direction may still have something to say.
            writer.write_eof()


async def forward_for_ever(port: int, target_port: int, link: Link) -> None:
    """Serve until the process ends."""
    server = await Proxy(target_port, link).serve(port)
    await server.serve_forever()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("target_port", type=int)
    parser.add_argument("--latency", type=float, default=Link.latency, help="seconds one way")
    parser.add_argument("--bandwidth", type=float, default=Link.bandwidth, help="bytes a second, each way")
    arguments = parser.parse_args()
    link = Link(arguments.latency, arguments.bandwidth)
    asyncio.run(forward_for_ever(arguments.port, arguments.target_port, link))


if __name__ == "__main__":
    main()
