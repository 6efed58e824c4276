"""Points in time, as the format's JSON spells them."""

from __future__ import annotations

from datetime import datetime, timezone


def encode_timestamp(time: datetime) -> str:
    """Return a point in time as ISO 8601 in UTC. One without a zone is taken for UTC."""
    return _in_utc(time).isoformat()


def decode_timestamp(text: str) -> datetime:
    """Return the point in time that a text names, in UTC. One without a zone is taken for UTC.

    >>> encode_timestamp(decode_timestamp("2026-03-04T13:00:00+01:00"))
    '2026-03-04T12:00:00+00:00'

    Raises:
        ValueError, TypeError, OverflowError, AttributeError: it names none.
    """
    # Python 3.9 and 3.10 do not know the letter.
    return _in_utc(datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith("Z") else text))


def _in_utc(time: datetime) -> datetime:
    return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
