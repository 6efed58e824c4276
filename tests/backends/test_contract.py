"""The built-in backends keep the contract."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Optional

import pytest

from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.testing import BackendContract


class TestLocalBackend(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> LocalBackend:
        self.folder = tmp_path / "store"
        return LocalBackend(str(self.folder))

    def stored(self, backend, key: str) -> Optional[bytes]:
        path = self.folder / key
        return path.read_bytes() if path.exists() else None

    def plant(self, backend, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class TestMemoryBackend(BackendContract):
    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend(f"memory://{uuid.uuid4().hex}")
