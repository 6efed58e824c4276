"""moto: an emulator of S3, in a separate process."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Optional

from integration.servers.s3_bucket import make_bucket
from integration.servers.server import Place, Process, Server, listens


class Moto(Server):
    """Keeps everything in memory, so `kill` loses it."""

    name = "moto"
    two_engines = True
    durable = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._process: Optional[Process] = None

    def start(self) -> None:
        """See `Server.start`."""
        command = [sys.executable, "-m", "tests.support.moto_app", str(self.port)]
        self._process = Process(command, self.folder / "log")
        self._process.wait_until(lambda: listens(self.port))
        make_bucket(self.place(""))

    def kill(self) -> None:
        """See `Server.kill`."""
        if self._process is not None:
            self._process.kill()

    def place(self, name: str) -> Place:
        """See `Server.place`."""
        options = {
            "key": "test",
            "secret": "test",
            "endpoint_url": f"http://127.0.0.1:{self.port}",
            "client_kwargs": {"region_name": "us-east-1"},
        }
        return Place(f"s3://bucket/{name}", options)

    def version(self) -> str:
        """See `Server.version`."""
        return f"moto {version('moto')}"
