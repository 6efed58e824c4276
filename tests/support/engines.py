"""Which engines there are on this Python."""

from __future__ import annotations

import sys

import pytest

NEEDS_OBSTORE = pytest.mark.skipif(sys.version_info < (3, 11), reason="obstore needs Python 3.11")
