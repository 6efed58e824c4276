"""The run tag: what a model directory remembers about the training whose input state is saved elsewhere.

It ties a model directory to a store: a random run id stands in both, so that a store of another training is
noticed before anything is restored from it, or removed by its retention policy.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Optional

from input_checkpoint.errors import UNREADABLE_JSON, DifferentRunError
from input_checkpoint.format.strict_json import parse_object, read_number, read_text
from input_checkpoint.store.catalog import WorkerListing

logger = logging.getLogger(__name__)

TAG_NAME = "input-checkpoint.json"
MAX_TAG_BYTES = 64 << 10
"""Size of the file. What is larger is not ours."""


@dataclass(frozen=True)
class RunTag:
    """The content of the file ``input-checkpoint.json`` in a model directory."""

    run_id: str
    """The same in the lineage records of the store."""
    uri: str
    """The store that the input state was last saved to, without secrets."""
    worker: str
    lineage: int
    """The lineage that was last begun there."""
    ended_at: Optional[int] = None
    """Step at which that training ended normally; None while it is running, or if it crashed."""


def encode_tag(tag: RunTag) -> str:
    """Return the text of the file."""
    return json.dumps(asdict(tag), indent=1)


def decode_tag(data: bytes) -> Optional[RunTag]:
    """Return the tag, or None if the file is damaged, which counts as missing.

    >>> tag = RunTag("5f0c", "s3://bucket/run-7/input", "main", lineage=3)
    >>> decode_tag(encode_tag(tag).encode()) == tag
    True
    >>> decode_tag(b"{}") is None
    True
    """
    if len(data) > MAX_TAG_BYTES:
        return None
    try:
        fields = parse_object(data)
        return RunTag(
            run_id=read_text(fields, "run_id"),
            uri=read_text(fields, "uri"),
            worker=read_text(fields, "worker"),
            lineage=read_number(fields, "lineage"),
            ended_at=None if fields["ended_at"] is None else read_number(fields, "ended_at"),
        )
    except UNREADABLE_JSON:
        return None


def warn_of_older_store(tag: RunTag, listing: WorkerListing, uri: str) -> None:
    """Warn if the training has continued in another store since it saved to this one.

    Args:
        tag: of the model directory.
        listing: what the worker has stored.
        uri: of the store.
    """
    lineage = listing.lineage
    if lineage is None or tag.uri == uri or tag.run_id != lineage.run_id or lineage.number >= tag.lineage:
        return
    reached = "" if tag.ended_at is None else f", up to step {tag.ended_at}"
    ends = f"ends at step {listing.checkpoints[-1].step}" if listing.checkpoints else "has no checkpoint"
    logger.warning("This training continued in %s%s; %s %s.", tag.uri, reached, uri, ends)


def check_same_run(
    tag: Optional[RunTag],
    listing: WorkerListing,
    proven: Collection[int],
    *,
    uri: str,
    model_dir: str,
) -> None:
    """Raise unless the store can be that of the training in ``model_dir``.

    A store without checkpoints can be anybody's, and so can one that was written before run ids were kept.
    Without a tag, a checkpoint that was demonstrably saved together with a model checkpoint in ``model_dir``
    is proof enough.

    Args:
        tag: of the model directory, or None.
        listing: what the worker has stored.
        proven: steps at which the model checkpoint in ``model_dir`` is the one that an input checkpoint
            belongs to.
        uri: of the store.
        model_dir: the model directory.

    Raises:
        DifferentRunError: the store holds the input state of another training.
    """
    lineage = listing.lineage
    if lineage is None or not listing.checkpoints or not lineage.run_id:
        return
    if (tag is not None and tag.run_id == lineage.run_id) or (tag is None and proven):
        return
    if tag is None:
        ours = f"nothing in {model_dir} belongs to it"
    else:
        ours = f"{model_dir} belongs to run {tag.run_id[:8]}, whose input state is in {tag.uri}"
    raise DifferentRunError(
        f"{uri} holds the input state of another training (run {lineage.run_id[:8]}, begun on host "
        f"{lineage.host} at {lineage.created:%Y-%m-%d %H:%M:%S} UTC, newest checkpoint at step "
        f"{listing.checkpoints[-1].step}), and {ours}. Choose another backend; or pass adopt=True to resume "
        "from that state; or pass resume='fresh' to start the input from its beginning, which deletes the "
        "checkpoints there after two saves.",
        uri=uri,
    )
