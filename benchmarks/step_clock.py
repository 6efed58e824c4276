"""Tells when a step has ended. Imports only TensorFlow, because some programs measure their imports."""

from __future__ import annotations

import time
from typing import Any

import tensorflow as tf


class StepClock(tf.compat.v1.train.SessionRunHook):  # type: ignore[misc]  # untyped base
    """Notes when a step has ended. Stands first in the list of hooks.

    A hook may restore the input in `after_create_session` or in `before_run`. Both come before the end of the
    first step, wherever the hook stands in the list. And what a hook does after the step is not part of it.
    """

    ended_at: float = 0.0
    """When the last step ended, on the clock of `time.perf_counter`."""

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Called by TensorFlow."""
        self.ended_at = time.perf_counter()
