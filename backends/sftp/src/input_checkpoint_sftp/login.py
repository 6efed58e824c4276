"""Logging in: an address and credentials become a connection, in bounded time."""

from __future__ import annotations

import inspect
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import paramiko
from paramiko.hostkeys import InvalidHostKey
from paramiko.ssh_exception import IncompatiblePeer

from input_checkpoint_sftp.errors import (
    ConnectionLostError,
    LoginError,
    OptionsError,
    SftpError,
    UnusableServerError,
)

_KEEPALIVE_SECONDS = 30
_OURS = {
    "self",
    "hostname",
    "port",
    "sock",
    "timeout",
    "banner_timeout",
    "auth_timeout",
    "channel_timeout",
    "transport_factory",
}
"""Parameters of `paramiko.SSHClient.connect` that are not the user's: one time-out is for all."""
_HOST_KEY_POLICIES = {"auto_add": paramiko.AutoAddPolicy, "warning": paramiko.WarningPolicy}


@dataclass(frozen=True)
class Login:
    """Where to connect to and how."""

    host: str
    port: int
    arguments: Mapping[str, Any] = field(repr=False)
    """For `paramiko.SSHClient.connect`."""
    known_hosts: Optional[str] = None
    """File of known host keys; None is the user's own."""
    host_key_policy: str = "reject"
    """What to do about a host key that is not known: ``reject``, ``warning`` or ``auto_add``."""
    timeout: float = 20
    """Seconds without any answer after which an operation has failed."""

    def __post_init__(self) -> None:
        unknown = set(self.arguments) - (
            set(inspect.signature(paramiko.SSHClient.connect).parameters) - _OURS
        )
        if unknown:
            raise OptionsError(f"storage_options are wrong: {', '.join(sorted(unknown))} is not known")
        if self.host_key_policy not in ("reject", *_HOST_KEY_POLICIES):
            raise OptionsError("storage_options are wrong: host_key_policy is reject, warning or auto_add")
        if not isinstance(self.port, int):
            raise OptionsError("storage_options are wrong: port is a number")
        if not isinstance(self.timeout, (int, float)) or self.timeout <= 0:
            raise OptionsError("storage_options are wrong: timeout is a number of seconds")


class Alarm:
    """Calls something if a block takes too long, to end what has no time-out of its own.

    Args:
        seconds: how long it may take.
        stop: what to call, in another thread.
    """

    def __init__(self, seconds: float, stop: Callable[[], None]) -> None:
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._stop = stop
        self.has_rung = False

    def __enter__(self) -> Alarm:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _ring(self) -> None:
        self.has_rung = True
        self._stop()


def connect(login: Login) -> paramiko.SSHClient:
    """Log in.

    Raises:
        SftpError: it cannot be done; which subclass says whether to try again.
    """
    until = time.monotonic() + login.timeout
    client = _client(login)
    sock = _dial(login)
    with Alarm(max(0.1, until - time.monotonic()), lambda: _stop(client)) as alarm:
        problem = _log_in(client, sock, login)
    if problem is None and not alarm.has_rung:
        return client
    client.close()
    sock.close()
    if alarm.has_rung or problem is None:
        raise ConnectionLostError(f"could not log in within {login.timeout:g} s")
    raise problem


def _client(login: Login) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    try:
        client.load_system_host_keys(login.known_hosts)
    except OSError as error:
        raise LoginError(
            f"known_hosts names a file that cannot be read: {login.known_hosts} ({error.strerror})"
        ) from error
    except (InvalidHostKey, UnicodeError) as error:
        raise LoginError(f"{login.known_hosts or '~/.ssh/known_hosts'} has a line that is damaged") from error
    policy = _HOST_KEY_POLICIES.get(login.host_key_policy, _Refuse)
    client.set_missing_host_key_policy(policy())
    return client


def _dial(login: Login) -> socket.socket:
    try:
        found = socket.getaddrinfo(login.host, login.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectionLostError(f"{login.host} cannot be looked up ({error})") from error
    problem: Optional[OSError] = None
    for family, kind, protocol, _, address in found:
        sock = _Socket(login.timeout, family, kind, protocol)
        sock.settimeout(login.timeout / len(found))
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            problem = error
            continue
        # paramiko does not ask for it, and each small request would wait for the answer to another.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    raise ConnectionLostError(f"{login.host} port {login.port}: {problem}") from problem


def _log_in(client: paramiko.SSHClient, sock: socket.socket, login: Login) -> Optional[SftpError]:
    """Return what goes wrong.

    It is returned, not raised, so that it has no context: some of paramiko's messages repeat a password
    that is not of type str.
    """
    arguments = {
        **login.arguments,
        # Longer than until the alarm, since paramiko calls a login that it breaks off a failed one.
        **dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), 2 * login.timeout),
        "transport_factory": _Transport,
    }
    try:
        client.connect(login.host, port=login.port, sock=sock, **arguments)
        transport = client.get_transport()
        if transport is None:
            return ConnectionLostError("the connection was closed at once")
        transport.set_keepalive(_KEEPALIVE_SECONDS)
    except Exception as error:
        # Of paramiko, its agent, cryptography and the operating system, which share no base class.
        return _problem(error, client)
    return None


def _problem(error: Exception, client: paramiko.SSHClient) -> SftpError:
    transport = client.get_transport()
    if isinstance(error, LoginError):
        return error
    if isinstance(error, paramiko.BadHostKeyException):
        return LoginError(
            "the server shows another host key than known_hosts has. Somebody may be listening in; or the "
            "server is new, and its old key is to be removed: ssh-keygen -R HOST."
        )
    if isinstance(error, IncompatiblePeer):
        return UnusableServerError(f"the server and paramiko have no algorithm in common ({error})")
    if isinstance(error, OSError) and error.filename is not None:
        return LoginError(f"the private key {error.filename} cannot be read ({error.strerror})")
    if isinstance(error, paramiko.PasswordRequiredException):
        return LoginError("the private key is encrypted. Set passphrase in storage_options.")
    if isinstance(transport, _Transport) and (transport.has_refused or _knows_the_server(transport)):
        return _not_accepted(error)
    if isinstance(error, (paramiko.SSHException, OSError, EOFError)):
        return ConnectionLostError(str(error) or type(error).__name__)
    return OptionsError(f"storage_options are wrong ({type(error).__name__}, in logging in)")


def _not_accepted(error: Exception) -> LoginError:
    if isinstance(error, (paramiko.AuthenticationException, EOFError)):
        why = "the user, the key or the password is wrong"
    elif isinstance(error, paramiko.SSHException):
        # paramiko tries a key file as one of each kind, and has to say only what the last kind was like.
        why = "there is no key and no password, or the user or key is wrong, or the key cannot be read"
    else:
        why = f"{type(error).__name__}; is something in storage_options of the wrong type?"
    return LoginError(
        f"the server does not accept the login: {why}. Set username, and key_filename or password, in "
        "storage_options, or load the key into the SSH agent."
    )


def _knows_the_server(transport: paramiko.Transport) -> bool:
    """Whether the connection stands, up to the login: then it was not the connection that failed."""
    try:
        transport.get_remote_server_key()
    except paramiko.SSHException:
        return False
    return transport.is_active()


def _stop(client: paramiko.SSHClient) -> None:
    # Not the client itself, which would then trip over its missing transport.
    transport = client.get_transport()
    if transport is not None:
        transport.close()


class _Refuse(paramiko.MissingHostKeyPolicy):
    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise LoginError(
            f"the server's host key ({key.get_name()} {key.fingerprint}) is not known. If it is the right "
            "one, add it: ssh-keyscan -p PORT HOST >> ~/.ssh/known_hosts; or name a file with it in "
            "storage_options (known_hosts)."
        )


class _Transport(paramiko.Transport):
    """Remembers a refusal: after too many the server hangs up, which looks as if it had broken down."""

    has_refused = False

    def auth_publickey(
        self, username: str, key: paramiko.PKey, event: Optional[threading.Event] = None
    ) -> list[str]:
        try:
            return super().auth_publickey(username, key, event)
        except paramiko.AuthenticationException:
            self.has_refused |= self.is_active()
            raise


class _Socket(socket.socket):
    """Gives up when nothing can be sent for too long. paramiko tries for ever while the peer takes nothing.

    Args:
        patience: seconds.
        how: for `socket.socket`.
    """

    def __init__(self, patience: float, *how: int) -> None:
        super().__init__(*how)
        self._patience = patience
        self._stuck_since: Optional[float] = None

    def send(self, data: Any, flags: int = 0, /) -> int:
        try:
            sent = super().send(data, flags)
        except socket.timeout:
            now = time.monotonic()
            self._stuck_since = self._stuck_since or now
            if now - self._stuck_since > self._patience:
                raise ConnectionAbortedError("the server takes nothing any more") from None
            raise
        self._stuck_since = None
        return sent
