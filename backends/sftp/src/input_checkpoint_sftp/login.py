"""Logging in: an address and credentials become a connection."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, cast

import asyncssh
from asyncssh.constants import OPEN_ADMINISTRATIVELY_PROHIBITED

from input_checkpoint_sftp.errors import (
    ConnectionLostError,
    LoginError,
    OptionsError,
    SftpError,
    UnusableServerError,
)

_log = logging.getLogger(__name__)

_SSH_PORT = 22
_OURS: dict[str, Any] = {
    # Of ~/.ssh/config, what is for terminals.
    "agent_forwarding": False,
    "command": None,
    "request_pty": False,
    "x11_forwarding": False,
    # More than is ever under way, so that the line is kept full however long it is.
    "window": 16 << 20,
}
_NOT_THE_USERS = {
    *("self", "loop", "last_config", "reload", "canonical", "final", "client_factory", "host"),
    *("connect_timeout", "login_timeout", "subsystem", "encoding", "errors", "max_pktsize"),
    *_OURS,
}
"""Parameters of `asyncssh.SSHClientConnectionOptions` that are not the user's: one time-out is for all."""
_KEEPALIVE_SECONDS = 30
_HOST_KEY_POLICIES = ("reject", "warning", "auto_add")
_CHOOSE_IN_CONFIG = ("config", "port", "username")
_DEFAULT_KNOWN_HOSTS = "~/.ssh/known_hosts"


@dataclass(frozen=True)
class Login:
    """Where to connect to and how."""

    host: str
    """Or what ``~/.ssh/config`` calls it."""
    arguments: Mapping[str, Any] = field(repr=False)
    """For `asyncssh.connect`."""
    known_hosts: Optional[str] = None
    """File of known host keys; None is the user's own."""
    host_key_policy: str = "reject"
    """What to do about a host key that is not known: ``reject``, ``warning`` or ``auto_add``."""
    timeout: float = 20
    """Seconds without any answer after which an operation has failed."""

    def __post_init__(self) -> None:
        known = inspect.signature(asyncssh.SSHClientConnectionOptions.prepare).parameters
        unknown = set(self.arguments) - (set(known) - _NOT_THE_USERS)
        if unknown:
            raise OptionsError(f"storage_options are wrong: {', '.join(sorted(unknown))} is not known")
        if self.host_key_policy not in _HOST_KEY_POLICIES:
            raise OptionsError("storage_options are wrong: host_key_policy is reject, warning or auto_add")
        if not isinstance(self.arguments.get("port", _SSH_PORT), int):
            raise OptionsError("storage_options are wrong: port is a number")
        if not isinstance(self.timeout, (int, float)) or self.timeout <= 0:
            raise OptionsError("storage_options are wrong: timeout is a number of seconds")
        for name in ("username", "password", "passphrase"):
            value = self.arguments.get(name, "")
            if not isinstance(value, str) and not callable(value):
                raise OptionsError(f"storage_options are wrong: {name} is a string")


async def connect(login: Login) -> asyncssh.SSHClientConnection:
    """Log in.

    Raises:
        SftpError: it cannot be done; which subclass says whether to try again.
    """
    try:
        return await asyncio.wait_for(_connect(login), login.timeout)
    except asyncio.TimeoutError as error:
        raise ConnectionLostError(f"could not log in within {login.timeout:g} s") from error
    except SftpError:
        raise
    except Exception as error:
        # Of asyncssh, the agent, cryptography and the operating system, which share no base class.
        raise _problem(error, login) from error


async def _connect(login: Login) -> asyncssh.SSHClientConnection:
    known = await asyncio.get_running_loop().run_in_executor(None, _known_hosts, login)
    options: dict[str, Any] = {
        "keepalive_interval": _KEEPALIVE_SECONDS,
        **login.arguments,
        **_OURS,
        "known_hosts": known,
        "client_factory": lambda: _HostKeyVerifier(login.host_key_policy, known),
        "login_timeout": login.timeout,
    }
    return await asyncssh.connect(login.host, **options)


class _HostKeyVerifier(asyncssh.SSHClient):
    """Judges a host key that known_hosts does not have."""

    def __init__(self, policy: str, known: asyncssh.SSHKnownHosts) -> None:
        self._policy = policy
        self._known = known

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        if self._known.match(host, addr, None if port == _SSH_PORT else port)[0]:
            raise asyncssh.HostKeyNotVerifiable(
                "the server shows another host key than known_hosts has. Somebody may be listening in; or "
                "the server is new, and its old key is to be removed: ssh-keygen -R HOST."
            )
        shown = f"the server's host key ({key.get_algorithm()} {key.get_fingerprint()}) is not known"
        if self._policy == "reject":
            raise asyncssh.HostKeyNotVerifiable(
                f"{shown}. If it is the right one, add it: ssh-keyscan -p PORT HOST >> ~/.ssh/known_hosts; "
                "or name a file with it in storage_options (known_hosts)."
            )
        if self._policy == "warning":
            _log.warning("%s: %s, and trusted all the same, as host_key_policy says", host, shown)
        return True


def _known_hosts(login: Login) -> asyncssh.SSHKnownHosts:
    if login.known_hosts is not None:
        names = [str(login.known_hosts)]
    else:
        given = {name: login.arguments[name] for name in _CHOOSE_IN_CONFIG if name in login.arguments}
        options = asyncssh.SSHClientConnectionOptions(host=login.host, client_keys=None, **given)
        configured = cast("Optional[list[str]]", options.known_hosts)
        # None is "UserKnownHostsFile none", which asyncssh would take to mean that any key will do.
        named = [] if configured is None else configured or [_DEFAULT_KNOWN_HOSTS]
        names = [path for path in map(os.path.expanduser, named) if os.path.exists(path)]
    try:
        return asyncssh.read_known_hosts(names)
    except OSError as error:
        raise LoginError(
            f"known_hosts names a file that cannot be read: {error.filename} ({error.strerror})"
        ) from error
    except ValueError as error:
        raise LoginError(f"{', '.join(names)} has a line that is damaged") from error


def _problem(error: Exception, login: Login) -> SftpError:
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return LoginError(error.reason)
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return UnusableServerError(f"the server and asyncssh have no algorithm in common ({error.reason})")
    if isinstance(error, (asyncssh.PermissionDenied, asyncssh.IllegalUserName)) or _tried_too_often(error):
        return LoginError(
            "the server does not accept the login: the user, the key or the password is wrong. Set username, "
            "and key_filename or password, in storage_options, or load the key into the SSH agent."
        )
    if isinstance(error, asyncssh.ChannelOpenError) and error.code == OPEN_ADMINISTRATIVELY_PROHIBITED:
        return UnusableServerError(f"the jump host does not let us through ({error.reason})")
    if isinstance(error, (asyncssh.KeyImportError, asyncssh.KeyEncryptionError)):
        if "must be specified" in str(error):
            return LoginError("the private key is encrypted. Set passphrase in storage_options.")
        return LoginError(f"the private key cannot be read ({error}). Is passphrase right?")
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return ConnectionLostError(
            f"{login.host} cannot be looked up, or the host on the way to it ({error})"
        )
    if isinstance(error, OSError) and error.filename is not None:
        keys = login.arguments.get("client_keys")
        what = (
            "the private key" if isinstance(keys, list) and error.filename in keys else "the file or program"
        )
        return LoginError(f"{what} {error.filename} cannot be read ({error.strerror})")
    if isinstance(error, (asyncssh.Error, OSError, EOFError)):
        return ConnectionLostError(f"{login.host}: {_reason(error)}")
    if isinstance(error, ValueError):
        return OptionsError(f"storage_options or ~/.ssh/config are wrong: {error}")
    return OptionsError(f"storage_options are wrong ({type(error).__name__}, in logging in)")


def _tried_too_often(error: Exception) -> bool:
    # The server hangs up then, with a code that is for errors in the protocol.
    return isinstance(error, asyncssh.DisconnectError) and "authentication failures" in error.reason


def _reason(error: Exception) -> str:
    # asyncio says only that the call has failed.
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
