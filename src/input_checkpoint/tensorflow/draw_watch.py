"""Notices the runs of a session that draw from the input outside of the hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Callable, Optional, Union

from input_checkpoint.tensorflow.batch_digest import BatchDigests
from input_checkpoint.tensorflow.counted_runs import CountedRuns
from input_checkpoint.tensorflow.draw_counter import DrawCounter
from input_checkpoint.tensorflow.draws import Draw, InputUse, InputUseReader, handles
from input_checkpoint.tensorflow.restoring import is_restoring

_NOTHING = object()
_NO_USE = InputUse()


class DrawWatch:
    """Watches the raw session beneath a ``MonitoredSession``.

    Hooks do not see what ``run_step_fn`` or another hook runs with the raw session. So every method that runs
    a session is wrapped, in this session object alone. Unless draws are counted, a run with hooks costs one
    comparison.

    Args:
        session: the raw session.
        before_change: called before a run outside of the hooks that draws from the input or initializes it.
    """

    def __init__(self, session: Any, before_change: Callable[[InputUse], None]) -> None:
        self._session = session
        self._before_change = before_change
        self._reader = InputUseReader(session.graph)
        self._expected: Any = _NOTHING
        self._with_digests = False
        self._counted: Optional[CountedRuns] = None
        self._after_digests: Callable[[], None] = lambda: None
        self._untracked: tuple[Draw, ...] = ()
        self._hooked: tuple[Draw, ...] = ()
        self._names: Optional[dict[bytes, str]] = None
        self._run = session.run
        self._make_callable = session.make_callable
        self._partial_run_setup = session.partial_run_setup
        self._wrappers = {
            "run": self._watched_run,
            "make_callable": self._watched_callable,
            "partial_run_setup": self._watched_partial_run_setup,
        }
        # Another hook may watch the same session.
        self._replaced = {name: session.__dict__.get(name) for name in self._wrappers}
        session.__dict__.update(self._wrappers)

    def stop(self) -> None:
        """Stop watching, so that the session can be freed."""
        attributes = self._session.__dict__
        for name, wrapper in self._wrappers.items():
            if attributes.get(name) is not wrapper:
                continue
            if self._replaced[name] is None:
                del attributes[name]
            else:
                attributes[name] = self._replaced[name]

    def count(self, counter: DrawCounter, digests: BatchDigests, after_digests: Callable[[], None]) -> None:
        """Count draws from now on. Costs some microseconds for each run with hooks.

        Args:
            counter: of this session.
            digests: of the graph.
            after_digests: called after a run with hooks whose digests were taken, before any hook sees it.
        """
        self._after_digests = after_digests
        self._counted = CountedRuns(self._session, self._reader, self._named_use, counter, digests)

    def expect(self, arguments: Any, *, with_digests: bool = False) -> None:
        """Announce the run with hooks that comes next.

        Args:
            arguments: ``SessionRunContext.original_args``.
            with_digests: whether the counter needs the digest of what this run draws.
        """
        self._expected = arguments.fetches
        self._with_digests = with_digests

    def draws(self, arguments: Any) -> bool:
        """Whether the run with hooks that has these arguments draws from the input."""
        return bool(self._reader.read(arguments.fetches, arguments.feed_dict).draws)

    @property
    def untracked(self) -> tuple[Draw, ...]:
        """The draws outside of the hooks since `clear`."""
        return self._untracked

    def conflict(self, arguments: Any) -> Optional[Draw]:
        """Return an untracked draw from an iterator that the runs with hooks draw from too, or None.

        A draw from another iterator, such as one for validation, does no harm.

        Args:
            arguments: those of the run with hooks that comes next, or has just ended.
        """
        if not self._untracked and self._hooked:
            return None
        use = self._reader.read(arguments.fetches, arguments.feed_dict)
        self._hooked = self._joined(self._hooked, use.draws)
        for draw in self._untracked:
            # If no run with hooks draws at all, such draws train the model.
            if not self._hooked or any(draw.may_be(hooked) for hooked in self._hooked):
                return draw
        return None

    def clear(self) -> None:
        """Forget the untracked draws."""
        self._untracked = ()

    def _watched_run(
        self, fetches: Any, feed_dict: Optional[Mapping[Any, Any]] = None, *others: Any, **options: Any
    ) -> Any:
        if self._is_expected(fetches):
            if self._counted is None:
                return self._run(fetches, feed_dict, *others, **options)
            with_digests = self._with_digests
            result = self._counted.run(self._run, fetches, feed_dict, with_digests, *others, **options)
            if with_digests:
                self._after_digests()
            return result
        with self._noted(fetches, feed_dict):
            return self._run(fetches, feed_dict, *others, **options)

    def _watched_callable(
        self, fetches: Any, feed_list: Optional[Any] = None, *others: Any, **options: Any
    ) -> Callable[..., Any]:
        inner = self._make_callable(fetches, feed_list, *others, **options)

        def call(*values: Any, **run_options: Any) -> Any:
            with self._noted(fetches, dict(zip(feed_list or (), values))):
                return inner(*values, **run_options)

        return call

    def _watched_partial_run_setup(self, fetches: Any, feeds: Optional[Sequence[Any]] = None) -> Any:
        # The operations that need no feed run as soon as a partial run is set up.
        with self._noted(fetches, dict.fromkeys(feeds or ()), lasting=True):
            return self._partial_run_setup(fetches, feeds)

    def _is_expected(self, fetches: Any) -> bool:
        # MonitoredSession adds the fetches of the hooks to those of the caller, in one dictionary.
        if self._expected is _NOTHING or not isinstance(fetches, dict):
            return False
        if not any(value is self._expected for value in fetches.values()):
            return False
        self._expected = _NOTHING
        return True

    @contextlib.contextmanager
    def _noted(
        self, fetches: Any, feed_dict: Optional[Mapping[Any, Any]], *, lasting: bool = False
    ) -> Iterator[None]:
        """Note a run outside of the hooks, which happens within this context."""
        use = _NO_USE if is_restoring() else self._reader.read(fetches, feed_dict)
        if not use.changes_input:
            yield
            return
        self._before_change(use)
        self._untracked = self._joined(self._untracked, use.draws)
        counter = None if self._counted is None else self._counted.counter
        if counter is None:
            yield
            return
        named = self._named_use(use)
        # Twice, because another thread may save in between.
        counter.untracked(named, lasting=lasting)
        try:
            yield
        finally:
            counter.untracked(named, lasting=lasting)

    def _joined(self, known: tuple[Draw, ...], draws: tuple[Draw, ...]) -> tuple[Draw, ...]:
        """Return all draws, each once, by the names of their iterators if these can be found."""
        return tuple(dict.fromkeys((*known, *map(self._named, draws))))

    def _named(self, draw: Draw) -> Draw:
        return replace(draw, iterator=self._name_of(draw.iterator))

    def _named_use(self, use: InputUse) -> InputUse:
        operations = [
            replace(operation, iterator=self._name_of(operation.iterator)) for operation in use.operations
        ]
        return replace(use, draws=tuple(map(self._named, use.draws)), operations=tuple(operations))

    def _name_of(self, iterator: Union[str, bytes]) -> Union[str, bytes]:
        if not isinstance(iterator, bytes):
            return iterator
        if self._names is None:
            tensors = handles(self._session.graph)
            values = self._run(list(tensors.values()))
            self._names = dict(zip(values, tensors))
        return self._names.get(iterator, iterator)
