"""Which client library sends a plugin's requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.errors import BackendError

FSSPEC = "fsspec"
OBSTORE = "obstore"

FSSPEC_CACHE_OPTIONS = frozenset({"use_listings_cache", "skip_instance_cache"})
"""Options about caches that only fsspec has. Every other engine ignores them."""


def choose_engine(
    uri: str, storage_options: Mapping[str, Any], known: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Return the engine that ``storage_options`` name, and the other options.

    Args:
        uri: of the backend, for the message.
        storage_options: as the user gave them.
        known: the engines of the plugin, the default first.

    Raises:
        BackendError: the plugin has no such engine.

    Example:
        >>> choose_engine("s3://bucket", {"engine": "obstore", "key": "AKIA"}, ["fsspec", "obstore"])
        ('obstore', {'key': 'AKIA'})
    """
    options = dict(storage_options)
    engine = options.pop("engine", known[0])
    if engine not in known:
        choices = " or ".join(repr(name) for name in known)
        raise BackendError(
            f"cannot open {redact_uri(uri)}: there is no engine {engine!r} for it. Choose {choices}.",
            uri=redact_uri(uri),
        )
    return engine, options


def refuse_options(uri: str, engine: str, unsupported: Iterable[str]) -> None:
    """Refuse options that an engine has no equivalent for, rather than ignore them.

    Args:
        uri: of the backend, without secrets.
        engine: its name.
        unsupported: the names of the options; nothing happens if there are none.

    Raises:
        BackendError: there are some.
    """
    names = ", ".join(unsupported)
    if names:
        raise BackendError(
            f"cannot open {uri}: engine={engine!r} has no equivalent for {names} in storage_options. Remove "
            "the option, or remove the engine.",
            uri=uri,
        )
