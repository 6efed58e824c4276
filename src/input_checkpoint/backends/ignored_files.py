"""Warnings about what lies in the place of an object and is not a regular file, such as a link."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

_MAX_WARNINGS = 20


class IgnoredFiles:
    """Warns about each file that a listing leaves out, once, and about the first twenty only."""

    def __init__(self) -> None:
        self._paths: set[str] = set()

    def warn_of(self, path: str, kind: str) -> None:
        """Warn about a file.

        Args:
            path: of the file, for the message.
            kind: what it is, with an article.
        """
        if path in self._paths or len(self._paths) >= _MAX_WARNINGS:
            return
        self._paths.add(path)
        logger.warning("%s is %s, not a regular file. It is ignored, and links are not followed.", path, kind)
