"""OpenSSH's sshd, the most common SFTP server."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Optional

import psutil

from integration.servers.server import MissingServerError, Place, Process, Server, listens

_PROGRAM = "/usr/sbin/sshd"

_CONFIGURATION = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 200
Subsystem sftp internal-sftp
{settings}
"""


class Sshd(Server):
    """Keeps files in its folder. Runs as the current user, who logs in with a generated key.

    Args:
        folder: see `Server`.
        settings: additional lines for sshd_config.
    """

    name = "sshd"

    def __init__(self, folder: Path, settings: str = "") -> None:
        super().__init__(folder)
        self._settings = settings
        self._process: Optional[Process] = None

    @property
    def data(self) -> Path:
        """The folder that contains all locations."""
        return self.folder / "data"

    def start(self) -> None:
        """See `Server.start`."""
        if not os.access(_PROGRAM, os.X_OK):
            raise MissingServerError("OpenSSH's sshd is not installed. Run: make servers")
        if not self.data.exists():
            self._set_up()
        command = [_PROGRAM, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        self._process = Process(command, self.folder / "log")
        self._process.wait_until(lambda: listens(self.port))

    def kill(self) -> None:
        """See `Server.kill`. Kills the connections too: each is a process in its own session."""
        if self._process is None:
            return
        sessions = self.sessions()
        self._process.kill()
        self._process = None
        for process in sessions:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def sessions(self) -> list[psutil.Process]:
        """Return the processes that serve connections."""
        return [] if self._process is None else self._process.descendants()

    def restrict(self, options: str) -> None:
        """Set the options of the user's key, as in authorized_keys. They apply from the next login on."""
        public = (self.folder / "user.pub").read_text()
        (self.folder / "authorized_keys").write_text(f"{options} {public}".lstrip())

    def place(self, name: str) -> Place:
        """See `Server.place`."""
        options = {
            "username": pwd.getpwuid(os.getuid()).pw_name,
            "key_filename": str(self.folder / "user"),
            "known_hosts": str(self.folder / "known_hosts"),
            "look_for_keys": False,
            "allow_agent": False,
        }
        return Place(f"sftp://127.0.0.1:{self.port}{self.data}/{name}", options)

    def version(self) -> str:
        """See `Server.version`."""
        result = subprocess.run(
            [shutil.which("ssh") or _PROGRAM, "-V"], capture_output=True, text=True, check=False
        )
        return result.stderr.strip().splitlines()[-1]

    def _set_up(self) -> None:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd needs it for privilege separation
        self.folder.chmod(0o700)
        for key in ("host", "user"):
            path = str(self.folder / key)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        self.restrict("")
        public = (self.folder / "host.pub").read_text().split()
        known = f"[127.0.0.1]:{self.port} {public[0]} {public[1]}\n"
        (self.folder / "known_hosts").write_text(known)
        configuration = _CONFIGURATION.format(port=self.port, folder=self.folder, settings=self._settings)
        (self.folder / "sshd_config").write_text(configuration)
        self.data.mkdir()
