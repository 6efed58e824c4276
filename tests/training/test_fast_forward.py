"""Between two checkpoints, the input is drawn up to the mark of the model, and only if that can be proven."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.checkpoint import MarkRef
from input_checkpoint.format.keys import mark_key
from input_checkpoint.training.fast_forward import FastForward, MarkRefusedError
from input_checkpoint.training.fast_forward_limit import FastForwardLimit
from input_checkpoint.training.progress import Progress
from input_checkpoint.training.resuming import Resumed, Resumer
from tests.support.counting import Counter, digest_of

WORKER = "main"


class Models:
    """Model checkpoints, by what identifies them."""

    def __init__(self, **digests: str) -> None:
        self._digests = digests

    def digest(self, step: int):
        return self._digests.get(f"step{step}")


NO_MODELS = Models()


@pytest.fixture
def store(memory: MemoryBackend) -> ic.CheckpointStore:
    return ic.CheckpointStore.open(memory, create=True)


@pytest.fixture
def run(store: ic.CheckpointStore):
    """A run with a checkpoint of step 10, where the input is at 100."""
    run = store.begin_run(WORKER)
    counter = Counter()
    counter.value = 100
    run.save(10, counter.snapshot().states())
    return run


@pytest.fixture
def base(store, run) -> ic.CheckpointRef:
    return store.history(WORKER)[-1]


def mark(run, base, step=20, draws=50, digest=None, model=None) -> MarkRef:
    digests = {"Counter": digest or digest_of(100 + draws)} if draws else {}
    return run.mark(step, base, {"Counter": draws}, digests, model)


def forward(store, limit=None, **options) -> FastForward:
    progress = Progress(store.uri, logging.getLogger("tests"))
    return FastForward(store, FastForwardLimit.of(limit), progress, **options)


def resume(store, step=20, mode="aligned", fast_forward=None, counter=None, model=NO_MODELS):
    counter = counter or Counter()
    resumer = Resumer(store, WORKER, mode)
    fast_forward = fast_forward or forward(store)
    listing = store.list_worker(WORKER)
    try:
        resumed = resumer.restore(counter, step, listing, model, fast_forward=fast_forward)
    except MarkRefusedError:
        resumed = resumer.restore(counter, step, listing, model, fast_forward=fast_forward)
    return resumed, counter.value


@pytest.mark.parametrize("mode", ["aligned", "exact"])
def test_the_input_is_drawn_up_to_the_mark(store, run, base, mode):
    written = mark(run, base)
    resumed, value = resume(store, mode=mode)
    assert value == 150
    assert resumed == Resumed(written.ref, base, store.read_mark(written))


@pytest.mark.parametrize("draws", [0, 1, 2, 3, 1000])
def test_any_number_of_batches_may_be_drawn(store, run, base, draws):
    mark(run, base, draws=draws)
    assert resume(store)[1] == 100 + draws


def test_a_checkpoint_of_the_step_is_used_and_not_its_mark(store, run, base):
    mark(run, base)
    counter = Counter()
    counter.value = 7
    saved = run.save(20, counter.snapshot().states()).ref
    resumed, value = resume(store)
    assert (resumed.ref, value) == (saved, 7)


def test_a_mark_replaces_a_damaged_checkpoint_of_its_step(store, run, base, memory):
    mark(run, base)
    saved = run.save(20, Counter().snapshot().states()).ref
    memory.put(f"checkpoints/main/{saved.lineage:08d}/{saved.step:012d}.manifest", b"damaged")
    assert resume(store)[1] == 150


def test_of_two_marks_of_a_step_the_one_with_the_newest_base_is_used(store, run, base):
    mark(run, base, step=30)
    counter = Counter()
    counter.value = 120
    newer = run.save(12, counter.snapshot().states()).ref
    run.mark(30, newer, {"Counter": 30}, {"Counter": digest_of(150)})
    resumed, value = resume(store, step=30)
    assert (resumed.base, value) == (newer, 150)


def test_without_a_mark_of_the_step_an_older_one_saves_data_from_being_seen_again(store, run, base, caplog):
    older = mark(run, base, step=15, draws=20)
    mark(run, base, step=12, draws=5)
    resumed, value = resume(store)
    assert (resumed.ref, value) == (older.ref, 120)
    assert "5 steps of data will be seen again" in caplog.text


def test_exact_uses_no_older_mark(store, run, base):
    mark(run, base, step=15)
    with pytest.raises(ic.CheckpointNotFoundError, match="step 20"):
        resume(store, mode="exact")


class TestARefusal:
    def test_another_last_batch_is_refused_and_the_older_checkpoint_used(self, store, run, base, caplog):
        mark(run, base, digest=digest_of(151))
        resumed, value = resume(store)
        assert (resumed.ref, value) == (base, 100)
        assert "could not be fast-forwarded from step 10 to step 20" in caplog.text
        assert "10 steps of data will be seen again" in caplog.text

    def test_it_is_an_error_if_the_step_must_be_exact(self, store, run, base):
        mark(run, base, digest=digest_of(151))
        with pytest.raises(ic.CheckpointNotFoundError, match="step 20"):
            resume(store, mode="exact")

    def test_data_that_ends_too_early_is_refused(self, store, run, base, caplog):
        mark(run, base)
        assert resume(store, counter=Counter(length=149))[1] == 100
        assert "the data has ended" in caplog.text

    def test_an_input_that_is_in_doubt_is_refused(self, store, run, base, caplog):
        mark(run, base)
        counter = Counter()
        counter.reason_to_doubt = "an unseeded shuffle began another pass"
        assert resume(store, counter=counter)[1] == 100
        assert counter.reason_to_doubt in caplog.text

    def test_a_refused_mark_is_not_tried_again(self, store, run, base):
        mark(run, base, digest=digest_of(151))
        fast_forward = forward(store)
        resume(store, fast_forward=fast_forward)
        assert fast_forward.has_failed
        assert fast_forward.candidates(store.list_worker(WORKER), 20) == []


def test_a_mark_that_a_restart_has_left_behind_is_used_for_its_own_model(store, run, base):
    written = mark(run, base, model="aa")
    store.begin_run(WORKER, base)
    resumed, value = resume(store, model=Models(step20="aa"))
    assert (resumed.ref, value) == (written.ref, 150)


class TestNotTried:
    def draws(self, store, **options) -> bool:
        """Return whether a resume draws anything."""
        counter = Counter()
        resume(store, counter=counter, **options)
        return bool(counter.skipped)

    def test_a_mark_that_was_written_with_another_model(self, store, run, base, caplog):
        mark(run, base, model="aa")
        assert self.draws(store, model=Models(step20="aa"))
        assert not self.draws(store, model=Models(step20="bb"))
        assert "was written with another model" in caplog.text

    def test_a_mark_without_a_digest_beside_one_that_was_written_with_another_model(self, store, run, base):
        mark(run, base)
        newer = run.save(15, Counter().snapshot().states()).ref
        run.mark(20, newer, {"Counter": 50}, {"Counter": digest_of(50)}, "aa")
        assert self.draws(store, model=Models(step20="aa"))
        assert not self.draws(store, model=Models(step20="bb"))

    def test_a_damaged_mark(self, store, run, base, memory, caplog):
        written = mark(run, base)
        memory.put(mark_key(written), b"damaged")
        assert not self.draws(store)
        assert mark_key(written) in caplog.text

    def test_a_mark_whose_base_is_damaged(self, store, run, base, memory):
        mark(run, base)
        memory.put(f"checkpoints/main/{base.lineage:08d}/{base.step:012d}.manifest", b"damaged")
        assert not self.draws(store)

    def test_a_mark_of_a_later_step(self, store, run, base):
        mark(run, base, step=25)
        assert not self.draws(store)

    @pytest.mark.parametrize("mode", ["latest", "fresh"])
    def test_in_the_other_modes(self, store, run, base, mode):
        mark(run, base)
        assert not self.draws(store, mode=mode)

    def test_with_a_pipeline_that_does_not_repeat(self, store, run, base):
        mark(run, base)
        assert not self.draws(store, fast_forward=forward(store, is_possible=False))

    def test_more_steps_than_are_allowed_are_said(self, store, run, base, caplog):
        mark(run, base)
        assert not self.draws(store, fast_forward=forward(store, 9))
        assert "it is 10 steps from its base, more than max_fast_forward allows" in caplog.text

    @pytest.mark.parametrize(("limit", "expected"), [(0, False), (9, False), (10, True), (None, True)])
    def test_more_steps_than_are_allowed(self, store, run, base, limit, expected):
        mark(run, base)
        assert self.draws(store, fast_forward=forward(store, limit)) is expected

    def test_a_mark_that_a_restart_has_left_behind_without_proof(self, store, run, base):
        mark(run, base)
        store.begin_run(WORKER, base)
        assert not self.draws(store, model=Models(step20="aa"))


def test_a_fast_forward_that_takes_too_long_is_stopped(store, run, base, caplog):
    mark(run, base, draws=10_000)
    limited = forward(store, timedelta(microseconds=1))
    assert resume(store, fast_forward=limited)[1] == 100
    assert not limited.has_failed
    assert "longer than max_fast_forward" in caplog.text


def test_a_fast_forward_says_how_far_it_went(store, run, base, caplog):
    mark(run, base)
    with caplog.at_level(logging.INFO):
        resume(store)
    assert "Fast-forwarded the input from step 10 to step 20: 50 batches drawn" in caplog.text


def test_a_long_fast_forward_says_how_much_time_is_left(store, run, base, caplog, monkeypatch):
    monkeypatch.setattr("input_checkpoint.training.fast_forward._REPORT_SECONDS", 0.0)
    mark(run, base)
    with caplog.at_level(logging.INFO):
        resume(store)
    assert "of 50 batches drawn, about 0 s left" in caplog.text


class TestLimit:
    @pytest.mark.parametrize("limit", ["10", 1.5, True, object()])
    def test_it_is_a_number_of_steps_or_a_time(self, limit):
        with pytest.raises(
            TypeError, match="max_fast_forward must be a number of steps, a timedelta or None"
        ):
            FastForwardLimit.of(limit)

    @pytest.mark.parametrize("limit", [-1, timedelta(seconds=-1)])
    def test_it_is_not_negative(self, limit):
        with pytest.raises(ValueError, match="must not be negative"):
            FastForwardLimit.of(limit)

    @pytest.mark.parametrize("limit", [0, timedelta(0)])
    def test_zero_forbids_every_fast_forward(self, limit):
        assert FastForwardLimit.of(limit).forbids_all
