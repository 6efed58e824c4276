"""Time limits from the options of s3fs, for both engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fsspec.config import apply_config
from s3fs import S3FileSystem

from input_checkpoint.backends.time_limits import DEFAULT_TIME_LIMITS, TimeLimits, split_time_limits


def read_options(uri: str, storage_options: Mapping[str, Any]) -> tuple[TimeLimits, dict[str, Any]]:
    """Return the time limits, and the other options with those of fsspec's configuration.

    A ``read_timeout`` in ``config_kwargs`` is the timeout unless there is a ``timeout``.

    Args:
        uri: of the backend, for messages.
        storage_options: as the user gave them.
    """
    options = apply_config(S3FileSystem, storage_options)
    read_timeout = (options.get("config_kwargs") or {}).get("read_timeout")
    default = (
        DEFAULT_TIME_LIMITS if read_timeout is None else replace(DEFAULT_TIME_LIMITS, timeout=read_timeout)
    )
    return split_time_limits(uri, options, default)
