"""tests/store/test_stateful.py, with more and longer sequences of operations."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.store.test_stateful import BRIEF, StoreMachine


@pytest.mark.timeout(3600)
class TestStoreAtLength(StoreMachine.TestCase):
    settings = settings(BRIEF, max_examples=150, stateful_step_count=40)
