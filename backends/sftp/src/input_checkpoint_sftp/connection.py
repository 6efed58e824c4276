"""The connection to an SFTP server, and the sessions on it that all threads share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Callable, NoReturn, Optional, TypeVar

import asyncssh
from asyncssh.constants import OPEN_ADMINISTRATIVELY_PROHIBITED, OPEN_REQUEST_SESSION_FAILED
from fsspec.asyn import get_loop, sync

from input_checkpoint.backends.time_limits import TimeLimits
from input_checkpoint_sftp.errors import ConnectionLostError, UnusableServerError
from input_checkpoint_sftp.login import Login, connect

_MAX_SESSIONS = 8
"""Most sessions on one connection. OpenSSH allows 10 (MaxSessions in sshd_config), other servers fewer."""
_QUEUED_TIMEOUTS = 10
"""A session fails after this many timeouts without an answer, even if other sessions get answers."""
_PERMANENT_REFUSALS = (OPEN_ADMINISTRATIVELY_PROHIBITED, OPEN_REQUEST_SESSION_FAILED)
_CONNECTION_ERRORS = (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost)

_Result = TypeVar("_Result")


class Session:
    """An SFTP session. It can run any number of requests at the same time."""

    def __init__(self, ssh: _SshConnection, sftp: asyncssh.SFTPClient) -> None:
        self.sftp = sftp
        """The client that sends the requests."""
        self.users = 0
        """How many threads use the session now."""
        self.supports_hard_links: Optional[bool] = None
        """Whether the server can make hard links. None until the server is asked."""
        self._ssh = ssh
        self._end = asyncio.ensure_future(sftp.wait_closed())
        self._last_answer = 0.0

    @property
    def limits(self) -> TimeLimits:
        """Time limits of the requests."""
        return self._ssh.limits

    @property
    def is_open(self) -> bool:
        """Whether the session can send requests."""
        return not self._end.done()

    async def wait_for(self, request: Awaitable[_Result]) -> _Result:
        """Wait for the answer to a request.

        Raises:
            asyncssh.SFTPError: the server refused the request.
            ConnectionLostError: the connection was lost, or no answer arrived in time.
        """
        answer = await self._ssh.wait_for(request, lambda: self._last_answer)
        error = answer.exception()
        if _is_connection_error(error):
            self._ssh.abort(f"the connection was lost ({str(error) or type(error).__name__})", error)
        self.note_answer()
        return answer.result()

    def note_answer(self) -> None:
        """Record that the server has just answered. This extends the time limit of all waiting requests."""
        self._last_answer = self._ssh.last_answer = asyncio.get_running_loop().time()


class _SshConnection:
    """An SSH connection, from the login until it breaks."""

    def __init__(self, connection: asyncssh.SSHClientConnection, limits: TimeLimits) -> None:
        self.last_answer = 0.0
        """Time of the last answer in any session, by the clock of the event loop."""
        self.limits = limits
        """Of every request on the connection."""
        self._timeout = limits.timeout
        self._connection = connection
        self._sessions: list[Session] = []
        self._max_sessions = _MAX_SESSIONS
        self._opening = asyncio.Lock()
        self._abort_reason: Optional[str] = None

    @property
    def is_alive(self) -> bool:
        return self._abort_reason is None and all(session.is_open for session in self._sessions)

    def abort(self, reason: str, error: Optional[BaseException] = None) -> NoReturn:
        """End the connection and raise the reason. All requests that wait for an answer fail too."""
        self._abort_reason = self._abort_reason or reason
        self._connection.abort()
        raise ConnectionLostError(self._abort_reason) from error

    def close(self) -> None:
        self._connection.close()

    async def wait_for(
        self, request: Awaitable[_Result], last_answer: Callable[[], float] = lambda: 0.0
    ) -> asyncio.Future[_Result]:
        """Wait until a request has an answer, whether a result or an error.

        The wait has a time limit, because asyncssh waits forever in some cases. A single late answer does not
        prove that the connection is dead: on a slow line, a request may be queued behind many others.

        Args:
            request: what asyncssh waits for.
            last_answer: time of the last answer in the session of the request.
        """
        clock = asyncio.get_running_loop().time
        start, answer = clock(), asyncio.ensure_future(request)
        try:
            while not answer.done():
                connection_limit = max(start, self.last_answer) + self._timeout
                session_limit = max(start, last_answer()) + _QUEUED_TIMEOUTS * self._timeout
                left = min(connection_limit, session_limit) - clock()
                if left <= 0:
                    self.abort(f"no answer within {self._timeout:g} s")
                await asyncio.wait({answer}, timeout=left)
        finally:
            answer.cancel()
        return answer

    async def session(self) -> Session:
        """Return the least used session. Opens a new one if all are in use and the server allows it."""
        while self._needs_session():
            async with self._opening:
                if self._needs_session():
                    await self._open_session()
        return min(self._sessions, key=lambda session: session.users)

    def _needs_session(self) -> bool:
        return len(self._sessions) < self._max_sessions and all(session.users for session in self._sessions)

    async def _open_session(self) -> None:
        # File names of other programs may not be UTF-8. They must not break a listing.
        start = await self.wait_for(self._connection.start_sftp_client(path_errors="surrogateescape"))
        try:
            self._sessions.append(Session(self, start.result()))
        except Exception as error:
            # If the server ends a session at once, asyncssh may raise errors of any class.
            if self._connection.is_closed() or not self._sessions:
                self._raise_no_session(error)
            self._max_sessions = len(self._sessions)

    def _raise_no_session(self, error: Exception) -> NoReturn:
        code = error.code if isinstance(error, asyncssh.ChannelOpenError) else OPEN_REQUEST_SESSION_FAILED
        if self._connection.is_closed() or code not in _PERMANENT_REFUSALS:
            self.abort(f"the server opened no session ({str(error) or type(error).__name__})", error)
        self._connection.abort()
        if code == OPEN_ADMINISTRATIVELY_PROHIBITED:
            raise UnusableServerError(f"the server does not allow sessions ({error})") from error
        raise UnusableServerError(
            "the login succeeded, but the server does not offer SFTP. Check that its sshd_config has a line "
            "'Subsystem sftp internal-sftp', that this user may use SFTP, and that no login script prints "
            "anything."
        ) from error


class Connection:
    """Runs the work of all threads on one SSH connection, and reconnects after the connection was lost.

    Each connection logs in with what the options and key files hold at that time, so renewed credentials are
    found. A forked child cannot use the parent's connection.

    If the connection is lost or cannot be made, all threads that wait for it get the error at once.

    Args:
        login: returns where and how to connect. It is called for each connection.
    """

    def __init__(self, login: Callable[[], Login]) -> None:
        self._login = login
        self._ssh: Optional[_SshConnection] = None
        self._connecting: Optional[asyncio.Task[_SshConnection]] = None

    def run(self, work: Callable[[Session], Awaitable[_Result]]) -> _Result:
        """Run a coroutine with a session, and return its result.

        Raises:
            SftpError: there is no connection, or ``work`` raised it.
            asyncssh.SFTPError: ``work`` raised it.
        """
        result: _Result = sync(get_loop(), self._run, work)
        return result

    def close(self) -> None:
        """Close the connection."""
        sync(get_loop(), self._close)

    async def _run(self, work: Callable[[Session], Awaitable[_Result]]) -> _Result:
        ssh = await self._live_connection()
        session = await ssh.session()
        session.users += 1
        try:
            return await work(session)
        finally:
            session.users -= 1

    async def _live_connection(self) -> _SshConnection:
        if self._ssh is not None and self._ssh.is_alive:
            return self._ssh
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect())
        return await self._connecting

    async def _connect(self) -> _SshConnection:
        try:
            if self._ssh is not None:
                self._ssh.close()
                self._ssh = None
            login = self._login()
            ssh = _SshConnection(await connect(login), login.limits)
            await ssh.session()
            self._ssh = ssh
            return ssh
        finally:
            self._connecting = None

    async def _close(self) -> None:
        if self._ssh is not None:
            self._ssh.close()
            self._ssh = None


def _is_connection_error(error: Optional[BaseException]) -> bool:
    if error is None:
        return False
    return isinstance(error, _CONNECTION_ERRORS) or not isinstance(error, asyncssh.SFTPError)
