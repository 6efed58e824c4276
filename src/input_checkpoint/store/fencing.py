"""Fencing: a run may write only while no newer run of its worker has begun."""

from __future__ import annotations

from datetime import datetime

from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError, WriterSupersededError
from input_checkpoint.format.keys import lineage_key
from input_checkpoint.store.catalog import Catalog


class Fence:
    """Raises as soon as a newer run of a worker has begun.

    The keys of the lineage records say which run is the newest, so a damaged record fences as well as an
    intact one.

    Args:
        catalog: of the store.
        worker: name of the worker.
        lineage: number of the newest lineage that is expected.
    """

    def __init__(self, catalog: Catalog, worker: str, lineage: int) -> None:
        self._catalog = catalog
        self._worker = worker
        self._lineage = lineage

    def check_may_save(self) -> None:
        """Raise `WriterSupersededError` if a newer run has begun."""
        newest = self._catalog.newest_number(self._worker)
        if newest > self._lineage:
            raise WriterSupersededError(
                f"{self._uri}: a newer run of worker {self._worker!r} has taken over "
                f"({self._describe_run(newest)}). This run (lineage {self._lineage}) can no longer save. "
                "Stop it, or give it a URI of its own.",
                uri=self._uri,
            )

    def check_may_delete(self) -> None:
        """Raise `WriterSupersededError` if a newer run has begun.

        A run that restarts from an older step may need just what a retention policy would remove.
        """
        newest = self._catalog.newest_number(self._worker)
        if newest > self._lineage:
            raise WriterSupersededError(
                f"{self._uri}: a new run of worker {self._worker!r} began while its checkpoints were being "
                f"pruned ({self._describe_run(newest)}). Nothing more was removed; prune again.",
                uri=self._uri,
            )

    @property
    def _uri(self) -> str:
        return self._catalog.backend.uri

    def _describe_run(self, number: int) -> str:
        try:
            lineage = self._catalog.lineage(self._worker, number)
        except (CorruptCheckpointError, CheckpointNotFoundError):
            key = lineage_key(self._worker, number)
            return f"lineage {number}, whose record {key} cannot be read"
        return describe_process(lineage.host, lineage.pid, lineage.created)


def describe_process(host: str, pid: int, created: datetime) -> str:
    """Return which process wrote something, and when, for messages."""
    return f"host {host}, pid {pid}, {created:%Y-%m-%d %H:%M:%S %Z}"
