"""Announcements: empty objects that say that a save, a copy or a prune is in progress."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Collection, Iterator
from typing import Callable, Optional

from input_checkpoint.backends.base import Backend
from input_checkpoint.errors import (
    BackendError,
    BackendUnavailableError,
    SaveExpiredError,
)
from input_checkpoint.parallel import run_all
from input_checkpoint.store.bounded_reads import exists

STALE_ANNOUNCEMENT_SECONDS = 24 * 3600.0
"""Age at which a prune presumes that the process behind an announcement is dead, and deletes the
announcement."""

RENEW_SECONDS = 3600.0
"""Age at which an announcement is renewed."""


class Announcement:
    """Keeps prunes from removing data while a save or a copy is in progress.

    A prune deletes an announcement that it does not respect before it removes any data. So while the
    announcement exists, no prune has removed data that its process needs.

    A renewal writes a new object under another key, then makes sure that the old one still exists, and
    deletes it. Writing the same key again would hide that a prune has deleted it.

    Args:
        backend: the storage of the announcement.
        new_key: returns the key for a random id.
    """

    def __init__(self, backend: Backend, new_key: Callable[[str], str]) -> None:
        self._backend = backend
        self._new_key = new_key
        self._key = new_key(uuid.uuid4().hex)
        # Replaced, never changed: a prune in another thread reads it.
        self.keys: frozenset[str] = frozenset({self._key})
        """Every key that it may have at this moment."""
        self._written = _now()

    @property
    def key(self) -> str:
        """The key under which it was written last."""
        return self._key

    @contextlib.contextmanager
    def in_force(self, meanwhile: Optional[Callable[[], object]] = None) -> Iterator[None]:
        """Write the announcement, and delete it at the end of the block.

        Args:
            meanwhile: called while it is being written. The block is not entered if this raises.
        """
        unavailable = False
        try:
            run_all([self._write, *filter(None, [meanwhile])])
            yield
        except BackendUnavailableError:
            unavailable = True
            raise
        finally:
            # An announcement that stays behind only delays prunes until it is old. So after an outage that
            # outlasted the retries, this does not wait for the storage again.
            if not unavailable:
                with contextlib.suppress(BackendError):
                    self._backend.delete(sorted(self.keys))

    def renew_if_due(self) -> None:
        """Write the announcement again if it is an hour old.

        Raises:
            SaveExpiredError: a prune has deleted it.
            BackendError: the storage failed.
        """
        if all(now - then < RENEW_SECONDS for now, then in zip(_now(), self._written)):
            return
        old, self._key = self._key, self._new_key(uuid.uuid4().hex)
        self.keys = frozenset({old, self._key})
        self._write()
        if not exists(self._backend, old):
            raise self.expired_error("Nothing was committed.")
        self._backend.delete([old])
        self.keys = frozenset({self._key})

    def is_in_force(self, listed: Collection[str] = ()) -> bool:
        """Return whether the announcement still exists.

        Args:
            listed: keys from a listing. If the announcement is among them, nothing is requested.
        """
        return self._key in listed or exists(self._backend, self._key)

    def expired_error(self, outcome: str) -> SaveExpiredError:
        """Return the error for an announcement that is not in force any more."""
        return SaveExpiredError(
            f"{self._backend.uri}: the announcement {self._key} of this process is gone, so a prune may have "
            "removed data that this process stored. A prune deletes an announcement that was not renewed for "
            "a day, because its process was suspended or could not reach the storage. It also deletes those "
            f"of older runs, and a newer copy deletes that of an older one. {outcome}",
            uri=self._backend.uri,
            key=self._key,
        )

    def _write(self) -> None:
        self._backend.put(self._key, b"")
        self._written = _now()


def _now() -> tuple[float, float]:
    """Return the time by two clocks. On most systems, only the second one runs during a suspension."""
    return time.monotonic(), time.time()
