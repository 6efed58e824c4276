"""Where a model directory really is, and which places are beside it or inside it.

TensorFlow reads the name of a model directory differently from how we read that of a backend. It decodes
no percent-encoding, expands no ``~`` and ignores the host of a ``file://`` URI. In a path, it resolves ``..``
before symbolic links; in a URI, the system does, after them (tsl/platform/path.cc, file_system.cc,
default/posix_file_system.h).
"""

from __future__ import annotations

import os
import re
from typing import Union

from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.location import Location, contains, local_folder, parse_location
from input_checkpoint.backends.opening import BackendLocation
from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.errors import InvalidLocationError

_URI = re.compile(r"([A-Za-z][A-Za-z0-9.]+)://[^/]*(.*)", re.DOTALL)


def is_uri(path: str) -> bool:
    """Return whether TensorFlow takes a text for a URI, and not for a path.

    Example:
        >>> is_uri("gs://bucket/run-7"), is_uri("file:/models/run-7")
        (True, False)
    """
    return _URI.match(path) is not None


def locate_model_dir(model_dir: Union[str, os.PathLike[str]]) -> Location:
    """Return the place that TensorFlow opens.

    Example:
        >>> locate_model_dir("file:///models/run%207").path
        '/models/run%207'
    """
    text = os.fspath(model_dir)
    match = _URI.match(text)
    if match is None:
        return _folder(text)
    if match.group(1) == "file":
        return _folder(_without_parents(match.group(2) or "/"))
    try:
        return parse_location(text)
    except InvalidLocationError:
        return Location(match.group(1).lower(), text)


def default_backend_uri(model_dir: Union[str, os.PathLike[str]]) -> str:
    """Return the URI of a place for input state beside a model directory, never inside it.

    Raises:
        InvalidLocationError: there is none, or it cannot be opened as a backend.

    Example:
        >>> default_backend_uri("gs://bucket/run-7/")
        'gs://bucket/run-7-input'
    """
    model = locate_model_dir(model_dir)
    if model.path is not None:
        return _folder_beside(model, model.path).uri
    uri = model.uri.rstrip("/")
    if not uri.partition("://")[2].partition("/")[2]:
        raise _no_default_backend_uri(uri, "it is not inside a bucket")
    try:
        return parse_location(f"{uri}-input").uri
    except InvalidLocationError as error:
        raise _no_default_backend_uri(uri, str(error)) from error


def check_outside_model_dir(backend: BackendLocation, model_dir: Union[str, os.PathLike[str]]) -> None:
    """Raise ValueError if ``backend`` is ``model_dir`` or is inside it.

    Tools that copy, export or clean a model directory would copy, export or remove the input state as well.

    >>> check_outside_model_dir("/models/run-7-input", "/models/run-7")
    """
    inner = parse_location(backend.uri if isinstance(backend, Backend) else backend)
    outer = locate_model_dir(model_dir)
    if contains(outer, inner):
        raise ValueError(
            f"the backend {redact_uri(inner.uri)} is inside the model directory {redact_uri(outer.uri)}. "
            f"Choose a place beside it, such as {redact_uri(outer.uri)}-input."
        )


def _folder(path: str) -> Location:
    return local_folder(os.path.abspath(path))


def _without_parents(path: str) -> str:
    return os.path.realpath(path) if ".." in path.split("/") else path


def _folder_beside(model: Location, path: str) -> Location:
    beside = _folder(f"{path}-input")
    if path != "/" and not contains(model, beside):
        return beside
    # The model directory is a link to a folder above it.
    target = os.path.realpath(path)
    if target == "/":
        raise _no_default_backend_uri(model.uri, "it is the root folder")
    return _folder(f"{target}-input")


def _no_default_backend_uri(uri: str, reason: str) -> InvalidLocationError:
    return InvalidLocationError(
        f"The input state cannot be put beside the model directory {redact_uri(uri)}: {reason.rstrip('.')}. "
        "Pass a backend.",
        uri=redact_uri(uri),
    )
