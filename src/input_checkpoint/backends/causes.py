"""Exceptions of other libraries, as text without secrets.

A traceback shows the causes of an error with their own messages, and those of client libraries may repeat a
request with its signature or a URI with its password. So the causes of our errors are copies without secrets.
"""

from __future__ import annotations

from typing import NoReturn, Optional

from input_checkpoint.errors import InputCheckpointError
from input_checkpoint.redaction.redactor import excerpt

_LONGEST_TEXT = 2000
_LONGEST_CHAIN = 20


class RedactedError(Exception):
    """A copy of another library's exception: the name of its class, and its message without secrets.

    It has the traceback of the original.
    """


def raise_from(error: InputCheckpointError, cause: BaseException) -> NoReturn:
    """Raise an error like ``raise error from cause``, but with a copy of the cause that holds no secret.

    Example:
        >>> from input_checkpoint.errors import BackendError
        >>> try:
        ...     raise_from(BackendError("no access"), ValueError("GET /run?sig=a1b2c3"))
        ... except BackendError as error:
        ...     error.__cause__
        RedactedError('ValueError: GET /run?sig=***')
    """
    error.__cause__ = _redacted(cause, set())
    try:
        raise error
    except BaseException:
        # Python has just set the context to the exception that is being handled.
        error.__context__ = error.__cause__
        raise


def redact_causes(error: InputCheckpointError) -> None:
    """Replace the causes and contexts of an error with copies without secrets."""
    seen = {id(error)}
    suppress = error.__suppress_context__
    cause = _redacted(error.__cause__, seen)
    context = None if suppress else _redacted(error.__context__, seen)
    error.__cause__, error.__context__, error.__suppress_context__ = cause, context or cause, suppress


def _redacted(error: Optional[BaseException], seen: set[int]) -> Optional[BaseException]:
    if error is None or id(error) in seen or len(seen) > _LONGEST_CHAIN:
        return None
    seen.add(id(error))
    suppress = error.__suppress_context__
    cause = _redacted(error.__cause__, seen)
    context = None if suppress else _redacted(error.__context__, seen)
    # The messages of our own errors hold no secret.
    is_clean = isinstance(error, (InputCheckpointError, RedactedError))
    copy = error if is_clean else RedactedError(_text(error)).with_traceback(error.__traceback__)
    copy.__cause__, copy.__context__, copy.__suppress_context__ = cause, context or cause, suppress
    return copy


def _text(error: BaseException) -> str:
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    try:
        text = excerpt(str(error), _LONGEST_TEXT)
    except Exception:
        return name  # the message cannot be built
    return f"{name}: {text}" if text else name
