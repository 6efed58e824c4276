"""The commit: creating the manifest, which makes a checkpoint visible."""

from __future__ import annotations

from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.errors import (
    BackendError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ObjectExistsError,
    WriterSupersededError,
)
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.format.manifest import Header, encode_manifest
from input_checkpoint.store.announcing import Announcement
from input_checkpoint.store.catalog import Catalog
from input_checkpoint.store.fencing import Fence, describe_process


def commit(catalog: Catalog, fence: Fence, header: Header, table: bytes, announcement: Announcement) -> None:
    """Create the manifest of a checkpoint whose packs are all stored.

    The process may be suspended at any moment, for any time. So the conditions of a commit are checked once
    more after the manifest exists.

    Args:
        catalog: of the store.
        fence: of the run.
        header: of the manifest.
        table: the encoded chunk table.
        announcement: of the save.

    Raises:
        CheckpointTooLargeError: the manifest would be larger than the format allows.
        WriterSupersededError: a newer run has begun, or another process has committed this step.
        SaveExpiredError: a prune may have removed data of this save. The checkpoint does not exist.
        CorruptCheckpointError: this step has been committed already, and its manifest is damaged.
        BackendError: the storage failed. Nothing became visible, unless it failed after the commit.
    """
    backend, key = catalog.backend, manifest_key(header.ref)
    manifest = encode_manifest(header, table)
    listing = fence.check_may_save()
    if not announcement.is_in_force(listing.announcements):
        raise announcement.expired_error("Nothing was committed.")
    try:
        backend.create(key, manifest)
    except ObjectExistsError:
        _check_own(catalog, key, header)
    _check_again(catalog, fence, header.ref, announcement)


def _check_again(catalog: Catalog, fence: Fence, ref: CheckpointRef, announcement: Announcement) -> None:
    """Raise an error if a newer run or a prune came between the checks before the commit and the commit."""
    listing = fence.look()
    is_whole = announcement.is_in_force(listing.announcements)
    outcome = "" if is_whole else _withdraw(catalog, ref)
    if fence.is_superseded(listing):
        raise fence.superseded_error(
            listing,
            f"It began while this run (lineage {ref.lineage}) committed step {ref.step}. "
            f"{outcome or 'That checkpoint counts only if the newer run has resumed from it.'} "
            "Stop this run, or give it a URI of its own.",
        )
    if not is_whole:
        raise announcement.expired_error(outcome)


def _withdraw(catalog: Catalog, ref: CheckpointRef) -> str:
    """Delete a manifest whose data may be gone, and return the outcome as a sentence."""
    try:
        catalog.backend.delete([manifest_key(ref)])
    except BackendError as error:
        return (
            f"The checkpoint of step {ref.step} may be damaged and could not be withdrawn. "
            f"Delete {manifest_key(ref)} ({error})."
        )
    return f"The checkpoint of step {ref.step} was withdrawn."


def _check_own(catalog: Catalog, key: str, header: Header) -> None:
    """Raise unless the manifest was created by this save, whose first response was lost."""
    uri = catalog.backend.uri
    try:
        stored = catalog.read_header(header.ref)
    except CheckpointNotFoundError as error:
        raise BackendError(
            f"{uri}: {key} could not be created because it exists, but it cannot be read because it does not "
            "exist. Another process has deleted it, or the storage gives wrong answers. Check what else "
            "writes to this URI, and what answers there, then try again.",
            uri=uri,
            key=key,
            ref=header.ref,
        ) from error
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(
            f"{uri}: checkpoint {header.ref} exists already and is damaged ({key}): {error}",
            uri=uri,
            key=key,
            ref=header.ref,
        ) from error
    if stored.write_id != header.write_id:
        raise WriterSupersededError(
            f"{uri}: {header.ref} was committed by another process "
            f"({describe_process(stored.host, stored.pid, stored.created)}). "
            "Two runs must not share a URI and a worker name: stop this one.",
            uri=uri,
            key=key,
            ref=header.ref,
        )
