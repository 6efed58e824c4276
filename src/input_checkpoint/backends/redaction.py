"""Secrets out of text."""

from __future__ import annotations

import re

# As far as it may reach: a URI ends at a space or a quote, and where the next one of a chain begins.
_AFTER_SCHEME = re.compile(r"(?<=://)(?:(?![A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s'\"])+")
# A colon that does not come before a mere port, nor belongs to an IPv6 address.
_PASSWORD = re.compile(r"[^:@\[]*:(?![0-9]{1,5}$)")


def redact(text: str) -> str:
    """Return ``text`` with the user names, passwords and query strings of all URIs in it taken out.

    >>> redact("sftp://joe:se@cret@host/path?token=1")
    'sftp://***@host/path?***'
    >>> redact("ftp://joe:se/cret@host/path")
    'ftp://***@host/path'
    """
    text = _AFTER_SCHEME.sub(_without_user, text)
    return re.sub(r"(://[^\s'\"?]*)\?[^\s'\"]*", r"\1?***", text)


def _without_user(uri: re.Match[str]) -> str:
    rest = uri.group()
    authority = rest.partition("/")[0]
    # A password may hold any character, also those that should have been escaped: it may reach to the last @
    # of all. Without one, an @ behind the first slash belongs to the path.
    end = (rest if _PASSWORD.match(authority) else authority).rfind("@")
    return rest if end < 0 else f"***{rest[end:]}"
