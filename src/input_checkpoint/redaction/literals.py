"""Finds the secrets that a user gave, and removes them from texts in any spelling."""

from __future__ import annotations

import base64
import html
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Optional
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from input_checkpoint.redaction.names import is_secret_name
from input_checkpoint.redaction.uris import HIDDEN, user_and_password

_SHORTEST = 6
"""Characters of the shortest secret that is looked for. Shorter ones occur in ordinary words."""
_ORDINARY_WORDS = {
    "anonymous",
    "browser",
    "google_default",
    "password",
    "passwd",
    "secret",
    "testing",
}
"""Values that say nothing, even if they are a password."""
_DEPTH = 4
"""Levels of dictionaries and objects that are searched."""
_MOST_VALUES = 2000
_PAIR = re.compile(r"(?:\A|[;&?\s])([A-Za-z][\w.-]*)=([^;&\s]+)")
_PARAMETER = re.compile(r"[a-z]{2,6}=.")
"""The start of the value of SharedAccessSignature, which has names of its own."""
_AFTER_SCHEME_WORD = re.compile(r"[A-Za-z0-9-]+ (\S+)\Z")
_SEPARATOR = re.compile(r"[\s/'\"@:?#]+")
_WORD = re.compile("[a-z]{6,9}")
_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Z])\S{16,}")


def secrets_in(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the secrets in options: plain texts, in dictionaries, and in the attributes of objects.

    The name of an option, a field or an attribute says whether its value is a secret.

    Example:
        >>> list(secrets_in({"account_name": "training", "account_key": "a2V5IG9m"}))
        ['a2V5IG9m']
    """
    values = deque([("", options, 0)])
    for _ in range(_MOST_VALUES):
        if not values:
            return
        name, value, depth = values.popleft()
        if isinstance(value, (bytes, bytearray)):
            value = bytes(value).decode("utf-8", "replace")
        if isinstance(value, str):
            yield from _secrets_in_text(name, value)
        elif depth < _DEPTH:
            values += [(inner, content, depth + 1) for inner, content in _items(name, value)]


def secrets_in_uri(uri: str) -> Iterator[str]:
    """Yield the passwords in a URI, and what would be left of them if a library split it in the wrong place.

    Example:
        >>> list(secrets_in_uri("s3://AKIA:12/hunter2@bucket/run"))
        ['12/hunter2', 'hunter2']
    """
    for link in uri.split("::"):
        user, colon, password = user_and_password(link).partition(":")
        if colon:
            yield from filter(_is_distinct, dict.fromkeys((password, *_SEPARATOR.split(password))))
        elif _RANDOM.fullmatch(user):
            yield user
    query = uri.partition("?")[2]
    yield from (value for name, value in _PAIR.findall(f"?{query}") if is_secret_name(name))


def redact_literals(text: str, secrets: Iterable[str]) -> str:
    """Return a text without these secrets, whether they are plain, quoted, escaped or encoded in it.

    Example:
        >>> redact_literals("GET /?pw=p%40ssw%C3%B6rd, Basic am9lOnBAc3N3w7ZyZA==", ["p@sswörd"])
        'GET /?pw=***, Basic am9lOn***A=='
        >>> redact_literals("bytes_per_second=1 joe:second@host", ["second"])
        'bytes_per_second=1 joe:***@host'
    """
    lowered = text.lower()
    found = {form for secret in secrets for form, lower in _spellings(secret) if lower in lowered}
    for form in sorted(found, key=len, reverse=True):
        text = re.sub(_pattern(form), HIDDEN, text, flags=re.IGNORECASE)
    return text


def _pattern(form: str) -> str:
    if _WORD.fullmatch(form):  # part of a longer word, it is no password
        return rf"(?<![a-z0-9_]){form}(?![a-z0-9_])"
    return re.escape(form)


def _secrets_in_text(name: str, text: str) -> Iterator[str]:
    yield from secrets_in_uri(text) if "://" in text else ()
    for key, value in _PAIR.findall(text):
        if is_secret_name(key) and _is_distinct(value) and not _PARAMETER.match(value):
            yield value
    if not is_secret_name(name) or not _is_distinct(text):
        return
    yield text
    word = _AFTER_SCHEME_WORD.match(text)
    if word and _is_distinct(word.group(1)):  # "Bearer …"
        yield word.group(1)


def _is_distinct(text: str) -> bool:
    # A token may be given as the path of a file.
    is_file = text.endswith((".json", ".pem"))
    return len(text) >= _SHORTEST and text.lower() not in _ORDINARY_WORDS and not is_file


def _items(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(inner), content) for inner, content in value.items()]
    fields: Optional[tuple[str, ...]] = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields:
        return list(zip(fields, value))
    if isinstance(value, (list, tuple)):
        return [(name, content) for content in value]
    return list(getattr(value, "__dict__", {}).items())


@lru_cache(maxsize=1024)
def _spellings(secret: str) -> tuple[tuple[str, str], ...]:
    """Return the forms that a secret may have in a text, and each one in lower case."""
    forms = {secret, unquote(secret), unquote_plus(secret)}
    for plain in tuple(forms):
        forms |= {quote(plain), quote(plain, safe=""), quote_plus(plain), quote(quote(plain, safe=""))}
        forms |= {json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1], repr(plain)[1:-1]}
        forms |= {plain.replace("/", "\\/"), _escaped_like_dotnet(plain)}
        forms |= {html.escape(plain), html.escape(plain, quote=False)}
        forms |= set(_base64_forms(plain))
    return tuple((form, form.lower()) for form in forms if len(form) >= _SHORTEST)


def _escaped_like_dotnet(text: str) -> str:
    # Go and .NET escape more in JSON than is necessary.
    return re.sub("[+&'\"<>`]", lambda match: f"\\u{ord(match.group()):04x}", text)


def _base64_forms(text: str) -> Iterator[str]:
    """Yield the parts that every Base64 text has in common if its content contains ``text``."""
    raw = text.encode("utf-8", "surrogateescape")
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw)
        whole_bytes = offset + len(raw)
        # The characters at both ends depend on what surrounds the text.
        middle = encoded[-(-offset * 8 // 6) : whole_bytes * 8 // 6].decode()
        yield middle
        yield middle.replace("+", "-").replace("/", "_")
