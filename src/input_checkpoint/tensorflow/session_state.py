"""How far one session has come, and the saves that it has begun."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from input_checkpoint.tensorflow.draw_guard import DrawGuard
from input_checkpoint.tensorflow.model_link import ModelLink
from input_checkpoint.tensorflow.session_marks import SessionMarks

_MODEL_SECONDS = 30.0
"""How long a mark waits for its model, which is saved before the next run begins, if it is saved at all."""
_WRITE_SECONDS = 600.0
"""How long the input of a model waits for it, if TensorFlow is writing the model."""


@dataclass
class SessionState:
    """How far one session has come."""

    session: Any
    """The raw session."""
    guard: DrawGuard
    marks: SessionMarks
    read_step: Callable[[], int]
    """Returns the global step."""
    is_first: bool
    """Whether it is the first session of this graph. Later ones come after recovered errors."""
    created_at: int
    """The global step when it was created."""
    step: int
    """The global step that was reached."""
    resumed: bool = False
    arguments: Any = None
    """``SessionRunContext.original_args`` of the last run with hooks."""
    is_running: bool = False
    """Whether that run is not counted yet."""
    draws: int = 0
    """How many runs have drawn from the input."""
    accumulates: bool = False
    """Whether a run has drawn from the input without finishing a step."""
    draws_at_step: int = 0
    """``draws`` when it was reached. The runs since then belong to a step that is not finished."""
    saved_step: Optional[int] = None
    saved_draws: int = 0
    """``draws`` when ``saved_step`` was saved."""
    save: Optional[StepSave] = None
    """The last save, until the next run begins."""

    def settle_model(self) -> None:
        """Note that all hooks have seen the last run, so that its model is saved if it is saved at all."""
        if self.save is not None:
            self.save.settled.set()

    def settle_save(self) -> None:
        """Look at the model of the last save while it is certain which runs it contains.

        Only if several runs may make up a step: otherwise, there is time until the commit.
        """
        save, self.save = self.save, None
        if save is not None and (self.accumulates or self.draws == 0):
            save.find_model()


@dataclass
class StepSave:
    """One save, and the model that belongs to it."""

    link: ModelLink
    state: SessionState
    step: int
    draws: int
    """``draws`` of the session when its snapshot was taken."""
    model_digest: Optional[str] = None
    precedes_model: bool = False
    """Whether the model is written after this snapshot was taken. What is there before is another one."""
    commits_after_model: bool = False
    """Whether the commit waits for the model, so that it can hold the digest."""
    settled: threading.Event = field(default_factory=threading.Event)
    """Set when the model is saved, if it is saved at all."""

    def wait_for_model(self) -> Optional[str]:
        """Return what `find_model` returns, but not before the model can be there."""
        if self.find_model() is None and self.link.model_dir is not None:
            self.settled.wait(_WRITE_SECONDS if self.precedes_model else _MODEL_SECONDS)
        return self.find_model()

    def model_at_commit(self) -> Optional[str]:
        """Return what `find_model` returns, just before the commit."""
        return self.wait_for_model() if self.commits_after_model else self.find_model()

    def find_model(self) -> Optional[str]:
        """Return the digest of the model that was saved together with this snapshot, if it is known."""
        if self.precedes_model and not self.settled.is_set():
            return None
        if self.model_digest is None:
            found = self.link.model_digest(self.step)
            # With several runs to a step, TensorFlow may have saved this model after more of them.
            if not self.state.accumulates or self.state.draws == self.draws:
                self.model_digest = found
        return self.model_digest
