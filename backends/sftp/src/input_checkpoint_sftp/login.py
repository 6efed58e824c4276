"""Logs in to an SSH server."""

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

from input_checkpoint.backends.time_limits import DEFAULT_TIME_LIMITS, TimeLimits
from input_checkpoint_sftp.errors import (
    ConnectionLostError,
    LoginError,
    OptionsError,
    SftpError,
    UnusableServerError,
)

_log = logging.getLogger(__name__)

_SSH_PORT = 22
_FIXED_OPTIONS: dict[str, Any] = {
    # Options of ~/.ssh/config that are for terminals.
    "agent_forwarding": False,
    "command": None,
    "request_pty": False,
    "x11_forwarding": False,
    # More than is ever in flight, so that the window never slows down a transfer.
    "window": 16 << 20,
}
_RESERVED_OPTIONS = {
    *("self", "loop", "last_config", "reload", "canonical", "final", "client_factory", "host"),
    *("connect_timeout", "login_timeout", "subsystem", "encoding", "errors", "max_pktsize"),
    *_FIXED_OPTIONS,
}
"""Parameters of `asyncssh.SSHClientConnectionOptions` that users cannot set. ``timeout`` covers all waits."""
_KEEPALIVE_SECONDS = 30
_HOST_KEY_POLICIES = ("reject", "warning", "auto_add")
_CONFIG_SELECTORS = ("config", "port", "username")
"""Options that decide which parts of ~/.ssh/config apply."""
_INVALID = "invalid storage_options"
_DEFAULT_KNOWN_HOSTS = "~/.ssh/known_hosts"


@dataclass(frozen=True)
class Login:
    """Where and how to connect."""

    host: str
    """Name or address of the server, or an alias from ``~/.ssh/config``."""
    arguments: Mapping[str, Any] = field(repr=False)
    """Arguments for `asyncssh.connect`."""
    known_hosts: Optional[str] = None
    """File of known host keys. None means the user's own files."""
    host_key_policy: str = "reject"
    """What to do about an unknown host key: ``reject``, ``warning`` or ``auto_add``."""
    limits: TimeLimits = DEFAULT_TIME_LIMITS
    """Of each request, and of the login. The data of a file must be moved within its limit."""

    def __post_init__(self) -> None:
        known = inspect.signature(asyncssh.SSHClientConnectionOptions.prepare).parameters
        unknown = set(self.arguments) - (set(known) - _RESERVED_OPTIONS)
        if unknown:
            raise OptionsError(f"unknown storage_options: {', '.join(sorted(unknown))}")
        if self.host_key_policy not in _HOST_KEY_POLICIES:
            raise OptionsError(f"{_INVALID}: host_key_policy must be 'reject', 'warning' or 'auto_add'")
        if not isinstance(self.arguments.get("port", _SSH_PORT), int):
            raise OptionsError(f"{_INVALID}: port must be a number")
        for name in ("username", "password", "passphrase"):
            value = self.arguments.get(name, "")
            if not isinstance(value, str) and not callable(value):
                raise OptionsError(f"{_INVALID}: {name} must be a string")


async def connect(login: Login) -> asyncssh.SSHClientConnection:
    """Connect to a server and log in.

    Raises:
        SftpError: the connection cannot be made. Only `ConnectionLostError` may be temporary.
    """
    try:
        return await asyncio.wait_for(_connect(login), login.limits.timeout)
    except asyncio.TimeoutError as error:
        raise ConnectionLostError(f"the login took more than {login.limits.timeout:g} s") from error
    except SftpError:
        raise
    except Exception as error:
        # asyncssh, the agent, cryptography and the operating system raise errors that share no base class.
        raise _diagnose(error, login) from error


async def _connect(login: Login) -> asyncssh.SSHClientConnection:
    known = await asyncio.get_running_loop().run_in_executor(None, _known_hosts, login)
    options: dict[str, Any] = {
        "keepalive_interval": _KEEPALIVE_SECONDS,
        **login.arguments,
        **_FIXED_OPTIONS,
        "known_hosts": known,
        "client_factory": lambda: _HostKeyVerifier(login.host_key_policy, known),
        "login_timeout": login.limits.timeout,
    }
    return await asyncssh.connect(login.host, **options)


class _HostKeyVerifier(asyncssh.SSHClient):
    """Decides about host keys that known_hosts does not contain."""

    def __init__(self, policy: str, known: asyncssh.SSHKnownHosts) -> None:
        self._policy = policy
        self._known = known

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        if self._known.match(host, addr, None if port == _SSH_PORT else port)[0]:
            raise asyncssh.HostKeyNotVerifiable(
                "the server's host key differs from the one in known_hosts. Someone may be intercepting the "
                "connection. If the server has a new key, remove the old one: ssh-keygen -R HOST."
            )
        problem = f"the server's host key ({key.get_algorithm()} {key.get_fingerprint()}) is unknown"
        if self._policy == "reject":
            raise asyncssh.HostKeyNotVerifiable(
                f"{problem}. Check it, and add it: ssh-keyscan -p PORT HOST >> ~/.ssh/known_hosts. Or pass a "
                "file that contains it as known_hosts in storage_options."
            )
        if self._policy == "warning":
            _log.warning("%s: %s. Connecting anyway, because host_key_policy is 'warning'.", host, problem)
        return True


def _known_hosts(login: Login) -> asyncssh.SSHKnownHosts:
    if login.known_hosts is not None:
        names = [str(login.known_hosts)]
    else:
        given = {name: login.arguments[name] for name in _CONFIG_SELECTORS if name in login.arguments}
        options = asyncssh.SSHClientConnectionOptions(host=login.host, client_keys=None, **given)
        configured = cast("Optional[list[str]]", options.known_hosts)
        # None stands for "UserKnownHostsFile none". asyncssh would then accept any key.
        paths = [] if configured is None else configured or [_DEFAULT_KNOWN_HOSTS]
        names = [path for path in map(os.path.expanduser, paths) if os.path.exists(path)]
    try:
        return asyncssh.read_known_hosts(names)
    except OSError as error:
        raise LoginError(
            f"the known_hosts file {error.filename} cannot be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise LoginError(f"{', '.join(names)} contains an invalid line") from error


def _diagnose(error: Exception, login: Login) -> SftpError:
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return LoginError(error.reason)
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return UnusableServerError(f"the server and asyncssh have no algorithm in common ({error.reason})")
    if _is_refused_login(error):
        return LoginError(
            "the server refused the login: the user, key or password is wrong. Set username and key_filename "
            "or password in storage_options, or add the key to the SSH agent."
        )
    if isinstance(error, asyncssh.ChannelOpenError) and error.code == OPEN_ADMINISTRATIVELY_PROHIBITED:
        return UnusableServerError(f"the jump host refuses to forward the connection ({error.reason})")
    if isinstance(error, (asyncssh.KeyImportError, asyncssh.KeyEncryptionError)):
        if "must be specified" in str(error):
            return LoginError("the private key is encrypted. Set passphrase in storage_options.")
        return LoginError(f"the private key cannot be read ({error}). Check passphrase in storage_options.")
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return ConnectionLostError(
            f"the address of {login.host} or of its jump host cannot be found ({error})"
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
        return OptionsError(f"{_INVALID} or ~/.ssh/config: {error}")
    return OptionsError(f"{_INVALID}: the login failed with {type(error).__name__}")


def _is_refused_login(error: Exception) -> bool:
    if isinstance(error, (asyncssh.PermissionDenied, asyncssh.IllegalUserName)):
        return True
    # After too many attempts, the server disconnects with the code of a protocol error.
    return isinstance(error, asyncssh.DisconnectError) and "authentication failures" in error.reason


def _reason(error: Exception) -> str:
    # The message of asyncio says only that the call failed.
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
