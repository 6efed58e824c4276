"""An SFTP server in this process: paramiko's, with OpenSSH's extensions and with scripted faults."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_FAILED_RESOURCE_SHORTAGE, OPEN_SUCCEEDED
from paramiko.sftp import CMD_EXTENDED, CMD_NAMES, CMD_VERSION

HARD_LINK = "hardlink@openssh.com"
POSIX_RENAME = "posix-rename@openssh.com"
FSYNC = "fsync@openssh.com"

USER = "trainer"
PASSWORD = "hunter2"

PERMISSION_DENIED = paramiko.SFTP_PERMISSION_DENIED
FAILURE = paramiko.SFTP_FAILURE
BAD_MESSAGE = paramiko.SFTP_BAD_MESSAGE

Script = Callable[[str, str], Optional[int]]


class SftpServer:
    """Serves the whole file system of this machine to `USER`, whose password is `PASSWORD`.

    Args:
        folder: for its keys, and for the data of the tests.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        self.host_key = paramiko.ECDSAKey.generate()
        self.user_key = paramiko.ECDSAKey.generate()
        self.user_key.write_private_key_file(str(folder / "user"))
        self._connections: list[paramiko.Transport] = []
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        known = f"[127.0.0.1]:{self.port} {self.host_key.get_name()} {self.host_key.get_base64()}\n"
        (folder / "known_hosts").write_text(known)
        self.reset()

    def reset(self) -> None:
        """Reset all faults and limits: behave like OpenSSH."""
        self.script: Script = lambda request, path: None
        """Called before each request with its name and path. May return the status to answer with."""
        self.log_in: Callable[[], object] = lambda: None
        """Called before each answer to a login attempt."""
        self.open_session: Callable[[], object] = lambda: None
        self.start_sftp: Callable[[], object] = lambda: None
        self.extensions = [POSIX_RENAME, HARD_LINK, FSYNC]
        self.max_sessions = 10
        self.max_read_bytes = 1 << 18
        self.subsystem: type[paramiko.SubsystemHandler] = _Sftp
        self.max_sessions_seen = 0
        self.sessions_refused = 0
        self.logins = 0
        self.modes_requested: list[Optional[int]] = []
        """Permissions in the requests for new files and folders. None leaves them to the umask."""

    def start(self) -> None:
        """Start the server, or restart it on the same port."""
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(100)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def kill(self) -> None:
        """End all connections at once and accept no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """End all connections at once."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def options(self, **more: Any) -> dict[str, Any]:
        """Return storage_options for a login with the user's key."""
        options: dict[str, Any] = {
            "port": self.port,
            "username": USER,
            "key_filename": str(self.folder / "user"),
            "known_hosts": str(self.folder / "known_hosts"),
            "look_for_keys": False,
            "allow_agent": False,
            "config": [],
            **more,
        }
        return {name: value for name, value in options.items() if value is not None}

    def uri(self, name: str) -> str:
        """Return the URI of a folder below `data`."""
        return f"sftp://127.0.0.1{self.data}/{name}"

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client = listener.accept()[0]
                # As OpenSSH does. Otherwise each answer waits 40 ms for the client's delayed acknowledgment.
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = paramiko.Transport(client)
            except (OSError, paramiko.SSHException, EOFError):
                return
            connection.add_server_key(self.host_key)
            if self.subsystem is not NOTHING:
                connection.set_subsystem_handler("sftp", self.subsystem, _Files, self)
            self._connections.append(connection)
            connection.start_server(event=threading.Event(), server=_Login(self))


class _Login(paramiko.ServerInterface):
    def __init__(self, server: SftpServer) -> None:
        self.server = server
        self.sessions = 0
        self._is_known = False

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password"

    def check_auth_password(self, username: str, password: str) -> int:
        return self._answer(username == USER and password == PASSWORD)

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return self._answer(username == USER and key == self.server.user_key)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self.server.open_session()
        if self.sessions >= self.server.max_sessions:
            self.server.sessions_refused += 1
            return OPEN_FAILED_RESOURCE_SHORTAGE
        self.sessions += 1
        self.server.max_sessions_seen = max(self.server.max_sessions_seen, self.sessions)
        return OPEN_SUCCEEDED

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        self.server.start_sftp()
        return super().check_channel_subsystem_request(channel, name)

    def _answer(self, is_right: bool) -> int:
        self.server.log_in()
        # A client with a key first asks whether the server would accept it.
        self.server.logins += is_right and not self._is_known
        self._is_known |= is_right
        return AUTH_SUCCESSFUL if is_right else AUTH_FAILED


class _Sftp(paramiko.SFTPServer):
    """Adds two extensions to paramiko's server, and a `SftpServer.script` before each request."""

    def finish_subsystem(self) -> None:
        self.server.login.sessions -= 1
        super().finish_subsystem()

    def _send_server_version(self) -> int:
        self._read_packet()
        message = paramiko.Message()
        message.add_int(3)
        for name in self.server.owner.extensions:
            message.add_string(name)
            message.add_string("1")
        self._send_packet(CMD_VERSION, message)
        return 3

    def _process(self, kind: int, number: int, message: paramiko.Message) -> None:
        name = message.get_text() if kind == CMD_EXTENDED else CMD_NAMES[kind]
        subject = message.get_binary()
        file = self.file_table.get(subject)
        path = subject.decode(errors="replace") if file is None else file.path
        status = self.server.owner.script(name, path)
        if status is None and kind == CMD_EXTENDED and name not in self.server.owner.extensions:
            status = paramiko.SFTP_OP_UNSUPPORTED
        elif status is None and name == HARD_LINK:
            status = self.server.link(path, message.get_text())
        elif status is None and name == FSYNC:
            status = file.sync()
        if status is not None:
            self._send_status(number, status)
            return
        message.rewind()
        message.get_int()
        super()._process(kind, number, message)


class _NotSftp(paramiko.SubsystemHandler):
    def __init__(self, channel: paramiko.Channel, name: str, login: _Login, *_: object) -> None:
        super().__init__(channel, name, login)


class _Talker(_NotSftp):
    """Sends text that is not SFTP, like a login script that prints."""

    def start_subsystem(self, name: str, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        channel.sendall(b"Welcome to this server!\n")
        channel.recv(100)


class _Quitter(_NotSftp):
    """Ends at once, as /usr/sbin/nologin does."""

    def start_subsystem(self, name: str, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        return


TALKER, QUITTER, NOTHING = _Talker, _Quitter, paramiko.SubsystemHandler


def _returns_status(work: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an OSError into a status, as OpenSSH does (sftp-server.c, errno_to_portable)."""

    @functools.wraps(work)
    def run(*args: Any) -> Any:
        try:
            result = work(*args)
        except OSError as error:
            return _STATUS.get(error.errno or 0, FAILURE)
        return paramiko.SFTP_OK if result is None else result

    return run


_STATUS = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP), paramiko.SFTP_NO_SUCH_FILE),
    **dict.fromkeys((errno.EPERM, errno.EACCES), PERMISSION_DENIED),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.EINVAL), BAD_MESSAGE),
}


class _Files(paramiko.SFTPServerInterface):
    def __init__(self, login: _Login, owner: SftpServer) -> None:
        super().__init__(login)
        self.login = login
        self.owner = owner

    @_returns_status
    def open(self, path: str, flags: int, attributes: paramiko.SFTPAttributes) -> _File:
        if flags & os.O_CREAT:
            self.owner.modes_requested.append(attributes.st_mode)
        return _File(os.open(path, flags, 0o666), path, self.owner)

    @_returns_status
    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes]:
        return [
            paramiko.SFTPAttributes.from_stat(entry.stat(follow_symlinks=False), entry.name)
            for entry in os.scandir(path)
        ]

    @_returns_status
    def stat(self, path: str) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.stat(path))

    @_returns_status
    def lstat(self, path: str) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.lstat(path))

    @_returns_status
    def remove(self, path: str) -> None:
        os.unlink(path)

    @_returns_status
    def rename(self, old: str, new: str) -> None:
        os.link(old, new)
        os.unlink(old)

    @_returns_status
    def posix_rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    @_returns_status
    def link(self, old: str, new: str) -> None:
        os.link(old, new)

    @_returns_status
    def mkdir(self, path: str, attributes: paramiko.SFTPAttributes) -> None:
        os.mkdir(path)
        self.owner.modes_requested.append(attributes.st_mode)

    @_returns_status
    def rmdir(self, path: str) -> None:
        os.rmdir(path)


class _File(paramiko.SFTPHandle):
    def __init__(self, descriptor: int, path: str, owner: SftpServer) -> None:
        super().__init__()
        self.path = path
        self._descriptor = descriptor
        self._owner = owner

    @_returns_status
    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, min(length, self._owner.max_read_bytes), offset)

    @_returns_status
    def write(self, offset: int, data: bytes) -> None:
        os.pwrite(self._descriptor, data, offset)

    @_returns_status
    def stat(self) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self._descriptor))

    @_returns_status
    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[SftpServer]:
    """Run a server during a block."""
    server = SftpServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def refuse(requests: Iterable[str], status: int, skip: int = 0) -> Script:
    """Return a script that answers some requests with a status.

    Args:
        requests: names of the requests.
        status: the answer.
        skip: how many of these requests to let through first.
    """
    passing = iter(range(skip))

    def script(request: str, path: str) -> Optional[int]:
        if request not in requests or next(passing, None) is not None:
            return None
        return status

    return script
