"""Removes what has the form of a secret: headers, queries, connection strings, keys, repeated requests."""

from __future__ import annotations

import re

from input_checkpoint.redaction.names import is_secret_name
from input_checkpoint.redaction.uris import HIDDEN

_I = re.IGNORECASE
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL
)

# Answers of S3, Azure and Google repeat the request that did not match its signature.
_ELEMENT_NAME = (
    "[A-Za-z0-9_.:-]{0,40}?(?:string-?to-?sign(?:-?bytes)?|canonical-?request(?:-?bytes)?"
    "|authentication-?error-?detail|signature(?:-?provided)?|access-?key-?id|access-?key|secret-?key"
    "|(?:access|refresh|session|security|sas|id)-?token|secret|password|credential|authorization)"
)
_ELEMENT = re.compile(
    rf"((?:<|&lt;)({_ELEMENT_NAME})(?:>|&gt;)).*?(?=(?:<|&lt;)/\2(?:>|&gt;)|\Z)", _I | re.DOTALL
)
_STRING_TO_SIGN = re.compile(r"(string[ _-]to[ _-]sign|canonical request)\b.*", _I | re.DOTALL)
_QUOTED_SIGNATURE = re.compile(
    r"(\bsignature (?:found|provided)[^'\"\n]{0,60})(['\"]).*?(\2|\Z)", _I | re.DOTALL
)

_HEADER_NAME = (
    "(?:proxy-)?authorization|(?:set-)?cookie|api-key"
    "|x-(?:[a-z0-9]+-){0,8}(?:token|key|signature|credential|authorization|cookie)"
)
# To the end of the line, or to the quote or the bracket that ends the value.
_HEADER = re.compile(
    rf"(?<![A-Za-z0-9-])({_HEADER_NAME})((?:\\*['\"]\s{{0,9}}[:=,]|\s{{0,9}}[:=])\s{{0,9}})"
    r"(?:b?(\\*['\"]).*?(?:\3|\Z)|[^\s'\"<>&][^\n\r'\"<>]*)",
    _I,
)
_AUTHORIZATION = re.compile(
    r"\b(bearer|basic|negotiate|ntlm|sharedkey(?:lite)?)(\s{1,9}|%20)"
    # Not an ordinary word, as in "basic authentication".
    r"(?![A-Z]?[a-z]{1,16}(?:[^A-Za-z0-9._~+/:-]|\Z))(?=[^\s'\",;]{6})[A-Za-z0-9._~+/:-]+=*",
    _I,
)

_NAME = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"
_VALUE = r"[^\s&;,'\"<>(){}\[\]\\]*"
_JOINT = r"(?:&(?:amp;|#38;)?|\\+u0026)"
_QUERY_VALUE = r"[^\s&;'\"<>\\]*"
_QUERY = re.compile(
    rf"(?<![A-Za-z0-9_.%=-]){_NAME}={_QUERY_VALUE}(?:{_JOINT}{_NAME}={_QUERY_VALUE})+",
)
_NAME_AND_EQUALS = re.compile(rf"(?<![A-Za-z0-9_.%-])({_NAME})\s?=\s?")
_PARAMETER_VALUE = re.compile(rf"b?(\\*['\"]).*?(?:\1|\Z)|{_VALUE}")
_ESCAPED_PARAMETER = re.compile(
    r"(%(?:25)*(?:26|3F|23)|(?<![A-Za-z0-9_.%-]))([A-Za-z0-9_.-]{1,64})(%(?:25)*3D)"
    r"((?:(?!%(?:25)*26)[^\s&;'\"<>])+)",
    _I,
)
_WHOLE_VALUE = re.compile(r"(SharedAccessSignature|sas_?token)(=)([^\s;'\"<>]+)", _I)
_FIELD = re.compile(rf"(\\*['\"])({_NAME})(\1\s{{0,9}}:\s{{0,9}})(b?(\\*['\"]).*?(?:\5|\Z))")
_LABEL = re.compile(
    r"\b((?:[A-Za-z0-9]+[_-]){0,4}(?:pass(?:word|wd|phrase)|pwd|secret|[a-z]+[_-]token|[a-z]+[_-]key))(:\s?)"
    r"(?=\S{3})[^\s'\",;]+",
    _I,
)
_KNOWN_FORMS = re.compile(
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"  # a JSON web token
    r"|\bya29\.[A-Za-z0-9_.-]{8,}|\b1//[A-Za-z0-9_-]{20,}|\bAIza[A-Za-z0-9_-]{30,}"  # Google
    r"|\bGOOG1?[A-Z0-9]{20,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"  # AWS
    r"|(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{86}=="  # the key of an Azure account
)


def redact_shapes(text: str) -> str:
    """Return a text without what looks like a secret by its name or form.

    Example:
        >>> redact_shapes("400: GET /c/run?sv=2021&sig=a1b2 (Authorization: Bearer x.y.z)")
        '400: GET /c/run?*** (Authorization: ***'
        >>> redact_shapes("AccountName=training;AccountKey=bXkga2V5==;EndpointSuffix=core.windows.net")
        'AccountName=training;AccountKey=***;EndpointSuffix=core.windows.net'
    """
    text = _PRIVATE_KEY.sub(HIDDEN, text)
    text = _ELEMENT.sub(rf"\1{HIDDEN}", text)
    text = _QUOTED_SIGNATURE.sub(rf"\1\2{HIDDEN}\3", text)
    text = _STRING_TO_SIGN.sub(rf"\1 {HIDDEN}", text)
    text = _HEADER.sub(_hide_header, text)
    text = _AUTHORIZATION.sub(rf"\1\2{HIDDEN}", text)
    text = _WHOLE_VALUE.sub(rf"\1\2{HIDDEN}", text)
    text = _QUERY.sub(_hide_query, text)
    text = _hide_parameters(text)
    text = _ESCAPED_PARAMETER.sub(_hide_escaped_parameter, text)
    text = _FIELD.sub(_hide_field, text)
    text = _LABEL.sub(rf"\1\2{HIDDEN}", text)
    return _KNOWN_FORMS.sub(HIDDEN, text)


def _hide_header(match: re.Match[str]) -> str:
    name, separator, quote = match.groups()
    return f"{name}{separator}{quote or ''}{HIDDEN}{quote or ''}"


def _hide_query(match: re.Match[str]) -> str:
    names = re.findall(rf"(?:\A|{_JOINT})({_NAME})=", match.group())
    return HIDDEN if any(map(is_secret_name, names)) else match.group()


def _hide_parameters(text: str) -> str:
    parts, done = [], 0
    for match in _NAME_AND_EQUALS.finditer(text):
        if match.start() < done or not _names_secret(match):
            continue
        value = _PARAMETER_VALUE.match(text, match.end())
        if value and value.group():
            quote = value.group(1) or ""
            parts += [text[done : match.end()], quote, HIDDEN, quote]
            done = value.end()
    return "".join(parts) + text[done:]


def _names_secret(match: re.Match[str]) -> bool:
    name = match.group(1)
    if name.lower() == "key":
        # Alone, it is the key of an object as often as a secret.
        return match.string[max(0, match.start() - 1) : match.start()] in ("?", "&")
    return is_secret_name(name)


def _hide_escaped_parameter(match: re.Match[str]) -> str:
    before, name, equals, _ = match.groups()
    return f"{before}{name}{equals}{HIDDEN}" if is_secret_name(name) else match.group()


def _hide_field(match: re.Match[str]) -> str:
    quote, name, colon, _, mark = match.groups()
    if name.lower() == "key" or not is_secret_name(name):
        return match.group()
    return f"{quote}{name}{colon}{mark}{HIDDEN}{mark}"
