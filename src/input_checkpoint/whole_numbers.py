"""Numbers that a user passes, as plain Python numbers: JSON and messages know no other kind."""

from __future__ import annotations

import operator
from typing import Any, Optional

import numpy as np


def whole_number(name: str, value: Any) -> int:
    """Return a step or a count as an int. TensorFlow and its hooks often pass a ``numpy.int64``.

    Args:
        name: what the number is, for the message.
        value: any kind of integer.

    Raises:
        TypeError: it is no whole number. A bool is none, and neither is a float, even if it is 5.0.

    Example:
        >>> import numpy as np
        >>> whole_number("step", np.int64(5))
        5
    """
    if type(value) is int:
        return value
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be a whole number, got {value!r}")


def optional_whole_number(name: str, value: Any) -> Optional[int]:
    """Return what `whole_number` returns, or None for None."""
    return None if value is None else whole_number(name, value)


def plain_number(value: Any) -> Any:
    """Return a number as an int or a float, and anything else as it is.

    Example:
        >>> import numpy as np
        >>> plain_number(np.float32(0.5)), plain_number(np.int64(24))
        (0.5, 24)
    """
    if isinstance(value, (bool, np.bool_, int, str)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def normalize(record: Any, **fields: Any) -> None:
    """Replace fields of a frozen dataclass, in its ``__post_init__``."""
    for name, value in fields.items():
        if getattr(record, name) is not value:
            object.__setattr__(record, name, value)
