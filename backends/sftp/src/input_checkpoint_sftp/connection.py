"""The connection to the server, and the SFTP sessions on it that all threads share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Callable, NoReturn, Optional, TypeVar

import asyncssh
from asyncssh.constants import OPEN_ADMINISTRATIVELY_PROHIBITED, OPEN_REQUEST_SESSION_FAILED
from fsspec.asyn import get_loop, sync

from input_checkpoint_sftp.errors import ConnectionLostError, UnusableServerError
from input_checkpoint_sftp.login import Login, connect

_SESSIONS = 8
"""At once on one connection. OpenSSH allows 10 (MaxSessions in sshd_config), others fewer."""
_QUEUE = 10
"""Times as long as for any other answer is waited for one that may queue behind others."""
_FOR_GOOD = (OPEN_ADMINISTRATIVELY_PROHIBITED, OPEN_REQUEST_SESSION_FAILED)
_LOST = (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost)

_Result = TypeVar("_Result")


class Session:
    """An SFTP session. Any number of requests may be under way."""

    def __init__(self, line: _Line, sftp: asyncssh.SFTPClient) -> None:
        self.sftp = sftp
        """What to ask."""
        self.users = 0
        self.makes_hard_links: Optional[bool] = None
        """Whether the server has the extension; None if it has not been asked."""
        self._line = line
        self._end = asyncio.ensure_future(sftp.wait_closed())
        self._heard = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it is worth asking anything more."""
        return not self._end.done()

    async def ask(self, request: Awaitable[_Result]) -> _Result:
        """Await the answer to a request.

        Raises:
            asyncssh.SFTPError: the server refuses.
            ConnectionLostError: the connection is lost, or given up since there was no answer for too long.
        """
        answer = await self._line.answer(request, lambda: self._heard)
        error = answer.exception()
        if error is not None and (isinstance(error, _LOST) or not isinstance(error, asyncssh.SFTPError)):
            self._line.lose(f"the connection broke off ({str(error) or type(error).__name__})", error)
        self.is_answering()
        return answer.result()

    def is_answering(self) -> None:
        """Tell those who wait that there is a sign of life."""
        self._heard = self._line.heard = asyncio.get_running_loop().time()


class _Line:
    """A connection that stands, or did."""

    def __init__(self, connection: asyncssh.SSHClientConnection, patience: float) -> None:
        self.heard = 0.0
        """When there was an answer in any session."""
        self._patience = patience
        self._connection = connection
        self._sessions: list[Session] = []
        self._most = _SESSIONS
        self._opening = asyncio.Lock()
        self._lost: Optional[str] = None

    @property
    def is_alive(self) -> bool:
        return self._lost is None and all(session.is_open for session in self._sessions)

    def lose(self, why: str, error: Optional[BaseException] = None) -> NoReturn:
        """Give it up, and say so to whoever waits for anything on it."""
        self._lost = self._lost or why
        self._connection.abort()
        raise ConnectionLostError(self._lost) from error

    def close(self) -> None:
        self._connection.close()

    async def answer(
        self, request: Awaitable[_Result], heard: Callable[[], float] = lambda: 0.0
    ) -> asyncio.Future[_Result]:
        """Wait until a request is answered, in whatever way.

        It is bounded whatever asyncssh does, which in some cases would wait for ever. A single request does
        not tell that the connection is dead: on a slow line it may queue behind many.

        Args:
            request: what asyncssh waits for.
            heard: when there was an answer that has to do with it.
        """
        clock = asyncio.get_running_loop().time
        asked, answer = clock(), asyncio.ensure_future(request)
        while not answer.done():
            dead, stuck = max(asked, self.heard), max(asked, heard())
            left = min(dead + self._patience, stuck + _QUEUE * self._patience) - clock()
            if left <= 0:
                answer.cancel()
                self.lose(f"no answer within {self._patience:g} s")
            await asyncio.wait({answer}, timeout=left)
        return answer

    async def session(self) -> Session:
        """Return the session with the least to do, a new one if all are busy and the server allows it."""
        while self._has_room():
            async with self._opening:
                if self._has_room():
                    await self._open_session()
        return min(self._sessions, key=lambda session: session.users)

    def _has_room(self) -> bool:
        return len(self._sessions) < self._most and all(session.users for session in self._sessions)

    async def _open_session(self) -> None:
        # Names are not always UTF-8: those of others are to be left alone, not to be stumbled over.
        start = await self.answer(self._connection.start_sftp_client(path_errors="surrogateescape"))
        try:
            self._sessions.append(Session(self, start.result()))
        except Exception as error:
            # Also of asyncssh's own making, when the server ends a session at once.
            if self._connection.is_closed() or not self._sessions:
                self._refuse(error)
            self._most = len(self._sessions)

    def _refuse(self, error: Exception) -> NoReturn:
        code = error.code if isinstance(error, asyncssh.ChannelOpenError) else OPEN_REQUEST_SESSION_FAILED
        if self._connection.is_closed() or code not in _FOR_GOOD:
            self.lose(f"the server opens no session ({str(error) or type(error).__name__})", error)
        self._connection.abort()
        if code == OPEN_ADMINISTRATIVELY_PROHIBITED:
            raise UnusableServerError(f"the server allows no session ({error})") from error
        raise UnusableServerError(
            "the server lets us in but has no SFTP for us. Is there a line 'Subsystem sftp internal-sftp' in "
            "its sshd_config, may this user use it, and does no login script there print something?"
        ) from error


class Connection:
    """Lets threads work with an SFTP session, and connects again after the connection was lost.

    When it is lost, or cannot be had, all who wait are told at once: they would only wait for the same.

    Args:
        login: where to and how.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._line: Optional[_Line] = None
        self._connecting: Optional[asyncio.Task[_Line]] = None

    def run(self, work: Callable[[Session], Awaitable[_Result]]) -> _Result:
        """Do something with a session, and wait for it.

        Raises:
            SftpError: there is no connection, or ``work`` has raised it.
            asyncssh.SFTPError: ``work`` has raised it.
        """
        result: _Result = sync(get_loop(), self._run, work)
        return result

    def close(self) -> None:
        """Close the connection."""
        sync(get_loop(), self._close)

    async def _run(self, work: Callable[[Session], Awaitable[_Result]]) -> _Result:
        line = await self._standing()
        session = await line.session()
        session.users += 1
        try:
            return await work(session)
        finally:
            session.users -= 1

    async def _standing(self) -> _Line:
        self._forget_after_fork()
        if self._line is not None and self._line.is_alive:
            return self._line
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect())
        return await self._connecting

    async def _connect(self) -> _Line:
        try:
            if self._line is not None:
                self._line.close()
                self._line = None
            line = _Line(await connect(self._login), self._login.timeout)
            await line.session()
            self._line = line
            return line
        finally:
            self._connecting = None

    async def _close(self) -> None:
        self._forget_after_fork()
        if self._line is not None:
            self._line.close()
            self._line = None

    def _forget_after_fork(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # The parent process still uses what was open, and its event loop does not run here.
            self._loop, self._line, self._connecting = loop, None, None
