"""Which client library sends a plugin's requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import BackendError

FSSPEC = "fsspec"
OBSTORE = "obstore"


def chosen_engine(
    uri: str, storage_options: Mapping[str, Any], known: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Return the engine that ``storage_options`` name, and the other options.

    Args:
        uri: of the backend, for the message.
        storage_options: as the user gave them.
        known: the engines there are, the one to take if none is named first.

    Raises:
        BackendError: there is no such engine.

    Example:
        >>> chosen_engine("s3://bucket", {"engine": "obstore", "key": "AKIA"}, ["fsspec", "obstore"])
        ('obstore', {'key': 'AKIA'})
    """
    options = dict(storage_options)
    engine = options.pop("engine", known[0])
    if engine not in known:
        choices = " or ".join(repr(name) for name in known)
        raise BackendError(
            f"cannot open {redact(uri)}: there is no engine {engine!r} for it. Choose {choices}."
        )
    return engine, options
