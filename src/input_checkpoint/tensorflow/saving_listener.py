"""Saves the input whenever TensorFlow saves the model, whatever schedule the model has."""

from __future__ import annotations

from typing import Any, Callable, Optional

import tensorflow as tf

from input_checkpoint.training.settings import TrainingSettings

MODES = ("background", "before")


class SavingListener(tf.compat.v1.train.CheckpointSaverListener):  # type: ignore[misc]  # untyped base
    """Tells a hook when the model is saved. Get one from `SessionHook.saving_listener`.

    TensorFlow saves the model once when a session is created, before the hook restores the input. The hook
    leaves that save alone: the input of that model is the one that it is about to restore.

    Args:
        mode: one of `MODES`.
        uri: where the hook saves, for messages.
        is_hooked: whether the hook is among the hooks of the session on a graph.
        save: saves the input of a session at a step. If its last argument is True, it returns only when the
            input is stored. Returns what to call once the model is written.
    """

    def __init__(
        self,
        mode: str,
        uri: str,
        is_hooked: Callable[[Any], bool],
        save: Callable[[Any, int, bool], Callable[[], None]],
    ) -> None:
        self.mode = mode
        self._uri = uri
        self._is_hooked = is_hooked
        self._save = save
        self._graph: Optional[Any] = None
        self._model_written: Callable[[], None] = _do_nothing

    def begin(self) -> None:
        """Note which graph is trained. Called by TensorFlow."""
        self._graph = tf.compat.v1.get_default_graph()
        self._model_written = _do_nothing

    def before_save(self, session: Any, global_step_value: int) -> None:
        """Save the input of the model that is about to be written. Called by TensorFlow."""
        if not self._is_hooked(session.graph):
            raise RuntimeError(
                "A saving listener was passed to train() without its hook, which restores the input from "
                f"{self._uri}. Pass both: train(..., hooks=[hook], saving_listeners=[listener])."
            )
        # TensorFlow passes a numpy.int64.
        self._model_written = self._save(session, int(global_step_value), self.mode == "before")

    def after_save(self, session: Any, global_step_value: int) -> None:
        """Note that the model is written. Called by TensorFlow."""
        written, self._model_written = self._model_written, _do_nothing
        written()

    def check_used(self, graph: Any) -> None:
        """Raise RuntimeError if no saver of the session on a graph calls this listener."""
        if self._graph is not graph:
            raise RuntimeError(
                "hook.saving_listener() was called, so the input is saved whenever the model is, but nothing "
                f"tells the hook when that is: nothing would be saved to {self._uri}. Pass the listener to "
                "train(..., saving_listeners=[listener]), or to CheckpointSaverHook(listeners=[listener])."
            )


def check_listener(settings: TrainingSettings, mode: str) -> None:
    """Raise ValueError if the input cannot be saved by a listener, because a setting contradicts that.

    Args:
        settings: of the hook.
        mode: when the input is stored.

    >>> check_listener(TrainingSettings(backend="memory://listener", save_steps=10), "before")
    """
    if mode not in MODES:
        raise ValueError(f"mode must be 'background' or 'before', got {mode!r}")
    if settings.num_workers > 1:
        raise ValueError(
            f"a saving listener cannot save the input of {settings.num_workers} workers: TensorFlow calls it "
            "on the chief only. Use the hook without a listener."
        )
    if settings.schedule != settings.mark_schedule:
        raise ValueError(
            "the input cannot be saved both whenever the model is and at other times: leave out save_steps "
            "and save_secs (for a SessionHook: model_schedule), or use the hook without a saving listener"
        )
    if mode == "before" and settings.when_busy == "skip":
        raise ValueError(
            "mode='before' stores the input of every model, but when_busy='skip' may skip it: pass "
            "when_busy='wait', or mode='background'"
        )


def _do_nothing() -> None:
    """Do nothing."""
