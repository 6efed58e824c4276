"""Temporary files that crashed writers left behind in the folders of a store."""

from __future__ import annotations

import logging

from input_checkpoint.backends.base import Backend
from input_checkpoint.errors import BackendError
from input_checkpoint.format.keys import folder_patterns

logger = logging.getLogger(__name__)


def remove_leftovers(backend: Backend, worker: str) -> None:
    """Remove those in the folders of a worker that are more than a day old. Part of a prune.

    Args:
        backend: of a store. Whoever opened it has checked its format version, so its folders are ours.
        worker: name of the worker.
    """
    try:
        backend.remove_leftovers(folder_patterns(worker))
    except BackendError as error:
        # They only take up space. A prune that has done its work does not fail because of them.
        logger.info("%s: temporary files were not removed, a later prune tries again: %s", backend.uri, error)
