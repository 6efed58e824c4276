"""The error for answers of a storage that contradict each other."""

from __future__ import annotations

from typing import Optional

from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.errors import InconsistentListingError


def inconsistent_listing(
    contradiction: str,
    consequence: str = "",
    *,
    uri: Optional[str],
    key: Optional[str],
    ref: Optional[CheckpointRef] = None,
) -> InconsistentListingError:
    """Return the error that says what contradicts what.

    Args:
        contradiction: the answers, as the beginning of a sentence.
        consequence: what was or was not done because of them, as a sentence.
        uri: of the storage.
        key: of the object that they are about.
        ref: of the checkpoint that they are about, if there is one.
    """
    advice = "Check what answers at this URI, then try again."
    cause = "The storage, or a proxy in front of it, gives wrong answers."
    return InconsistentListingError(
        " ".join(filter(None, (f"{contradiction}.", cause, consequence, advice))), uri=uri, key=key, ref=ref
    )
