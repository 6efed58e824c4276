"""What the user asked of the hook, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from input_checkpoint.backends.retrying import RetryPolicy
from input_checkpoint.format.keys import check_worker
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.training.background_saver import BUSY_MODES
from input_checkpoint.training.resume_plan import check_mode
from input_checkpoint.training.schedule import SaveSchedule


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
