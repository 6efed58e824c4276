"""Listings of checkpoints, compared with other answers of the storage.

A proxy that answers with a login page, or a server that loses a page of a listing, makes a full store look
empty. A prune that trusted such a listing would remove everything. So the listing is compared with other
answers: the keys of the packs say which saves have stored data, and each manifest can be requested by its
key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.errors import InconsistentListingError
from input_checkpoint.format.keys import checkpoints_prefix, manifest_key, parse_pack_key
from input_checkpoint.store.catalog import Catalog, CheckpointListing
from input_checkpoint.store.contradictions import inconsistent_listing

_ATTEMPTS = 10


def checked_listing(
    catalog: Catalog,
    worker: str,
    expected: Collection[CheckpointRef],
    absent: Collection[CheckpointRef] = (),
) -> CheckpointListing:
    """Return every checkpoint and every mark of a worker.

    The bases of the marks may exist as well.

    Args:
        catalog: of the store.
        worker: name of the worker.
        expected: checkpoints that may exist. The manifest of each one that is not listed is requested.
        absent: checkpoints that are not requested, because they certainly do not exist yet, or any more.

    Raises:
        InconsistentListingError: the listing lacks a checkpoint that exists.
    """
    for _ in range(_ATTEMPTS):
        listed = catalog.list_checkpoints(worker)
        likely = {*expected, *(mark.base for mark in listed.marks)}.difference(absent)
        unlisted = catalog.committed(likely.difference(listed.checkpoints))
        if not unlisted:
            return listed
        # Committed since they were listed? What existed before and after a listing belongs in it.
        again = set(catalog.refs(worker))
        missing = catalog.committed(unlisted - again)
        if missing:
            raise _error(catalog, worker, min(missing))
    raise _error(catalog, worker, min(unlisted))


def owners(packs: Iterable[str]) -> set[CheckpointRef]:
    """Return the checkpoints that packs were stored for: all that have data, and some that are gone."""
    return {ref for ref in map(parse_pack_key, packs) if ref}


def _error(catalog: Catalog, worker: str, ref: CheckpointRef) -> InconsistentListingError:
    uri, key = catalog.backend.uri, manifest_key(ref)
    return inconsistent_listing(
        f"{uri}: the listing of {checkpoints_prefix(worker)} does not contain {key}, although this object "
        "exists",
        "No data was removed because of this listing.",
        uri=uri,
        key=key,
        ref=ref,
    )
