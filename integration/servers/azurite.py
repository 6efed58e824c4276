"""Azurite: Microsoft's own emulator of Blob Storage."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Optional

from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient

from integration.servers.server import MissingServerError, Place, Process, Server, listens

_INSTALLED = Path(__file__).parents[2] / ".servers/azurite/node_modules/azurite"
_CONTAINER = "container"
_INDEX_SAVE_INTERVAL = 5  # seconds; autosaveInterval in LokiBlobMetadataStore.ts
# The same for every installation: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
_ACCOUNT = "devstoreaccount1"
_ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Azurite(Server):
    """Keeps objects in files, so they survive `kill` and `start`."""

    name = "azurite"
    two_engines = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._process: Optional[Process] = None

    @property
    def connection_string(self) -> str:
        """The connection string to log in with."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_ACCOUNT_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{self.port}/{_ACCOUNT};"
        )

    def start(self) -> None:
        """See `Server.start`."""
        command = [_node(), str(_package() / "dist/src/blob/main.js"), "--blobHost", "127.0.0.1"]
        command += ["--blobPort", str(self.port), "--location", str(self.folder / "data"), "--silent"]
        command += ["--skipApiVersionCheck", "--disableTelemetry"]
        self._process = Process(command, self.folder / "log")
        self._process.wait_until(lambda: listens(self.port))
        with BlobServiceClient.from_connection_string(self.connection_string) as client:
            try:
                client.create_container(_CONTAINER)
            except ResourceExistsError:
                return  # created by an earlier start

    def kill(self) -> None:
        """See `Server.kill`."""
        if self._process is not None:
            self._process.kill()

    def wait_until_durable(self) -> None:
        """See `Server.wait_until_durable`. Azurite keeps its index in memory and writes it at intervals."""
        time.sleep(_INDEX_SAVE_INTERVAL + 2)

    def place(self, name: str) -> Place:
        """See `Server.place`."""
        return Place(f"abfs://{_CONTAINER}/{name}", {"connection_string": self.connection_string})

    def version(self) -> str:
        """See `Server.version`."""
        return f"Azurite {json.loads((_package() / 'package.json').read_text())['version']}"


def _node() -> str:
    node = shutil.which("node")
    if node is None:
        raise MissingServerError("Azurite needs Node.js, which is not installed. Install nodejs and npm.")
    return node


def _package() -> Path:
    package = Path(os.environ.get("AZURITE", _INSTALLED))
    if not package.is_dir():
        raise MissingServerError(f"Azurite is not installed in {package}. Run: make servers")
    return package
