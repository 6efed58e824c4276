"""Removes the pauses that client libraries make between the attempts of a request."""

from __future__ import annotations

from datetime import timedelta

import pytest
from botocore.retries.standard import ExponentialBackoff


def remove_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients that are opened from now on repeat requests at once. They repeat them as often."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0)
    for name in ("_FIRST_PAUSE", "_LONGEST_PAUSE"):
        monkeypatch.setattr(f"input_checkpoint.backends.obstore.{name}", timedelta(milliseconds=1))
