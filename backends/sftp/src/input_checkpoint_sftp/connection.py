"""One connection to the server, and the channels on it that several threads share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Optional

import paramiko

from input_checkpoint_sftp.errors import ConnectionLostError, SftpError, UnusableServerError
from input_checkpoint_sftp.login import Alarm, Login, connect
from input_checkpoint_sftp.protocol import Sftp

_CHANNELS = 8
"""At once on one connection. OpenSSH allows 10 (MaxSessions in sshd_config), others fewer."""
_WINDOW_BYTES = 16 << 20
_PACKET_BYTES = 32 << 10
_PROHIBITED = 1
"""https://www.rfc-editor.org/rfc/rfc4254#section-5.1"""


class _Line:
    """A connection that stands, or did."""

    def __init__(self, client: paramiko.SSHClient) -> None:
        self.client = client
        self.idle: list[Sftp] = []
        self.open = 0
        """Channels, idle or not."""
        self.most = _CHANNELS
        self.is_opening = False
        """Another channel. One at a time, since paramiko mixes up who is refused one."""

    @property
    def is_alive(self) -> bool:
        transport = self.client.get_transport()
        return transport is not None and transport.is_active()


class Connection:
    """Lends channels, and connects again after the connection was lost.

    When it is lost, or cannot be had, all who wait for a channel are told at once: they would only wait for
    the same.

    Args:
        login: where to and how.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._changed = threading.Condition()
        self._line: Optional[_Line] = None
        self._is_connecting = False
        self._outages = 0
        self._last_outage: Optional[SftpError] = None

    @contextlib.contextmanager
    def channel(self) -> Iterator[Sftp]:
        """Lend a channel to one thread.

        Raises:
            SftpError: there is no connection.
        """
        line, sftp = self._take()
        try:
            yield sftp
        except ConnectionLostError as error:
            self._lose(line, error)
            raise
        except Exception:
            self._give_back(line, sftp)
            raise
        except BaseException:
            # Interrupted: the answer to what was asked is still to come.
            sftp.hang_up()
            self._give_back(line, sftp)
            raise
        self._give_back(line, sftp)

    def close(self) -> None:
        """Close the connection."""
        line = self._line
        if line is not None:
            self._lose(line, ConnectionLostError("the backend was closed"))

    def _take(self) -> tuple[_Line, Sftp]:
        with self._changed:
            outages = self._outages
            while True:
                if self._last_outage is not None and self._outages != outages:
                    raise type(self._last_outage)(*self._last_outage.args)
                line = self._line
                if line is not None and not line.is_alive:
                    self._line = None
                    line.client.close()
                elif line is not None and line.idle:
                    return line, line.idle.pop()
                elif line is not None and line.open < line.most and not line.is_opening:
                    sftp = self._open_channel(line)
                    if sftp is not None:
                        return line, sftp
                elif line is None and not self._is_connecting:
                    self._connect()
                else:
                    self._changed.wait()

    def _connect(self) -> None:
        self._is_connecting = True
        try:
            with self._unlocked():
                client = connect(self._login)
        except SftpError as error:
            self._tell_of_outage(error)
            raise
        finally:
            self._is_connecting = False
            self._changed.notify_all()
        self._line = _Line(client)

    def _open_channel(self, line: _Line) -> Optional[Sftp]:
        """Return a new channel; None if the server allows no more than there are."""
        line.is_opening = True
        try:
            with self._unlocked():
                sftp = _open_channel(line.client, self._login.timeout)
        except paramiko.ChannelException as error:
            if line.open == 0:
                raise _no_session(error) from error
            line.most = line.open
            return None
        except ConnectionLostError as error:
            with self._unlocked():
                self._lose(line, error)
            raise
        finally:
            line.is_opening = False
            self._changed.notify_all()
        line.open += 1
        return sftp

    def _give_back(self, line: _Line, sftp: Sftp) -> None:
        with self._changed:
            if sftp.is_usable:
                line.idle.append(sftp)
            else:
                line.open -= 1
            self._changed.notify_all()

    def _lose(self, line: _Line, error: SftpError) -> None:
        with self._changed:
            if self._line is line:
                self._line = None
                self._tell_of_outage(error)
        line.client.close()

    def _tell_of_outage(self, error: SftpError) -> None:
        self._outages += 1
        # Of its own, without the traceback, which would keep alive what was being uploaded.
        self._last_outage = type(error)(*error.args)
        self._changed.notify_all()

    @contextlib.contextmanager
    def _unlocked(self) -> Iterator[None]:
        self._changed.release()
        try:
            yield
        finally:
            self._changed.acquire()


def _open_channel(client: paramiko.SSHClient, timeout: float) -> Sftp:
    transport = client.get_transport()
    if transport is None:
        raise ConnectionLostError("the connection was closed")
    opened: list[paramiko.Channel] = []

    def stop() -> None:
        transport.close()
        for channel in opened:
            # `invoke_subsystem` waits for it, without bound, and a dead transport does not set it.
            channel.event.set()

    with Alarm(timeout, stop) as alarm:
        try:
            channel = transport.open_session(_WINDOW_BYTES, _PACKET_BYTES, timeout)
            opened.append(channel)
            channel.settimeout(timeout)
            channel.invoke_subsystem("sftp")
            return Sftp(channel)
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, EOFError, OSError, ConnectionLostError) as error:
            if alarm.has_rung or not transport.is_active() or not opened or not _is_closed(opened[0]):
                why = str(error) or type(error).__name__
                raise ConnectionLostError(f"no SFTP channel could be opened ({why})") from error
            raise UnusableServerError(
                "the server lets us in but has no SFTP for us. Is there a line 'Subsystem sftp "
                "internal-sftp' in its sshd_config, and may this user use it?"
            ) from error


def _is_closed(channel: paramiko.Channel) -> bool:
    return channel.closed or bool(channel.eof_received)


def _no_session(error: paramiko.ChannelException) -> SftpError:
    if error.code == _PROHIBITED:
        return UnusableServerError(f"the server allows no session ({error.text})")
    return ConnectionLostError(f"the server opens no session ({error.text})")
