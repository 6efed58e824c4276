"""What a user asks of an integration, checked as soon as it is given."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from numbers import Integral, Real
from typing import Any, Callable, Optional, TypedDict, Union

from input_checkpoint.backends.opening import BackendLocation
from input_checkpoint.backends.retrying import DEFAULT_RETRY_POLICY, RetryPolicy
from input_checkpoint.format.keys import check_worker
from input_checkpoint.retention.by_count import KeepLast
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.training.fast_forward_limit import FastForwardLimit
from input_checkpoint.training.model_directory import check_outside_model_dir
from input_checkpoint.training.pipeline_change import check_on_pipeline_change
from input_checkpoint.training.resume_plan import check_mode
from input_checkpoint.training.schedule import SaveSchedule
from input_checkpoint.whole_numbers import normalize, whole_number


class TrainingOptions(TypedDict, total=False):
    """The keyword arguments that every integration accepts. `TrainingSettings` has their defaults."""

    backend: Optional[BackendLocation]
    storage_options: Optional[Mapping[str, Any]]
    save_steps: Optional[int]
    save_secs: Optional[float]
    retention: RetentionPolicy
    resume: str
    when_busy: str
    retry: Optional[RetryPolicy]
    probe: bool
    adopt: bool
    on_save_failure: str
    max_failed_saves: int
    on_pipeline_change: str
    max_fast_forward: Optional[Union[int, timedelta]]
    save_on_preemption: bool
    termination_watcher_fn: Optional[Callable[[], bool]]
    grace_seconds: float


BUSY_MODES = ("wait", "skip")

_DEFAULT_RETENTION = KeepLast(5)


@dataclass(frozen=True)
class TrainingSettings:
    """See `CheckpointInputPipelineHook` for what each setting means.

    Raises:
        TypeError: a value has the wrong type. The message says what to pass instead.
        ValueError: a value is not allowed, or the backend lies inside the model directory.
    """

    model_dir: Optional[str] = None
    worker: str = "main"
    num_workers: int = 1
    model_schedule: Optional[SaveSchedule] = None
    """When the model is saved, if that is known. Its input is then marked, or saved, at the same steps."""
    # A URI may hold a password.
    backend: Optional[BackendLocation] = field(default=None, repr=False)
    storage_options: Optional[Mapping[str, Any]] = field(default=None, repr=False)
    save_steps: Optional[int] = None
    save_secs: Optional[float] = None
    retention: RetentionPolicy = _DEFAULT_RETENTION
    resume: str = "aligned"
    when_busy: str = "wait"
    retry: Optional[RetryPolicy] = DEFAULT_RETRY_POLICY
    probe: bool = True
    adopt: bool = False
    on_save_failure: str = "raise"
    max_failed_saves: int = 3
    on_pipeline_change: str = "refuse"
    max_fast_forward: Optional[Union[int, timedelta]] = None
    save_on_preemption: bool = False
    termination_watcher_fn: Optional[Callable[[], bool]] = None
    grace_seconds: float = 20.0

    def __post_init__(self) -> None:
        if isinstance(self.model_dir, os.PathLike):
            object.__setattr__(self, "model_dir", os.fspath(self.model_dir))
        check_mode(self.resume)
        check_worker(self.worker)
        check_on_pipeline_change(self.on_pipeline_change)
        if self.when_busy not in BUSY_MODES:
            raise ValueError(f"when_busy must be 'wait' or 'skip', got {self.when_busy!r}")
        if self.on_save_failure not in ("raise", "warn"):
            raise ValueError(f"on_save_failure must be 'raise' or 'warn', got {self.on_save_failure!r}")
        normalize(
            self,
            num_workers=whole_number("num_workers", self.num_workers),
            max_failed_saves=whole_number("max_failed_saves", self.max_failed_saves),
        )
        if self.max_failed_saves < 1:
            raise ValueError(f"max_failed_saves must be at least 1, got {self.max_failed_saves}")
        _check_retention(self.retention)
        self._check_preemption()
        _ = self.fast_forward_limit  # raises if it is not valid
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            raise TypeError(f"retry must be a RetryPolicy or None, got {self.retry!r}")
        if self.backend is not None and self.model_dir is not None:
            check_outside_model_dir(self.backend, self.model_dir)
        schedule = self.schedule  # raises if it is not valid
        normalize(self, save_steps=schedule.every_steps, save_secs=schedule.every_secs)

    @property
    def tolerated_failures(self) -> int:
        """How many saves in a row may fail without an error. Marks are counted separately."""
        return self.max_failed_saves - 1 if self.on_save_failure == "warn" else 0

    @property
    def schedule(self) -> SaveSchedule:
        """When to save in full."""
        return SaveSchedule(self.save_steps, self.save_secs)

    @property
    def mark_schedule(self) -> SaveSchedule:
        """When the model is saved, and so when to write marks."""
        return self.model_schedule or self.schedule

    @property
    def fast_forward_limit(self) -> FastForwardLimit:
        """How far the input may be fast-forwarded."""
        return FastForwardLimit.of(self.max_fast_forward)

    def _check_preemption(self) -> None:
        seconds, watcher = self.grace_seconds, self.termination_watcher_fn
        if not isinstance(seconds, Real) or isinstance(seconds, bool):
            raise TypeError(f"grace_seconds must be a number of seconds, got {seconds!r}")
        if not 0 < seconds < math.inf:
            raise ValueError(f"grace_seconds must be positive and finite, got {seconds}")
        if watcher is not None and not callable(watcher):
            raise TypeError(f"termination_watcher_fn must be a function without arguments, got {watcher!r}")
        if watcher is not None and not self.save_on_preemption:
            raise ValueError("termination_watcher_fn needs save_on_preemption=True")
        if self.save_on_preemption and self.num_workers > 1:
            raise ValueError(
                f"save_on_preemption works with one worker, and this training has {self.num_workers}: they "
                "could stop at different steps. Leave it out."
            )


def _check_retention(retention: Any) -> None:
    if isinstance(retention, RetentionPolicy):
        return
    if isinstance(retention, type) and issubclass(retention, RetentionPolicy):
        advice = f"{retention.__name__} is a class; pass an instance of it"
    elif isinstance(retention, Integral) and not isinstance(retention, bool):
        advice = f"to keep the newest {retention}, pass KeepLast({retention})"
    elif isinstance(retention, (list, tuple, set)):
        advice = "combine several policies with |, as in KeepLast(5) | KeepEverySteps(10_000)"
    else:
        advice = "pass one, such as KeepLast(5)"
    raise TypeError(f"retention must be a RetentionPolicy, got {retention!r}: {advice}")
