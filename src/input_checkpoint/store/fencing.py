"""Fencing: a run may write only while no newer run of its worker has begun."""

from __future__ import annotations

from datetime import datetime
from typing import Optional

from input_checkpoint.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InconsistentListingError,
    WriterSupersededError,
)
from input_checkpoint.format.keys import lineage_key, lineages_prefix
from input_checkpoint.store.catalog import Catalog, RunListing
from input_checkpoint.store.contradictions import inconsistent_listing

_STOP = "Stop it, or give it a URI of its own."


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

    def look(self) -> RunListing:
        """Return the worker's lineage records, and what is announced.

        Raises:
            InconsistentListingError: the listing lacks the record of the expected lineage, which exists.
        """
        listing = self._catalog.list_runs(self._worker)
        if listing.newest < self._lineage:
            self._check_that_record_is_lost()
        return listing

    def check_may_save(self) -> RunListing:
        """Raise `WriterSupersededError` if a newer run has begun. Otherwise return what `look` returns."""
        listing = self.look()
        if self.is_superseded(listing):
            raise self.superseded_error(
                listing, f"This run (lineage {self._lineage}) can no longer save. {_STOP}"
            )
        return listing

    def check_may_delete(self, announcement: Optional[str]) -> RunListing:
        """Raise an error if a newer run has begun, or the listing that shows this is not complete.

        A run that restarts from an older step may need just what a retention policy would remove.

        Args:
            announcement: key of the announcement of the prune, if there is one. No other key in the listing
                comes after it, so a listing that has lost its end does not contain it.

        Returns:
            What `look` returns.

        Raises:
            WriterSupersededError: a newer run has begun.
            InconsistentListingError: the listing lacks an object that exists.
        """
        listing = self.look()
        if self.is_superseded(listing):
            raise WriterSupersededError(
                f"{self._uri}: a new run of worker {self._worker!r} began while its checkpoints were being "
                f"pruned ({self._describe_run(listing.newest)}). Nothing more was removed; prune again.",
                uri=self._uri,
            )
        if announcement and announcement not in listing.announcements:
            raise self._incomplete_listing(announcement, "which this prune has just written")
        return listing

    def is_superseded(self, listing: RunListing) -> bool:
        """Whether a newer run has begun."""
        return listing.newest > self._lineage

    def superseded_error(self, listing: RunListing, consequence: str) -> WriterSupersededError:
        """Return the error that says which newer run has begun.

        Args:
            listing: shows the newer run.
            consequence: what that means for the caller.
        """
        return WriterSupersededError(
            f"{self._uri}: a newer run of worker {self._worker!r} has taken over "
            f"({self._describe_run(listing.newest)}). {consequence}",
            uri=self._uri,
        )

    def _check_that_record_is_lost(self) -> None:
        # Something other than this library may have deleted it. Then the run continues.
        key = lineage_key(self._worker, self._lineage)
        if self._catalog.exists(key):
            raise self._incomplete_listing(key, "although this object exists")

    def _incomplete_listing(self, key: str, evidence: str) -> InconsistentListingError:
        return inconsistent_listing(
            f"{self._uri}: the listing of {lineages_prefix(self._worker)} does not contain {key}, {evidence}",
            "So it is not known whether a newer run has begun, and nothing was committed or removed because "
            "of this listing.",
            uri=self._uri,
            key=key,
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
