"""The one place that every message passes: removes secrets by their value and by their form."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Optional

from input_checkpoint.redaction.literals import redact_literals, secrets_in, secrets_in_uri
from input_checkpoint.redaction.names import is_secret_name
from input_checkpoint.redaction.shapes import redact_shapes
from input_checkpoint.redaction.uris import redact_uris

_LONGEST_TEXT = 20_000
_MOST_SECRETS = 300
_ENVIRONMENT = ("AWS_", "AZURE_", "GOOGLE_", "FSSPEC_")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")

_lock = threading.Lock()
_remembered: dict[str, None] = {}
"""The secrets that this process was given, the newest last."""


@dataclass(frozen=True)
class Redactor:
    """Removes secrets from texts.

    Args:
        secrets: values to remove wherever they stand, in any usual spelling.

    Example:
        >>> Redactor(("hunter2",)).redact("refused: 'hunter2' for ftp://joe:abc@host/run?sig=1")
        "refused: '***' for ftp://***@host/run?***"
    """

    secrets: tuple[str, ...] = ()

    def redact(self, text: str) -> str:
        """Return a text without secrets. The end of a very long one is cut off."""
        if len(text) > _LONGEST_TEXT:
            text = f"{text[:_LONGEST_TEXT]} … ({len(text) - _LONGEST_TEXT} more characters)"
        return redact_shapes(redact_uris(redact_literals(text, self.secrets)))

    def __repr__(self) -> str:
        return f"Redactor(<{len(self.secrets)} secrets>)"


def redact(text: str) -> str:
    """Return a text without secrets: those that `remember_secrets` was given, and what looks like one.

    Example:
        >>> redact("cannot open sftp://joe:se@cret@host/path")
        'cannot open sftp://***@host/path'
    """
    return Redactor((*_remembered_secrets(), *_environment_secrets())).redact(text)


def excerpt(text: str, length: int = 500) -> str:
    """Return the beginning of a text without secrets.

    The secrets go first: what is cut in the middle is not recognized.
    """
    return redact(text[: 8 * length])[:length]


def remember_secrets(uri: str = "", options: Optional[Mapping[str, Any]] = None) -> None:
    """Remember the credentials in a URI and in options, so that `redact` removes them from every text.

    Args:
        uri: of a backend.
        options: its ``storage_options``, or other options. The names say which values are secrets.
    """
    found = [*secrets_in_uri(uri), *secrets_in(options or {})]
    with _lock:
        for secret in found:
            _remembered.pop(secret, None)
            _remembered[secret] = None
        for secret in list(_remembered)[:-_MOST_SECRETS]:
            del _remembered[secret]


def _remembered_secrets() -> tuple[str, ...]:
    with _lock:
        return tuple(_remembered)


def _environment_secrets() -> tuple[str, ...]:
    return _secrets_of(
        tuple(
            (name, value)
            for name, value in os.environ.items()
            if name.lower() in _PROXIES or _holds_secret(name)
        )
    )


def _holds_secret(variable: str) -> bool:
    # GOOGLE_APPLICATION_CREDENTIALS is the path of a file.
    return variable.startswith(_ENVIRONMENT) and is_secret_name(variable) and variable[-12:] != "_CREDENTIALS"


@lru_cache(maxsize=8)
def _secrets_of(variables: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(secrets_in(dict(variables)))
