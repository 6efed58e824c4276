"""What the user asked of the hook, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from input_checkpoint.refs import check_worker
from input_checkpoint.resume import check_mode
from input_checkpoint.retention import RetentionPolicy
from input_checkpoint.retrying import RetryPolicy
from input_checkpoint.schedule import SaveSchedule
from input_checkpoint.writer import BUSY_MODES


@dataclass(frozen=True)
class HookSettings:
    """See `CheckpointInputPipelineHook` for what each means. Raises ValueError for an unknown word."""

    model_dir: Optional[str]
    schedule: SaveSchedule
    retention: RetentionPolicy
    resume: str
    when_busy: str
    retry: Optional[RetryPolicy]
    probe: bool
    worker: str
    num_workers: int

    def __post_init__(self) -> None:
        check_mode(self.resume)
        check_worker(self.worker)
        if self.when_busy not in BUSY_MODES:
            raise ValueError(f"when_busy must be 'wait' or 'skip', got {self.when_busy!r}")
