"""Version 3 of the SFTP protocol, with OpenSSH's extensions, over one channel.

paramiko's own client is not used above the channel. It forgets the answers to the last hundred writes of a
file, so that a disk that is full there makes a broken object and no error; it has no public way to send an
extended request; and it does not tell which extensions the server has.

The protocol: https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02
The extensions: https://github.com/openssh/openssh-portable/blob/master/PROTOCOL, section 4.
"""

from __future__ import annotations

import enum
import socket
import stat
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn, Optional, Union

import paramiko

from input_checkpoint_sftp.errors import ConnectionLostError, StatusError, UnusableServerError, status_error

HARD_LINK = "hardlink@openssh.com"
POSIX_RENAME = "posix-rename@openssh.com"
FSYNC = "fsync@openssh.com"

_VERSION = 3
_OK = 0
_EOF = 1
_PIECE_BYTES = 32_000
"""Of a read or write. With its header it fits into one SSH packet, and every server takes that much."""
_IN_FLIGHT = 64
"""Requests without an answer at a time, as OpenSSH's own client has them."""
_LONGEST_PACKET = 1 << 20
"""Longer ones are not SFTP, but for example what a login script prints."""

_Field = Union[int, bytes, str, "Long"]


class OpenFlag(enum.IntFlag):
    """How a file is opened."""

    READ = 0x1
    WRITE = 0x2
    CREATE = 0x8
    EXCLUSIVE = 0x20


class Long(int):
    """An integer of 64 bits."""


class _Kind(enum.IntEnum):
    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    FSTAT = 8
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    STAT = 17
    RENAME = 18
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200


_NO_ATTRIBUTES = 0


@dataclass(frozen=True)
class Attributes:
    """What a server tells of a file or folder; None where it does not say."""

    size: Optional[int]
    mode: Optional[int]
    modified: Optional[int]

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.mode is not None and stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a plain file, as far as one can tell."""
        return self.mode is None or stat.S_ISREG(self.mode)


@dataclass(frozen=True)
class Entry:
    """One line of a folder's listing."""

    name: str
    attributes: Attributes


@dataclass(frozen=True)
class _Answer:
    number: int
    kind: int
    message: paramiko.Message

    def failure(self) -> Optional[StatusError]:
        """Return the error if this is a status other than success."""
        if self.kind != _Kind.STATUS:
            return None
        code = self.message.get_int()
        if code == _OK:
            return None
        return status_error(code, self.message.get_binary().decode(errors="replace"))


class Sftp:
    """Requests to an SFTP server, one caller at a time.

    A request that the server refuses raises `StatusError`, and the next one may follow. When there is no
    answer in time, or the channel is closed, this and every further request raises `ConnectionLostError`.

    Args:
        channel: with the subsystem ``sftp`` at its other end, and a time-out.

    Raises:
        UnusableServerError: what is at the other end does not speak SFTP.
    """

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._number = 0
        self._received = bytearray()
        self._lost: Optional[str] = None
        self.extensions = self._greet()
        """The names of the extensions that the server has."""

    @property
    def is_usable(self) -> bool:
        """Whether it is worth asking anything more."""
        return self._lost is None and not self._channel.closed

    def hang_up(self) -> None:
        """Close the channel."""
        self._channel.close()

    def open(self, path: str, flags: OpenFlag) -> bytes:
        """Open a file, or a folder for its `FSYNC`; return the handle."""
        return self._ask(_Kind.HANDLE, _Kind.OPEN, path, int(flags), _NO_ATTRIBUTES).get_binary()

    def close(self, handle: bytes) -> None:
        """Close a handle. What the server has put off until now may go wrong here."""
        self._ask(_Kind.STATUS, _Kind.CLOSE, handle)

    def stat(self, path: str) -> Attributes:
        """Return what there is to know about a file or folder."""
        return _attributes(self._ask(_Kind.ATTRS, _Kind.STAT, path))

    def stat_handle(self, handle: bytes) -> Attributes:
        """Return what there is to know about an open file."""
        return _attributes(self._ask(_Kind.ATTRS, _Kind.FSTAT, handle))

    def remove(self, paths: Sequence[str]) -> dict[str, StatusError]:
        """Remove files. Return what went wrong, by path."""
        failures = self._ask_each(((_Kind.REMOVE, path) for path in paths), go_on=True)
        return {paths[place]: error for place, error in failures.items()}

    def rename(self, old: str, new: str) -> None:
        """Rename a file. The protocol says that ``new`` must be free; not every server minds."""
        self._ask(_Kind.STATUS, _Kind.RENAME, old, new)

    def make_folder(self, path: str) -> None:
        """Make a folder in one that is there."""
        self._ask(_Kind.STATUS, _Kind.MKDIR, path, _NO_ATTRIBUTES)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        self._ask(_Kind.STATUS, _Kind.RMDIR, path)

    def extended(self, name: str, *fields: Union[str, bytes]) -> None:
        """Send the request of an extension."""
        self._ask(_Kind.STATUS, _Kind.EXTENDED, name, *fields)

    def list_folder(self, path: str) -> list[Entry]:
        """Return what is in a folder."""
        handle = self._ask(_Kind.HANDLE, _Kind.OPENDIR, path).get_binary()
        try:
            return list(self._entries(handle))
        finally:
            self.close(handle)

    def read(self, handle: bytes, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop`` of an open file, which must have that many."""
        data = bytearray(stop - start)
        wanted = deque(_pieces(start, stop))
        asked: dict[int, tuple[int, int]] = {}
        failure: Optional[StatusError] = None
        while asked or (wanted and failure is None):
            if wanted and failure is None and len(asked) < _IN_FLIGHT:
                offset, length = wanted.popleft()
                asked[self._send(_Kind.READ, handle, Long(offset), length)] = (offset, length)
                continue
            answer = self._receive(asked)
            offset, length = asked.pop(answer.number)
            failure = failure or answer.failure()
            if failure is not None:
                continue
            piece = self._expect(_Kind.DATA, answer).get_binary()
            if not 0 < len(piece) <= length:
                self._lose("the server answers a read with the wrong number of bytes")
            data[offset - start : offset - start + len(piece)] = piece
            if len(piece) < length:
                wanted.append((offset + len(piece), length - len(piece)))
        if failure is not None:
            raise failure
        return bytes(data)

    def write(self, handle: bytes, data: bytes) -> None:
        """Write an open file from its beginning. Returns when the server has confirmed every part."""
        view = memoryview(data)
        requests = (
            (_Kind.WRITE, handle, Long(start), bytes(view[start:stop]))
            for start, stop in ((start, start + length) for start, length in _pieces(0, len(data)))
        )
        for failure in self._ask_each(requests, go_on=False).values():
            raise failure

    def _entries(self, handle: bytes) -> Iterator[Entry]:
        while True:
            try:
                message = self._ask(_Kind.NAME, _Kind.READDIR, handle)
            except StatusError as error:
                if error.code == _EOF:
                    return
                raise
            for _ in range(message.get_int()):
                name = message.get_binary().decode(errors="surrogateescape")
                message.get_binary()  # a line as of `ls -l`
                entry = Entry(name, _attributes(message))
                if name not in (".", ".."):
                    yield entry

    def _ask(self, expected: _Kind, kind: _Kind, *fields: _Field) -> paramiko.Message:
        answer = self._receive([self._send(kind, *fields)])
        failure = answer.failure()
        if failure is not None:
            raise failure
        return self._expect(expected, answer)

    def _ask_each(self, requests: Iterable[tuple[_Field, ...]], go_on: bool) -> dict[int, StatusError]:
        """Send requests without waiting for each other. Return what went wrong, by place.

        Args:
            requests: kind and fields.
            go_on: send the rest, too, after one has failed.
        """
        asked: dict[int, int] = {}
        failures: dict[int, StatusError] = {}

        def settle() -> None:
            answer = self._receive(asked)
            place = asked.pop(answer.number)
            failure = answer.failure()
            if failure is not None:
                failures[place] = failure

        for place, request in enumerate(requests):
            if len(asked) == _IN_FLIGHT:
                settle()
            if failures and not go_on:
                break
            asked[self._send(*request)] = place
        while asked:
            settle()
        return dict(sorted(failures.items()))

    def _expect(self, kind: _Kind, answer: _Answer) -> paramiko.Message:
        if answer.kind != kind:
            self._lose(f"the server gives an answer of the wrong kind ({answer.kind} for {kind.value})")
        return answer.message

    def _greet(self) -> frozenset[str]:
        self._send_packet(_Kind.INIT, struct.pack(">I", _VERSION))
        kind, body = self._receive_packet()
        if kind != _Kind.VERSION:
            raise UnusableServerError("the server does not answer in the SFTP protocol")
        message = paramiko.Message(body)
        message.get_int()  # the version: what is above 3 is not spoken to those who did not ask for it
        names = set()
        while message.get_remainder():
            names.add(message.get_binary().decode(errors="replace"))
            message.get_binary()  # the version of the extension
        return frozenset(names)

    def _send(self, kind: _Field, *fields: _Field) -> int:
        self._number = (self._number + 1) % (1 << 32)
        message = paramiko.Message()
        message.add_int(self._number)
        for field in fields:
            if isinstance(field, Long):
                message.add_int64(field)
            elif isinstance(field, int):
                message.add_int(field)
            else:
                message.add_string(field)
        self._send_packet(kind, message.asbytes())
        return self._number

    def _receive(self, asked: Iterable[int]) -> _Answer:
        kind, body = self._receive_packet()
        message = paramiko.Message(body)
        answer = _Answer(message.get_int(), kind, message)
        if answer.number not in asked:
            self._lose("the server answers what it was not asked")
        return answer

    def _send_packet(self, kind: _Field, body: bytes) -> None:
        if self._lost is not None:
            raise ConnectionLostError(self._lost)
        packet = struct.pack(">IB", len(body) + 1, kind) + body
        try:
            self._channel.sendall(packet)
        except socket.timeout:
            self._lose(self._no_answer)
        except (OSError, EOFError, paramiko.SSHException) as error:
            self._lose(f"the connection broke off ({str(error) or type(error).__name__})")

    def _receive_packet(self) -> tuple[int, bytes]:
        (length,) = struct.unpack(">I", self._take(4))
        if not 0 < length <= _LONGEST_PACKET:
            self.hang_up()
            raise UnusableServerError(
                "what the server sends is not SFTP. Does a login script there print something?"
            )
        packet = self._take(length)
        return packet[0], packet[1:]

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            self._received += self._receive_some()
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _receive_some(self) -> bytes:
        try:
            some = self._channel.recv(1 << 16)
        except socket.timeout:
            self._lose(self._no_answer)
        except (OSError, EOFError, paramiko.SSHException) as error:
            self._lose(f"the connection broke off ({str(error) or type(error).__name__})")
        if not some:
            self._lose("the server closed the connection")
        return some

    @property
    def _no_answer(self) -> str:
        return f"no answer within {self._channel.gettimeout():g} s"

    def _lose(self, why: str) -> NoReturn:
        self._lost = why
        raise ConnectionLostError(why)


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for offset in range(start, stop, _PIECE_BYTES):
        yield offset, min(_PIECE_BYTES, stop - offset)


def _attributes(message: paramiko.Message) -> Attributes:
    flags = message.get_int()
    size = message.get_int64() if flags & 0x1 else None
    if flags & 0x2:
        message.get_bytes(8)  # owner and group
    mode = message.get_int() if flags & 0x4 else None
    modified = None
    if flags & 0x8:
        message.get_int()  # read last
        modified = message.get_int()
    if flags & 0x8000_0000:
        for _ in range(message.get_int()):
            message.get_binary()
            message.get_binary()
    return Attributes(size, mode, modified)
