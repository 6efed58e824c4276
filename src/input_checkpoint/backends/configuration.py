"""fsspec's configuration files, read again for credentials that have changed in them.

fsspec reads them once, when it is imported
(https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration).
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from fsspec import config

from input_checkpoint.backends.redaction import remember_secrets

_Configuration = dict[str, dict[str, Any]]

_lock = threading.Lock()


def update_configuration() -> None:
    """Take over what has changed in the files. What the program has set in ``fsspec.config.conf`` stays."""
    global _known
    with _lock:
        try:
            current = _read_files()
        except (OSError, ValueError):
            return  # somebody is writing a file
        for protocol, options in current.items():
            for name, value in options.items():
                if value != _known.get(protocol, {}).get(name):
                    config.conf.setdefault(protocol, {})[name] = value
        remember_secrets("", current)
        _known = current


def _read_files() -> _Configuration:
    found: _Configuration = {}
    config.set_conf_files(config.conf_dir, found)
    return found


_known: _Configuration = {}
with contextlib.suppress(OSError, ValueError):
    _known = _read_files()
