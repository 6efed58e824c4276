"""Timestamps in the JSON parts of the format: ISO 8601."""

from __future__ import annotations

from datetime import datetime, timezone


def encode_timestamp(time: datetime) -> str:
    """Return a time as ISO 8601 in UTC. A time without a time zone is taken as UTC."""
    return _in_utc(time).isoformat()


def decode_timestamp(text: str) -> datetime:
    """Return the time that an ISO 8601 text stands for, in UTC. A text without an offset is taken as UTC.

    Example:
        >>> encode_timestamp(decode_timestamp("2026-03-04T13:00:00+01:00"))
        '2026-03-04T12:00:00+00:00'

    Raises:
        ValueError, TypeError, OverflowError, AttributeError: the text is not a timestamp.
    """
    # Python 3.9 and 3.10 do not parse "Z".
    return _in_utc(datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith("Z") else text))


def _in_utc(time: datetime) -> datetime:
    return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
