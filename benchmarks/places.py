"""Where the benchmarks save to: a local folder, and S3 behind a slow link."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.slow_link import Link
from input_checkpoint.training.low_priority import lower_priority
from integration.servers.moto import Moto
from integration.servers.server import Place, Process, free_port, listens

LINK = Link()


@contextlib.contextmanager
def slow_s3(link: Link = LINK, *, low_priority: bool = False) -> Iterator[Place]:
    """Run an S3 server and a slow link to it, each in its own process. Yield a location in its bucket.

    Args:
        link: between this process and the server.
        low_priority: whether both processes get only the processor time that nothing else uses.
    """
    prepare = lower_priority if low_priority else None
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1, initializer=prepare) as starter:
        # A process has the priority of the thread that starts it.
        yield starter.submit(stack.enter_context, _slow_s3(link)).result()


@contextlib.contextmanager
def _slow_s3(link: Link) -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as folder, Moto(Path(folder)).running() as server:
        port = free_port()
        options = ["--latency", str(link.latency), "--bandwidth", str(link.bandwidth)]
        command = [sys.executable, "-m", "benchmarks.slow_link", str(port), str(server.port), *options]
        proxy = Process(command, Path(folder) / "link-log")
        try:
            proxy.wait_until(lambda: listens(port))
            place = server.place("bench")
            yield Place(place.uri, {**place.storage_options, "endpoint_url": f"http://127.0.0.1:{port}"})
        finally:
            proxy.kill()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Yield an empty folder on the local disk. Remove it afterward."""
    with tempfile.TemporaryDirectory(prefix="input-checkpoint-bench-") as path:
        yield Path(path)
