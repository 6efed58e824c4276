"""The URI schemes that can be opened, and what serves each of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

import fsspec

SCHEME_PATTERN = r"[A-Za-z][A-Za-z0-9+._-]*"
"""What is taken for a scheme in a text: what RFC 3986 allows, and the underscore."""

ENTRY_POINT_GROUP = "input_checkpoint.backends"

LOCAL_SCHEMES = ("file", "local")
BUILT_IN_SCHEMES = (*LOCAL_SCHEMES, "memory")

OFFICIAL_PLUGINS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
    "sftp": "sftp",
    "ssh": "sftp",
}
"""The extra of input-checkpoint that installs the plugin for a scheme."""


def installed_plugins() -> Iterable[EntryPoint]:
    """Return the entry points of all installed plugins. The name of each is a scheme."""
    if sys.version_info >= (3, 10):
        return entry_points(group=ENTRY_POINT_GROUP)
    return entry_points().get(ENTRY_POINT_GROUP, ())


def fsspec_knows(scheme: str) -> bool:
    """Return whether fsspec has a filesystem for a scheme, its own or one that the program registered."""
    return scheme in fsspec.available_protocols() or scheme in fsspec.registry


def is_known(scheme: str) -> bool:
    """Return whether a backend, a plugin or fsspec claims a scheme.

    Example:
        >>> is_known("s3"), is_known("hdfs"), is_known("nosuch")
        (True, True, False)
    """
    if scheme in BUILT_IN_SCHEMES or scheme in OFFICIAL_PLUGINS or fsspec_knows(scheme):
        return True
    return any(plugin.name == scheme for plugin in installed_plugins())
