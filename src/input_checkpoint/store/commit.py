"""The commit: creating the manifest, which makes a checkpoint visible."""

from __future__ import annotations

from input_checkpoint.backends.base import Backend
from input_checkpoint.errors import CorruptCheckpointError, ObjectExistsError, WriterSupersededError
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.format.manifest import Header, encode_manifest
from input_checkpoint.store.bounded_reads import read_header
from input_checkpoint.store.fencing import Fence, describe_process


def commit(backend: Backend, fence: Fence, header: Header, table: bytes) -> None:
    """Create the manifest of a checkpoint whose packs are all stored.

    Args:
        backend: of the store.
        fence: of the run.
        header: of the manifest.
        table: the encoded chunk table.

    Raises:
        CheckpointTooLargeError: the manifest would be larger than the format allows.
        WriterSupersededError: a newer run has begun, or another process has committed this step.
        CorruptCheckpointError: this step has been committed already, and its manifest is damaged.
        BackendError: the storage failed. Nothing became visible, unless only the response was lost.
    """
    manifest = encode_manifest(header, table)
    fence.check_may_save()
    key = manifest_key(header.ref)
    try:
        backend.create(key, manifest)
    except ObjectExistsError:
        _check_own(backend, key, header)


def _check_own(backend: Backend, key: str, header: Header) -> None:
    """Raise unless the manifest was created by this save, whose first response was lost."""
    try:
        stored = read_header(backend, key)
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(
            f"{backend.uri}: checkpoint {header.ref} exists already and is damaged ({key}): {error}",
            uri=backend.uri,
            key=key,
            ref=header.ref,
        ) from error
    if stored.write_id != header.write_id:
        raise WriterSupersededError(
            f"{backend.uri}: {header.ref} was committed by another process "
            f"({describe_process(stored.host, stored.pid, stored.created)}). "
            "Two runs must not share a URI and a worker name: stop this one.",
            uri=backend.uri,
            key=key,
            ref=header.ref,
        ) from None
