"""Build hook: writes the extras of the distribution, so that those of plugins work from a clone too.

In a clone, ``pip install '.[s3]'`` installs the plugin of that clone. A release names the plugin on the
package index instead, because an index accepts no dependency on a file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELEASE = "INPUT_CHECKPOINT_RELEASE"
"""Set this environment variable to build distributions for a package index."""

_PLUGINS = ("azure", "gcs", "s3", "sftp")


class ExtrasHook(MetadataHookInterface):
    """Fills in ``optional-dependencies``: the static extras of pyproject.toml, and one for each plugin."""

    def update(self, metadata: dict[str, Any]) -> None:
        """See `MetadataHookInterface.update`."""
        root, series = Path(self.root), compatible_series(metadata["version"])
        plugins = {name: [plugin_requirement(root, name, series)] for name in _PLUGINS}
        every = f"{metadata['name']}[{','.join(_PLUGINS)}]"
        metadata["optional-dependencies"] = {**plugins, "all": [every], **self.config["extras"]}


def compatible_series(version: str) -> str:
    """Return the versions of a plugin that fit a version of the core: those with the same minor number."""
    major, minor = map(int, version.split(".")[:2])
    return f">={major}.{minor},<{major}.{minor + 1}"


def plugin_requirement(root: Path, name: str, series: str) -> str:
    """Return what the extra of a plugin requires: the folder in this clone, or a version on the index."""
    folder = root / "backends" / name
    if is_clone(root) and RELEASE not in os.environ:
        return f"input-checkpoint-{name} @ {folder.resolve().as_uri()}"
    return f"input-checkpoint-{name}{series}"


def is_clone(root: Path) -> bool:
    """Whether this is the repository, and not a source distribution."""
    return (root / "backends").is_dir() and not (root / "PKG-INFO").exists()
