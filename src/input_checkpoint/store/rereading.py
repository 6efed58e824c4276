"""Reads again what seems damaged: a bit may have flipped in transit, while the stored object is intact."""

from __future__ import annotations

import logging
from typing import Callable, TypeVar

from input_checkpoint.errors import CorruptCheckpointError

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


def read_again_if_damaged(read: Callable[[], _Result], what: str) -> _Result:
    """Return what ``read`` returns. Call it a second time if the first result is damaged.

    Args:
        read: requests an object and checks it.
        what: names the object in the log.

    Raises:
        CorruptCheckpointError: both results are damaged.
    """
    try:
        return read()
    except CorruptCheckpointError as error:
        first = error
    result = read()
    logger.warning(
        "%s seemed to be damaged, but was intact when it was read again (%s). The network, a proxy or the "
        "memory of this machine may be faulty.",
        what,
        first,
    )
    return result
