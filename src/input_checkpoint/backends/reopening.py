"""Clients that are opened again in a forked child, and after a server refused the credentials.

A fork copies neither the threads that drive a client nor the server's side of its connections. A child that
uses an inherited client waits for a thread that does not exist, or writes into the parent's connections.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Callable, Generic, Optional, TypeVar

from fsspec import asyn

from input_checkpoint.backends.configuration import update_configuration

_Client = TypeVar("_Client")

_holders: weakref.WeakSet[ReopeningClient[Any]] = weakref.WeakSet()
_parents_loop: Any = None
"""fsspec's event loop in the parent process."""
_inherited: list[Any] = []
"""Clients of the parent process. They are kept, because their finalizers close the parent's connections."""


class ReopeningClient(Generic[_Client]):
    """Holds the client of a backend: at most one per process, opened when it is first used.

    Several threads may call any method at the same time.

    Args:
        open_client: opens a client, and looks up the credentials to do so.
        close_client: closes a client.
        client: one that is open already. Default: none.

    Example:
        >>> holder = ReopeningClient(lambda: ["a client"], lambda client: client.clear())
        >>> holder.get() is holder.get()
        True
    """

    def __init__(
        self,
        open_client: Callable[[], _Client],
        close_client: Callable[[_Client], None],
        client: Optional[_Client] = None,
    ) -> None:
        self._open = open_client
        self._close = close_client
        self._client = client
        self._process = os.getpid()
        self._lock = threading.Lock()
        _holders.add(self)

    @property
    def opened(self) -> Optional[_Client]:
        """The client that this process has opened, or None."""
        self.forget_inherited()
        return self._client

    def get(self) -> _Client:
        """Return this process's client. Opens it if there is none."""
        self.forget_inherited()
        with self._lock:
            if self._client is None:
                self._client = self._open()
            return self._client

    def replace(self, refused: _Client) -> None:
        """Open the client again, with credentials looked up anew, unless another thread has just done so.

        Args:
            refused: the client whose credentials the server refused. It is not closed, because other threads
                may still use it.
        """
        self.forget_inherited()
        with self._lock:
            if self._client is None or self._client is refused:
                update_configuration()
                self._client = self._open()

    def close(self) -> None:
        """Close this process's client, if it is open."""
        client = self.opened
        self._client = None
        if client is not None:
            self._close(client)

    def forget_inherited(self) -> None:
        """Forget a client that belongs to the parent process."""
        if self._process == os.getpid():
            return
        if self._client is not None:
            _inherited.append(self._client)
        # A thread of the parent may have held the lock.
        self._client, self._lock, self._process = None, threading.Lock(), os.getpid()


def _before_fork() -> None:
    global _parents_loop
    _parents_loop = asyn.loop[0]


def _start_over_in_child() -> None:
    # fsspec forgets its event loop itself, but not the lock that guards it.
    asyn.reset_lock()
    for holder in list(_holders):
        holder.forget_inherited()
    _detach_inherited_finalizers()


def _detach_inherited_finalizers() -> None:
    """Keep the parent's filesystems from waiting for the parent's event loop when the child ends.

    adlfs waits forever, s3fs for a second.
    """
    # There is no public way to find them.
    registry = getattr(weakref.finalize, "_registry", {})
    for finalizer, info in list(registry.items()):
        if _parents_loop is not None and any(argument is _parents_loop for argument in info.args):
            _inherited.append(finalizer.detach())


if hasattr(os, "register_at_fork"):
    # Right after the fork, before anything else in the child can drop a client.
    os.register_at_fork(before=_before_fork, after_in_child=_start_over_in_child)
