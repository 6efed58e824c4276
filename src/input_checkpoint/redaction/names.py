"""Which names belong to secrets, in options, queries, headers and answers of servers."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SECRET_WORDS = {
    "accesskey",
    "accesstoken",
    "accountkey",
    "apikey",
    "assertion",
    "auth",
    "authorization",
    "connectionstring",
    "cookie",
    "credential",
    "credentials",
    "jwt",
    "key",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "pwd",
    "refreshtoken",
    "sas",
    "secret",
    "secretkey",
    "sessiontoken",
    "sig",
    "signature",
    "token",
}
_SECRET_ENDINGS = (
    ("access", "key", "id"),
    ("connection", "string"),
    ("conn", "str"),
    # What servers repeat of a request whose signature is wrong.
    ("authentication", "error", "detail"),
    ("canonical", "request"),
    ("canonical", "request", "bytes"),
    ("signature", "provided"),
    ("to", "sign"),
    ("to", "sign", "bytes"),
)
_HARMLESS_ENDINGS = {
    ("cache", "key"),
    ("continuation", "token"),
    ("host", "key"),
    ("object", "key"),
    ("page", "token"),
    ("partition", "key"),
    ("primary", "key"),
    ("public", "key"),
}


def is_secret_name(name: str) -> bool:
    """Return whether a name belongs to a secret. Its last word decides.

    Example:
        >>> [name for name in ("account_key", "X-Amz-Signature", "key_filename") if is_secret_name(name)]
        ['account_key', 'X-Amz-Signature']
    """
    words = tuple(word.lower() for word in _WORD.findall(name))
    if not words or words[-2:] in _HARMLESS_ENDINGS:
        return False
    return words[-1] in _SECRET_WORDS or any(words[-len(end) :] == end for end in _SECRET_ENDINGS)
