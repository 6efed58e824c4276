"""Removes user names, passwords and queries from URIs, well-formed or not."""

from __future__ import annotations

import re

HIDDEN = "***"
"""What replaces a secret."""

_SCHEME = r"[A-Za-z][A-Za-z0-9+._-]{0,31}"
_URI_IN_TEXT = re.compile(rf"(?<![A-Za-z0-9+._-]){_SCHEME}://")
_URI_OR_LINK = re.compile(rf"(?:\A|(?<=::)){_SCHEME}://")
_END_IN_TEXT = re.compile(r"[\s'\"<>]")
_END_OF_AUTHORITY = re.compile(r"[/?#\\]")
_USER_AND_PASSWORD = re.compile(r"[^\s:/@\[]*:(?!:*$)(?!\s)(?![0-9]{1,5}(?:[/?#]|$))")
_HOST_AND_PORT = re.compile(r"([^\s:/@\[]*):([0-9]{1,5})/")
_ADDRESS = re.compile(r"localhost|[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_WORD = re.compile(r"[^\s'\"<>]+")
_PUNCTUATION = "?!).,;:]"
_LOGIN = re.compile(r"(?<![^\s'\"(])[^\s:/@'\"]+:[^\s/@]+@(?=[^\s@]+:)")
_SINGLE_SLASH = re.compile(rf"(?<![A-Za-z0-9+._-])({_SCHEME}:/)(?=[^\s/:@]*:)[^\s/]*@")
_AZURE = re.compile(r"(?:abfss?|az|adl|wasbs?)://\Z", re.IGNORECASE)
_AZURE_ACCOUNT = re.compile(r"@[a-z0-9-]+\.(?:dfs|blob)\.")
# https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
_CONTAINER = re.compile(r"[a-z0-9](?:-?[a-z0-9]){0,62}|\$(?:root|web|logs)")

_PORTS = {"21", "22", "80", "443", "2222", "8000", "8020", "8080", "8443", "9000", "9870", "10000"}
_NO_PORTS = re.compile(r"(?:s3[an]?|gc?s|abfss?|az|adl|wasbs?)://\Z", re.IGNORECASE)
_PLACEHOLDERS = {HIDDEN, "user"}
"""Users that our own messages name in examples."""
_LONGEST_PASSWORD = 256


def redact_uri(uri: str) -> str:
    """Return a URI without user name, password and query. The whole text is the URI.

    A password may contain characters that should have been escaped: spaces, quotes, slashes and ``@``. A path
    without a scheme is returned unchanged.

    Example:
        >>> redact_uri("sftp://joe:it's a se/cr@t@host/path?token=1")
        'sftp://***@host/path?***'
        >>> redact_uri("abfs://container@account.dfs.core.windows.net/run@7")
        'abfs://container@account.dfs.core.windows.net/run@7'
    """
    schemes = [match.span() for match in _URI_OR_LINK.finditer(uri)]
    if not schemes:
        return uri
    shown, query, _ = _without_users(uri, schemes, whole=True).partition("?")
    return f"{shown}?{HIDDEN}" if query else shown


def redact_uris(text: str) -> str:
    """Return a text without the user names, passwords and queries of all URIs in it.

    Example:
        >>> redact_uris("cannot open 'sftp://joe:hunter2@host/path?token=1', says joe@example.com")
        "cannot open 'sftp://***@host/path?***', says joe@example.com"
    """
    text = _LOGIN.sub(f"{HIDDEN}@", _SINGLE_SLASH.sub(rf"\1{HIDDEN}@", text))
    text = _without_users(text, [match.span() for match in _URI_IN_TEXT.finditer(text)], whole=False)
    return _WORD.sub(_without_query, text)


def redact_location(text: str) -> str:
    """Return what a user wrote in place of a URI or path, without what may be a credential.

    For text that is refused. It hides too much rather than too little.

    Example:
        >>> redact_location("s3:/joe:hunter2@bucket/run")
        's3:***@bucket/run'
    """
    head, at, tail = text.rpartition("@")
    start = re.match(r"[^:]*(?:://|:)|.*?//", head)
    if at and start and not _is_azure_container(start.group(), head[start.end() :]):
        text = f"{start.group()}{HIDDEN}@{tail}"
    before, query, _ = text.partition("?")
    return f"{before}?{HIDDEN}" if query and (":" in before or "//" in before) else text


def user_and_password(uri: str) -> str:
    """Return what a URI has before the ``@`` of its host; empty if it has no user.

    Example:
        >>> user_and_password("s3://AKIA:12/ab@bucket/run")
        'AKIA:12/ab'
    """
    schemes = [match.span() for match in _URI_OR_LINK.finditer(uri)]
    if not schemes:
        return ""
    start, after = schemes[-1]
    return uri[after:][: max(0, _end_of_user(uri[start:after], uri[after:], whole=True))]


def _without_query(match: re.Match[str]) -> str:
    word = match.group()
    scheme = word.find("://")
    start = word.find("?", scheme)
    # A question mark at the end belongs to the sentence.
    if scheme < 0 or start < 0 or not word[start:].rstrip(_PUNCTUATION):
        return word
    return f"{word[:start]}?{HIDDEN}"


def _without_users(text: str, schemes: list[tuple[int, int]], whole: bool) -> str:
    """Return a text without the user names of URIs.

    Args:
        text: the text.
        schemes: start and end of every ``scheme://`` in it.
        whole: whether a URI reaches to the next one, or to the end of the text.
    """
    if not schemes:
        return text
    parts = [text[: schemes[0][0]]]
    ends = [start for start, _ in schemes[1:]] + [len(text)]
    for (start, after), end in zip(schemes, ends):
        scheme, rest = text[start:after], text[after:end]
        user = _end_of_user(scheme, rest, whole)
        parts += [scheme, rest if user < 0 else HIDDEN + rest[user:]]
    return "".join(parts)


def _end_of_user(scheme: str, rest: str, whole: bool) -> int:
    """Return the position of the ``@`` that ends a user name to hide, or -1 if there is none."""
    run = rest if whole else _until(_END_IN_TEXT, rest)
    authority = _until(_END_OF_AUTHORITY, run)
    if "@" in run and _may_hold_password(scheme, run):
        return run.rfind("@")
    if "@" not in run and _USER_AND_PASSWORD.match(authority):
        return _end_of_spaced_password(rest)
    account = _AZURE_ACCOUNT.search(run) if _AZURE.search(scheme) else None
    end = account.start() if account else authority.rfind("@")
    user = run[: max(end, 0)]
    return -1 if user in _PLACEHOLDERS or _is_azure_container(scheme, user) else end


def _may_hold_password(scheme: str, run: str) -> bool:
    if _USER_AND_PASSWORD.match(run):
        return True
    port = _HOST_AND_PORT.match(run)
    if not port:
        return False
    # Digits and a slash: a port and a path, or the start of a password.
    host, number = port.groups()
    return bool(_NO_PORTS.search(scheme)) or not (number in _PORTS or _ADDRESS.fullmatch(host))


def _end_of_spaced_password(rest: str) -> int:
    """Return the end of a password with a space or a quote, which would otherwise end a URI in a text."""
    line = rest[:_LONGEST_PASSWORD].partition("\n")[0]
    at = line.find("@")
    return at if at < 0 else at + _until(_END_IN_TEXT, line[at:]).rfind("@")


def _is_azure_container(scheme: str, user: str) -> bool:
    return bool(_AZURE.search(scheme) and _CONTAINER.fullmatch(user))


def _until(end: re.Pattern[str], text: str) -> str:
    match = end.search(text)
    return text[: match.start()] if match else text
