"""Removes credentials from text."""

from __future__ import annotations

import re

# A URI ends at a space, at a quote, or where the next URI of a chain starts.
_AFTER_SCHEME = re.compile(r"(?<=://)(?:(?![A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s'\"])+")
# A colon that neither precedes a port nor is part of an IPv6 address.
_PASSWORD = re.compile(r"[^:@\[]*:(?![0-9]{1,5}$)")


def redact(text: str) -> str:
    """Replace the user names, passwords and query strings of all URIs in a text.

    Example:
        >>> redact("sftp://joe:se@cret@host/path?token=1")
        'sftp://***@host/path?***'
        >>> redact("ftp://joe:se/cret@host/path")
        'ftp://***@host/path'
    """
    text = _AFTER_SCHEME.sub(_redact_user, text)
    return re.sub(r"(://[^\s'\"?]*)\?[^\s'\"]*", r"\1?***", text)


def _redact_user(uri: re.Match[str]) -> str:
    rest = uri.group()
    authority = rest.partition("/")[0]
    # A password may contain characters that should have been escaped, so it may extend to the last @ of the
    # URI. Without a password, an @ after the first slash is part of the path.
    end = (rest if _PASSWORD.match(authority) else authority).rfind("@")
    return rest if end < 0 else f"***{rest[end:]}"
