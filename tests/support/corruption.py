"""Damages stored objects in every way, and checks that the store notices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import input_checkpoint as ic
from input_checkpoint.backends.base import Backend
from input_checkpoint.format.keys import CheckpointRef, parse_checkpoint_key
from tests.support import cycles


def intact_store() -> Backend:
    """Return the backend of an intact store with two lineages that share packs."""
    inner = cycles.new_backend("memory")
    store = cycles.open_store(inner)
    run = store.begin_run(cycles.WORKER, None)
    for step in (10, 20, 30):
        run.save(step, cycles.state(step))
    run = store.begin_run(cycles.WORKER, CheckpointRef(cycles.WORKER, 1, 20))
    for step in (30, 40):
        run.save(step, cycles.state(step))
    return inner


@dataclass(frozen=True)
class Case:
    """One way to damage an object, or to swap two."""

    name: str
    keys: tuple[str, ...]
    objects: tuple[bytes, ...]
    """New contents of the keys. Empty if the keys are deleted."""

    def apply(self, backend: Backend) -> None:
        if not self.objects:
            backend.delete(self.keys)
        for key, data in zip(self.keys, self.objects):
            backend.put(key, data)


def deletions(backend: Backend) -> Iterator[Case]:
    for info in backend.list():
        yield Case(f"delete {info.key}", (info.key,), ())


def flips(backend: Backend, most: int) -> Iterator[Case]:
    """Flip bits at up to ``most`` positions of every object, evenly spread from the first to the last."""
    for info in backend.list():
        data = backend.get(info.key)
        for position in _spread(len(data), most):
            for mask in (0x01, 0x80):
                changed = data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]
                yield Case(f"flip {mask:#x} at {position} of {info.key}", (info.key,), (changed,))


def truncations(backend: Backend, most: int) -> Iterator[Case]:
    """Cut every object to up to ``most`` lengths, from 0 to one byte less; and append one byte."""
    for info in backend.list():
        data = backend.get(info.key)
        for length in _spread(len(data), most):
            yield Case(f"cut {info.key} to {length}", (info.key,), (data[:length],))
        yield Case(f"append to {info.key}", (info.key,), (data + b"\0",))


def swaps(backend: Backend, every: int = 1) -> Iterator[Case]:
    """Swap every two objects of the same kind, and replace each by the other. Yield every n-th case."""
    return itertools.islice(_all_swaps(backend), 0, None, every)


def _all_swaps(backend: Backend) -> Iterator[Case]:
    keys = [info.key for info in backend.list()]
    for first in keys:
        for second in keys:
            if first < second and first.split("/")[0] == second.split("/")[0]:
                one, other = backend.get(first), backend.get(second)
                yield Case(f"swap {first} and {second}", (first, second), (other, one))
                yield Case(f"{second} in place of {first}", (first,), (other,))
                yield Case(f"{first} in place of {second}", (second,), (one,))


def check_that_no_damage_goes_unnoticed(cases: Callable[[Backend], Iterator[Case]]) -> int:
    """Check that each case either loads correctly or raises, and that verify() predicts which."""
    inner = intact_store()
    intact = {info.key: inner.get(info.key) for info in inner.list()}
    checkpoints = [ref for ref in map(parse_checkpoint_key, intact) if ref]
    assert len(checkpoints) == 5
    count = 0
    for case in cases(inner):
        count += 1
        try:
            case.apply(inner)
            _check(inner, checkpoints)
        except Exception as error:
            raise AssertionError(f"{case.name}: {type(error).__name__}: {error}") from error
        finally:
            for key in case.keys:
                inner.put(key, intact[key])
    assert {info.key: inner.get(info.key) for info in inner.list()} == intact
    return count


def _check(inner: Backend, checkpoints: list[CheckpointRef]) -> None:
    try:
        store = ic.CheckpointStore.open(inner, options=cycles.OPTIONS, retry=None)
    except (ic.UnsupportedFormatError, ic.BackendNotFoundError):
        return  # format.json is the damaged one
    report = store.verify()
    for ref in checkpoints:
        try:
            found = cycles.restored(store, ref)
        except ic.CheckpointNotFoundError:
            assert ref not in report.checked
        except ic.CorruptCheckpointError:
            assert ref in report.problems
        else:
            assert found == cycles.expected(ref.step)
            assert ref in report.checked
            # A pack of the wrong size is reported even if the checkpoint does not need the missing part.
            assert "bytes instead of" in report.problems.get(ref, "bytes instead of")
    _check_history(store)


def _check_history(store: ic.CheckpointStore) -> None:
    """Check that a damaged lineage record never yields a wrong history."""
    history = store.history(cycles.WORKER)
    if len(store.verify(read_data=False).checked) == 5:
        assert [(ref.lineage, ref.step) for ref in history] == [(1, 10), (1, 20), (2, 30), (2, 40)]


def _spread(size: int, most: int) -> list[int]:
    if size <= most:
        return list(range(size))
    return sorted({round(number * (size - 1) / (most - 1)) for number in range(most)})
