"""What a URI or path means: the one place where locations that users write are read.

A location goes where its text says, or it is refused with an error that says how to write it. Text that looks
like a URI but is not quite one never becomes a folder in the working directory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Optional, Union
from urllib.parse import quote, unquote_to_bytes

from input_checkpoint.backends.redaction import redact_location
from input_checkpoint.backends.schemes import (
    BUILT_IN_SCHEMES,
    LOCAL_SCHEMES,
    OFFICIAL_PLUGINS,
    SCHEME_PATTERN,
    is_known,
)
from input_checkpoint.backends.suggestions import NEAR_SCHEMES
from input_checkpoint.errors import InvalidLocationError

_URI = re.compile(rf"({SCHEME_PATTERN})(://|::)(.*)", re.DOTALL)
_SCHEME_AND_COLON = re.compile(rf"({SCHEME_PATTERN}):")
_SCHEME_AND_SLASHES = re.compile(rf"({SCHEME_PATTERN})//")
_LOGIN_AND_COLON = re.compile(r"[^/]+@[^/:]+:")
# Two characters at least: one is a Windows drive.
_MANGLED_IN_PATH_OBJECT = re.compile(r"([A-Za-z][A-Za-z0-9+._-]+):/(?!/)")
_SCHEME_INSIDE = re.compile(rf"/({SCHEME_PATTERN}):/")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\")
_WINDOWS_DRIVE_IN_URI = re.compile(r"/[A-Za-z][:|](?:/|$)")
_VARIABLE = re.compile(r"(?:^|/)(\$\{?[A-Za-z_]\w*\}?)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_AZURE_AUTHORITY = re.compile(r"(?:([^@/]+)@)?([a-z0-9-]+)\.(?:dfs|blob)\.core\.[a-z.]+")

_BUCKET_PLUGINS = ("s3", "gcs", "azure")
_SLASHES_MEAN_A_SCHEME = {
    *OFFICIAL_PLUGINS,
    *NEAR_SCHEMES,
    *BUILT_IN_SCHEMES,
    "http",
    "https",
    "hdfs",
    "dbfs",
}
_ANY_URI = "a URI with two slashes, such as s3://bucket/run-7 or sftp://host/data/run-7"
_EXAMPLES = {
    "memory": "memory://run-7",
    "sftp": "sftp://host/data/run-7",
    "ssh": "ssh://host/data/run-7",
    "abfs": "abfs://container/run-7",
    "abfss": "abfss://container/run-7",
    "az": "az://container/run-7",
    "arn": "s3://bucket/run-7",
}
_NOUNS = {"memory": "store", "abfs": "container", "abfss": "container", "az": "container"}
_KEPT_IN_FILE_URI = "/@!&()*+,;=-._~"


@dataclass(frozen=True)
class Location:
    """A place for data, however it was written."""

    scheme: str
    """In lower case. ``"file"`` for every local folder."""
    uri: str = field(repr=False)
    """The canonical spelling. It names the same place in `parse_location`. May contain credentials."""
    path: Optional[str] = None
    """The absolute path of a local folder. None for any other place."""


def parse_location(location: Union[str, os.PathLike[str]]) -> Location:
    """Return the place that a URI or path names.

    Args:
        location: a URI, a path, or a path object. A relative path is resolved at once; ``~`` is expanded. The
            part of a ``file://`` URI after the host is a path with percent-encoding, as in RFC 8089. ``?``
            and ``#`` are part of it.

    Raises:
        InvalidLocationError: the text does not say where the data goes. The message says how to write it.

    Example:
        >>> parse_location("file:///data/run%201").path
        '/data/run 1'
        >>> parse_location("S3://bucket/run-7/").uri
        's3://bucket/run-7'
    """
    if isinstance(location, os.PathLike):
        return _parse_path_object(os.fspath(location))
    _check_text(location)
    match = _URI.match(location)
    if match:
        return _parse_uri(location, match.group(1).lower(), match.group(2), match.group(3))
    if "://" in location:
        _refuse(location, "contains :// but does not start with a scheme", "s3://bucket/run-7 or /data/run-7")
    return _parse_path(location)


def parse_for_fsspec(uri: str) -> str:
    """Return a URI that fsspec will open, so that it means what the user wrote.

    fsspec drops a query silently, and does not decode the file URI at the end of a chain.

    Raises:
        InvalidLocationError: the URI has a query, or its end is not a location.

    Example:
        >>> parse_for_fsspec("zip::file:///archive/run%201.zip")
        'zip::file:///archive/run 1.zip'
    """
    chain, link, last = uri.rpartition("::")
    is_web_archive = bool(link) and last.lower().startswith(("http://", "https://"))
    if "?" in uri and not is_web_archive:
        _refuse(uri, "has a query, which would be dropped", f"{redact_location(uri).partition('?')[0]}")
    if not link or is_web_archive:
        return uri
    location = parse_location(last)
    return f"{chain}::{location.uri if location.path is None else 'file://' + location.path}"


def local_folder(path: str) -> Location:
    """Return the folder at a path, whatever else it may look like. A relative path is resolved at once."""
    absolute = _normal(str(Path(path).absolute()))
    return Location("file", absolute if _reads_as_path(absolute) else _file_uri(absolute), absolute)


def contains(outer: Location, inner: Location) -> bool:
    """Return whether ``inner`` is the same place as ``outer`` or lies inside it. Follows symbolic links.

    Example:
        >>> contains(parse_location("gs://bucket/run"), parse_location("gcs://bucket/run/input"))
        True
    """
    around, within = _place(outer), _place(inner)
    same_account = not around.account or not within.account or around.account == within.account
    names = around.names
    return around.service == within.service and same_account and within.names[: len(names)] == names


def _check_text(text: str) -> None:
    if not text.strip() or text.startswith("://"):
        raise InvalidLocationError(
            f"not a URI or path: {redact_location(text)!r}. Write for example s3://bucket/run-7/input or "
            "/data/run-7."
        )
    if text != text.strip():
        _refuse(text, "starts or ends with white space", text.strip())
    if _CONTROL.search(text):
        _refuse(text, "contains a control character", "it without one")
    if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]:
        _refuse(text, "is in quotes", text[1:-1])


def _parse_path_object(text: str) -> Location:
    """Return the folder that a path object names. It is taken as it is, unless it was made from a URI."""
    if "://" in text:
        return parse_location(text)
    mangled = _MANGLED_IN_PATH_OBJECT.match(text)
    if mangled:
        raise InvalidLocationError(
            f"pathlib removed a slash from this {mangled.group(1)}:// URI. Pass the URI as a string."
        )
    _check_no_scheme_inside(text)
    return _expanded_folder(text)


def _parse_uri(text: str, scheme: str, separator: str, rest: str) -> Location:
    if separator == "::" and (scheme in BUILT_IN_SCHEMES or scheme in OFFICIAL_PLUGINS):
        _refuse(text, f"has a second colon after {scheme}", _example(scheme, rest))
    if scheme in LOCAL_SCHEMES:
        return _parse_file_uri(text, rest)
    if scheme == "memory":
        return Location(scheme, f"memory://{_checked_names(text, scheme, rest.strip('/'))}")
    plugin = OFFICIAL_PLUGINS.get(scheme)
    if plugin in _BUCKET_PLUGINS:
        return Location(scheme, f"{scheme}://{_checked_address(text, scheme, rest)}")
    if plugin == "sftp" and re.match(r"[^/]*/+~", rest):
        _refuse(text, "names a home folder, and ~ is not expanded", f"{scheme}://host/home/user/run-7")
    return Location(scheme, f"{scheme}{separator}{rest}")


def _checked_address(text: str, scheme: str, rest: str) -> str:
    """Return bucket and prefix. What client libraries would drop or change is refused."""
    dropped = "?#" if OFFICIAL_PLUGINS[scheme] == "gcs" else "?"
    found = next((character for character in rest if character in dropped), None)
    if found:
        _refuse(
            text,
            f"contains {found}, but credentials and options must not be part of the URI",
            f"{_example(scheme, rest.partition(found)[0])}, and use storage_options",
        )
    return _checked_names(text, scheme, rest.rstrip("/"))


def _checked_names(text: str, scheme: str, rest: str) -> str:
    names = rest.split("/")
    meant = _example(scheme, "/".join(name for name in names if name not in ("", ".", "..")))
    if not names[0]:
        _refuse(text, f"names no {_NOUNS.get(scheme, 'bucket')}", _example(scheme, ""))
    if {".", ".."} & set(names):
        _refuse(text, "contains /./ or /../, which some client libraries resolve and others do not", meant)
    if len(names) > 1 and not names[1]:
        _refuse(text, f"has two slashes after {names[0]}, and one would be dropped", meant)
    return rest


def _parse_file_uri(text: str, rest: str) -> Location:
    host, slash, name = rest.partition("/")
    if host.lower() not in ("", "localhost"):
        shown = redact_location(text)
        raise InvalidLocationError(
            f"cannot open {shown}: a file URI has no host. Write file:///absolute/path (three slashes), or "
            "only the path.",
            uri=shown,
        )
    if not slash:
        raise InvalidLocationError(
            f"{redact_location(text)} names no folder. Write file:///absolute/path (three slashes)."
        )
    return _absolute_file_uri(text, f"/{name.lstrip('/')}")


def _absolute_file_uri(text: str, encoded: str) -> Location:
    if encoded.startswith("/~"):
        _refuse(text, "names a home folder, and ~ is not expanded in a URI", encoded[1:])
    if _WINDOWS_DRIVE_IN_URI.match(encoded):
        _refuse(text, "names a drive, and this system has none", "file:///absolute/path")
    _check_no_variable(text, encoded)
    path = os.fsdecode(unquote_to_bytes(os.fsencode(encoded)))
    if "\0" in path:
        _refuse(text, "contains a control character", "it without one")
    path = _normal(path)
    return Location("file", _file_uri(path), path)


def _parse_path(text: str) -> Location:
    if os.sep == "/" and _WINDOWS_PATH.match(text):
        _refuse(text, "is a path of Windows, and this system is not", "/absolute/path", text)
    if text.startswith(("./", "../")):
        return _expanded_folder(text)
    scheme = _SCHEME_AND_COLON.match(text)
    if scheme and scheme.group(1).lower() in LOCAL_SCHEMES and text[scheme.end() :].startswith("/"):
        return _absolute_file_uri(text, text[scheme.end() :])
    _check_no_scheme(text)
    _check_no_scheme_inside(text)
    _check_no_variable(text, text)
    return _expanded_folder(text)


def _check_no_scheme(text: str) -> None:
    """Refuse a path that starts like a URI, or like the folder of another host."""
    if _LOGIN_AND_COLON.match(text):
        _refuse(text, "looks like a folder on another host", _EXAMPLES["sftp"], text)
    match = _SCHEME_AND_COLON.match(text)
    name = match.group(1).lower() if match else ""
    if match and _is_scheme(name):
        _refuse(
            text, f"starts with {name}: and not with {name}://", _example(name, text[match.end() :]), text
        )
    first, slash, _ = text.partition("/")
    if slash and first.endswith(":"):
        _refuse(
            text, f"is not a URI, because {redact_location(first)} is followed by one slash", _ANY_URI, text
        )
    match = _SCHEME_AND_SLASHES.match(text)
    if match and match.group(1).lower() in _SLASHES_MEAN_A_SCHEME:
        name = match.group(1).lower()
        _refuse(text, f"has no colon after {name}", _example(name, text[match.end() :]), text)


def _check_no_scheme_inside(text: str) -> None:
    """Refuse a path that was made by joining a folder and a URI, as ``os.path.abspath`` does with a URI."""
    literal = "file://" if text.startswith("/") else "./"
    for match in _SCHEME_INSIDE.finditer(text):
        name = match.group(1).lower()
        if len(name) > 1 and _is_scheme(name):
            meant = _example(name, text[match.end() :])
            literally = f"{literal}{redact_location(text)} for a folder of this name"
            _refuse(text, "is a folder joined with a URI", f"{meant}, or {literally}")


def _check_no_variable(text: str, path: str) -> None:
    variable = _VARIABLE.search(path)
    if variable:
        _refuse(
            text,
            f"contains the variable {variable.group(1)}, and variables are not expanded",
            "os.path.expandvars(…) around it, or pass a pathlib.Path if the $ is part of a name",
        )


def _is_scheme(name: str) -> bool:
    return name in NEAR_SCHEMES or name == "arn" or is_known(name)


def _expanded_folder(text: str) -> Location:
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        _refuse(text, f"names the home folder of an unknown user, {user}", "/absolute/path", text)
    if "\0" in text:
        _refuse(text, "contains a control character", "it without one")
    try:
        return local_folder(expanded)
    except FileNotFoundError as error:
        raise InvalidLocationError(
            f"cannot open {redact_location(text)!r}: the working directory no longer exists. Write an "
            "absolute path."
        ) from error


def _reads_as_path(path: str) -> bool:
    """Return whether a path as a string names the folder that it is the path of."""
    try:
        _check_text(path)
        _check_no_scheme_inside(path)
        _check_no_variable(path, path)
        path.encode()
    except ValueError:
        return False
    return "://" not in path


def _normal(path: str) -> str:
    path = str(Path(path))
    return path[1:] if path.startswith("//") else path


def _file_uri(path: str) -> str:
    encoded = quote(os.fsencode(path), safe=_KEPT_IN_FILE_URI)
    return f"file://{encoded.replace('/~', '/%7E', 1) if encoded.startswith('/~') else encoded}"


@dataclass(frozen=True)
class _Place:
    service: str
    names: tuple[str, ...]
    account: str = ""


def _place(location: Location) -> _Place:
    if location.path is not None:
        real = os.path.realpath(location.path)
        return _Place("file", tuple(filter(None, real.split("/"))))
    if "::" in location.uri and location.scheme not in OFFICIAL_PLUGINS and location.scheme != "memory":
        return _place(parse_location(location.uri.rpartition("::")[2]))
    authority, _, path = location.uri.partition("://")[2].partition("/")
    service = OFFICIAL_PLUGINS.get(location.scheme, location.scheme)
    if service == "azure":
        return _azure_place(authority, path)
    if service == "sftp":
        host = authority.rpartition("@")[2].lower()
        authority = host[: -len(":22")] if host.endswith(":22") else host
    return _Place(service, (authority, *filter(None, path.split("/"))))


def _azure_place(authority: str, path: str) -> _Place:
    match = _AZURE_AUTHORITY.fullmatch(authority)
    names = tuple(filter(None, path.split("/")))
    if not match:
        return _Place("azure", (authority, *names))
    container, account = match.groups()
    return _Place("azure", (container, *names) if container else names, account)


def _example(scheme: str, rest: str) -> str:
    """Return how to write a URI of a scheme, from the user's own words if they hold no secret."""
    meant = NEAR_SCHEMES.get(scheme, scheme)
    rest = rest.lstrip("/\\")
    if meant in LOCAL_SCHEMES:
        return "file:///absolute/path, or only the path"
    if not rest or meant == "arn" or re.search(r"[@?\s\\]", rest):
        return _EXAMPLES.get(meant, f"{meant}://bucket/run-7")
    if meant == "dbfs":
        return f"/dbfs/{rest}, the folder that Databricks mounts"
    return f"{meant}:///{rest}" if meant == "hdfs" else f"{meant}://{rest}"


def _refuse(text: str, problem: str, instead: str, folder: str = "") -> NoReturn:
    """Raise the error for a location.

    Args:
        text: what the user wrote.
        problem: the predicate of a sentence about it.
        instead: what to write.
        folder: a relative path that may be meant literally, if it can be.
    """
    shown = redact_location(text)
    is_literal = bool(folder) and redact_location(folder) == folder
    literally = f" If a folder of this name is meant, write ./{folder}." if is_literal else ""
    raise InvalidLocationError(
        f"{shown!r} {problem}. Write {redact_location(instead)}.{literally}", uri=shown
    )
