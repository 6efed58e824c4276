"""Whatever happens to a store, in any order, its history is linear and nothing is restored wrongly.

A small model predicts what must be true. integration/test_store_at_length.py explores much longer sequences.
"""

from __future__ import annotations

import contextlib
import random
import re
import uuid
from dataclasses import dataclass, field
from typing import Callable, Optional

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.checkpoint import CheckpointRef, MarkRef
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.format.manifest import decode_header
from input_checkpoint.state import Element
from tests.support.cycles import open_store, restored
from tests.support.faults import Die, FaultyBackend, Killed, Meanwhile

WORKER = "main"
State = list[tuple[str, list[Element]]]


@dataclass
class Writer:
    """A process that trains, or that was superseded and has not noticed."""

    backend: FaultyBackend
    store: ic.CheckpointStore
    run: ic.Run
    step: int
    state: State


@dataclass
class Model:
    """What must be true of the store."""

    parents: dict[int, Optional[CheckpointRef]] = field(default_factory=dict)
    """Parent of every lineage, from old to new."""
    saved: dict[CheckpointRef, State] = field(default_factory=dict)
    """State of every checkpoint that was committed and not removed."""
    named: dict[CheckpointRef, set[str]] = field(default_factory=dict)
    """Keys that each of these checkpoints consists of."""
    damaged: set[str] = field(default_factory=set)
    marks: dict[MarkRef, int] = field(default_factory=dict)
    """Number of draws in every mark that was written and not removed."""

    @property
    def newest(self) -> int:
        return max(self.parents)

    def history(self) -> list[CheckpointRef]:
        """Follow each restart back to the checkpoint that it began from."""
        found: list[CheckpointRef] = []
        number, last_step = max(self.parents, default=None), None
        while number is not None:
            own = [ref for ref in self.saved if ref.lineage == number]
            found += [ref for ref in own if last_step is None or ref.step <= last_step]
            parent = self.parents[number]
            number, last_step = (parent.lineage, parent.step) if parent else (None, None)
        return sorted(found)

    def usable_marks(self) -> list[MarkRef]:
        """Follow each restart back, and take the marks from before it whose base is there."""
        found: list[MarkRef] = []
        number, last_step = max(self.parents, default=None), None
        while number is not None:
            own = [mark for mark in self.marks if mark.ref.lineage == number and mark.base in self.saved]
            found += [mark for mark in own if last_step is None or mark.ref.step <= last_step]
            parent = self.parents[number]
            number, last_step = (parent.lineage, parent.step) if parent else (None, None)
        return sorted(found)

    def may_be_unreadable(self, ref: CheckpointRef) -> bool:
        return bool(self.named[ref] & self.damaged)


def without_random_part(key: str) -> str:
    """A key without its random part, so that Hypothesis can replay an example."""
    return re.sub(r"(?<=\d{12}-)[0-9a-f]{8}", "*", key)


payloads = st.builds(
    lambda seed, size: random.Random(seed).randbytes(size),
    # Few seeds, so that a payload often comes back after no checkpoint has needed it for a while.
    st.integers(0, 3),
    st.sampled_from([0, 40, 2047, 2048, 7000]),
)


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def an_empty_store(self) -> None:
        self.inner = MemoryBackend(f"memory://{uuid.uuid4().hex}")
        self.model = Model()
        self.writer: Optional[Writer] = None
        self.superseded: list[Writer] = []
        self.start(None)

    # What the newest run does.

    @precondition(lambda self: self.writer)
    @rule(drawn=st.lists(payloads, max_size=5), forget=st.integers(0, 9), stride=st.integers(1, 30))
    def save(self, drawn: list[bytes], forget: int, stride: int) -> None:
        writer = self.advance(drawn, forget, stride)
        info = writer.run.save(writer.step, self.streams(writer.state))
        self.committed(info.ref, writer.state)

    @precondition(lambda self: self.writer)
    @rule(
        drawn=st.lists(payloads, max_size=5),
        call=st.integers(1, 12),
        moment=st.sampled_from(["before", "after"]),
    )
    def die_during_a_save(self, drawn: list[bytes], call: int, moment: str) -> None:
        writer = self.advance(drawn, 3, 10)
        writer.backend.plan[len(writer.backend.calls) + call] = Die(moment)
        with contextlib.suppress(Killed):
            writer.run.save(writer.step, self.streams(writer.state))
        ref = CheckpointRef(WORKER, writer.run.lineage.number, writer.step)
        if any(info.key == manifest_key(ref) for info in self.inner.list()):
            self.committed(ref, writer.state)
        self.writer = None

    @precondition(lambda self: self.writer)
    @rule(
        drawn=st.lists(payloads, max_size=5),
        call=st.integers(1, 12),
        n=st.integers(1, 3),
        moment=st.sampled_from(["before", "after"]),
        by_the_run=st.booleans(),
    )
    def a_prune_runs_during_a_save(
        self, drawn: list[bytes], call: int, n: int, moment: str, by_the_run: bool
    ) -> None:
        writer = self.advance(drawn, 3, 10)
        ref = CheckpointRef(WORKER, writer.run.lineage.number, writer.step)

        def prune() -> None:
            if any(info.key == manifest_key(ref) for info in self.inner.list()):
                self.committed(ref, writer.state)
            if by_the_run:
                self.prune_by(writer.run.prune, n)
            else:
                self.prune_by(open_store(self.inner).prune, n)

        writer.backend.plan[len(writer.backend.calls) + call] = Meanwhile(prune, moment)
        writer.run.save(writer.step, self.streams(writer.state))
        self.committed(ref, writer.state)
        writer.backend.plan.clear()

    @precondition(lambda self: self.writer)
    @rule(n=st.integers(1, 4))
    def the_run_prunes(self, n: int) -> None:
        assert self.writer
        self.prune_by(self.writer.run.prune, n)

    @precondition(lambda self: self.writer and self.model.history())
    @rule(back=st.integers(0, 3), stride=st.integers(0, 20))
    def write_a_mark(self, back: int, stride: int) -> None:
        assert self.writer
        history = self.model.history()
        base = history[max(0, len(history) - 1 - back)]
        self.writer.step = max(self.writer.step, base.step) + stride
        ref = self.mark_by(self.writer, base)
        self.model.marks[ref] = self.writer.step - base.step

    # What other processes do.

    @rule(n=st.integers(1, 4))
    def another_process_prunes(self, n: int) -> None:
        self.prune_by(open_store(self.inner).prune, n)

    @rule(data=st.data(), back=st.integers(0, 3))
    def restart_from_the_newest_or_an_older_step(self, data: st.DataObject, back: int) -> None:
        readable = [ref for ref in self.model.history() if not self.model.may_be_unreadable(ref)]
        self.start(readable[max(0, len(readable) - 1 - back)] if readable else None)

    @precondition(lambda self: self.model.saved)
    @rule(data=st.data())
    def restart_from_a_step_that_was_left_behind(self, data: st.DataObject) -> None:
        behind = sorted(set(self.model.saved) - set(self.model.history()))
        readable = [ref for ref in behind if not self.model.may_be_unreadable(ref)]
        if readable:
            self.start(data.draw(st.sampled_from(readable)))

    @precondition(lambda self: self.model.usable_marks())
    @rule(data=st.data())
    def restart_from_a_mark(self, data: st.DataObject) -> None:
        marks = self.model.usable_marks()
        usable = [mark for mark in marks if not self.model.may_be_unreadable(mark.base)]
        if usable:
            mark = data.draw(st.sampled_from(usable))
            self.start(mark.ref, mark.base)

    @precondition(lambda self: self.superseded and self.model.saved)
    @rule(data=st.data())
    def a_superseded_run_writes_a_mark(self, data: st.DataObject) -> None:
        writer = data.draw(st.sampled_from(self.superseded))
        bases = [ref for ref in sorted(self.model.saved) if ref.lineage <= writer.run.lineage.number]
        if not bases:
            return
        before = self.keys()
        writer.step = max(writer.step, bases[0].step) + 10
        with pytest.raises(ic.WriterSupersededError):
            self.mark_by(writer, bases[0])
        assert self.keys() == before

    @precondition(lambda self: self.superseded)
    @rule(data=st.data(), drawn=st.lists(payloads, max_size=3))
    def a_superseded_run_saves(self, data: st.DataObject, drawn: list[bytes]) -> None:
        writer = data.draw(st.sampled_from(self.superseded))
        before = self.keys()
        writer.step += 10
        state = [("superseded", [(b"%d" % number, payload) for number, payload in enumerate(drawn)])]
        try:
            writer.run.save(writer.step, self.streams(state))
        except ic.WriterSupersededError:
            pass
        else:
            raise AssertionError("a superseded run has saved")
        assert before <= self.keys()
        assert all(key.startswith("packs/") for key in self.keys() - before)

    @precondition(lambda self: self.superseded)
    @rule(data=st.data(), n=st.integers(1, 2))
    def a_superseded_run_prunes(self, data: st.DataObject, n: int) -> None:
        writer = data.draw(st.sampled_from(self.superseded))
        before = self.keys()
        try:
            writer.run.prune(ic.KeepLast(n), orphan_age=0)
        except ic.WriterSupersededError:
            pass
        else:
            raise AssertionError("a superseded run has pruned")
        assert self.keys() == before

    @precondition(lambda self: self.model.saved)
    @rule(data=st.data(), how=st.sampled_from(["flip", "truncate", "delete"]))
    def an_object_is_damaged(self, data: st.DataObject, how: str) -> None:
        stored = sorted(set().union(*self.model.named.values()) & self.keys(), key=without_random_part)
        if not stored:
            return
        key = stored[data.draw(st.integers(0, len(stored) - 1))]
        content = self.inner.get(key)
        position = int(data.draw(st.floats(0, 0.999)) * len(content))
        if how == "delete" and key.startswith("packs/"):
            self.inner.delete([key])
        elif how == "truncate" and content:
            self.inner.put(key, content[:position])
        elif content:
            self.inner.put(
                key, content[:position] + bytes([content[position] ^ 0x41]) + content[position + 1 :]
            )
        self.model.damaged.add(key)

    # What must always be true.

    @invariant()
    def the_history_is_that_of_the_model(self) -> None:
        if hasattr(self, "model"):
            assert open_store(self.inner).history(WORKER) == self.model.history()

    @invariant()
    def the_marks_are_those_of_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        store = open_store(self.inner)
        listing = store.list_worker(WORKER)
        assert list(listing.marks) == sorted(self.model.marks)
        assert listing.usable_marks == self.model.usable_marks()
        for mark, count in self.model.marks.items():
            assert store.read_mark(mark).draws == {"first": count}

    @invariant()
    def every_checkpoint_is_restored_as_it_was_saved_or_not_at_all(self) -> None:
        if not hasattr(self, "model"):
            return
        store = open_store(self.inner)
        problems = store.verify(WORKER).problems
        for ref, state in self.model.saved.items():
            try:
                assert restored(store, ref) == state
            except ic.CorruptCheckpointError:
                assert self.model.may_be_unreadable(ref)
                assert ref in problems
            else:
                # A pack of the wrong size is reported even if the checkpoint does not need the missing part.
                assert "bytes instead of" in problems.get(ref, "bytes instead of")

    # How the rules work.

    def start(self, parent: Optional[CheckpointRef], base: Optional[CheckpointRef] = None) -> None:
        if self.writer:
            self.superseded.append(self.writer)
        backend = FaultyBackend(self.inner)
        store = open_store(backend)
        state = restored(store, base or parent) if parent else [("first", []), ("second", [])]
        run = store.begin_run(WORKER, parent, base=base)
        self.model.parents[run.lineage.number] = parent
        self.writer = Writer(backend, store, run, parent.step if parent else 0, state)

    @staticmethod
    def mark_by(writer: Writer, base: CheckpointRef) -> MarkRef:
        count = writer.step - base.step
        return writer.run.mark(writer.step, base, {"first": count}, {"first": "9f3c"} if count else {})

    def advance(self, drawn: list[bytes], forget: int, stride: int) -> Writer:
        """Train for some steps. Old elements leave the buffer, and new ones enter it."""
        writer = self.writer
        assert writer
        writer.step += stride
        kept = writer.state[0][1][forget:]
        new = [(b"%d:%d" % (writer.step, number), payload) for number, payload in enumerate(drawn)]
        writer.state = [("first", kept + new), ("second", [(b"step", b"%d" % writer.step)])]
        return writer

    def committed(self, ref: CheckpointRef, state: State) -> None:
        if ref in self.model.saved:
            return
        self.model.saved[ref] = state
        packs = decode_header(self.inner.get(manifest_key(ref))).packs
        self.model.named[ref] = {manifest_key(ref), *(pack.key for pack in packs)}
        # Also if a pack that it could have shared was deleted or truncated before the save began.
        stored = {info.key: info.size for info in self.inner.list("packs/")}
        assert {pack.key: pack.size for pack in packs}.items() <= stored.items()

    def prune_by(self, prune: Callable[..., ic.PruneReport], n: int) -> None:
        model = self.model
        present, history = set(model.saved), model.history()
        report = prune(ic.KeepLast(n), orphan_age=0)
        removed = set(report.removed)
        assert removed | set(report.kept) == present
        assert not removed & set(report.kept)
        # Which damaged checkpoints still count depends on what the pruning process has read before.
        intact = [ref for ref in history if not model.may_be_unreadable(ref)]
        certain = [ref for ref in history[-n:] if ref in intact]
        assert not removed & {*certain, *history[-1:]}
        own = [ref for ref in present if ref.lineage == model.newest]
        parent = model.parents[model.newest]
        resumed = set() if own else {mark.base for mark in model.marks if mark.ref == parent}
        assert not removed & resumed & set(history)
        if len(intact) == len(history):
            assert removed & set(history) == set(history[:-n]) - resumed
        behind = present - set(history)
        assert removed & behind == (behind if len(own) >= 2 else set())
        usable, gone = set(model.usable_marks()), set(report.removed_marks)
        without_base = {mark for mark in model.marks if mark.base not in present - removed}
        marks_behind = {mark for mark in set(model.marks) - usable if mark.ref.lineage < model.newest}
        assert gone - without_base == (marks_behind - without_base if len(own) >= 2 else set())
        assert without_base <= gone
        for mark in gone:
            del model.marks[mark]
        for ref in removed:
            del model.saved[ref], model.named[ref]
        needed = {key for ref in model.saved if not model.may_be_unreadable(ref) for key in model.named[ref]}
        assert not needed & set(report.removed_packs)
        assert needed <= self.keys()

    def keys(self) -> set[str]:
        return {info.key for info in self.inner.list()}

    @staticmethod
    def streams(state: State) -> list[ic.IteratorState]:
        return [ic.IteratorState(name, iter(elements)) for name, elements in state]


BRIEF = settings(
    max_examples=20,
    stateful_step_count=30,
    deadline=None,
    # Not `explain`: it traces every line, which takes minutes here.
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.mark.timeout(600)  # for shrinking, if it ever fails
class TestStore(StoreMachine.TestCase):
    settings = BRIEF
