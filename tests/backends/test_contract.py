"""The built-in backends keep the contract."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Optional

import pytest

from input_checkpoint import BackendUnavailableError, CheckpointRef, RetryPolicy
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.backends.retrying import RetryingBackend
from input_checkpoint.testing import BackendContract
from tests.support.wrappers import Failing


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


class TestRetryingBackend(BackendContract):
    @pytest.fixture
    def backend(self) -> RetryingBackend:
        return RetryingBackend(MemoryBackend(f"memory://{uuid.uuid4().hex}"))

    def test_the_error_after_the_last_attempt_keeps_uri_key_and_ref(self, backend):
        ref = CheckpointRef("main", 1, 10)
        away = BackendUnavailableError("away", uri="memory://there", key="its/key", ref=ref)
        retrying = RetryingBackend(Failing(backend, "put", "key", away), RetryPolicy(timeout=0))
        with pytest.raises(BackendUnavailableError, match="gave up") as raised:
            retrying.put("key", b"data")
        assert (raised.value.uri, raised.value.key, raised.value.ref) == ("memory://there", "its/key", ref)
