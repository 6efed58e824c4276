"""What TensorFlow restores wrongly, shown with TensorFlow alone, and what we say of it in advance."""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.state import ElementBatch, StoredState
from input_checkpoint.tensorflow.iterators import GraphIterators, external_state_policy_number
from input_checkpoint.tensorflow.known_faults import (
    KNOWN_FAULTS,
    check_known_faults,
    find_faults,
    known_faults_table,
)
from tests.support.pipelines import FILES, Build, Dataset, increment, numbers, read
from tests.support.restoring import interleaved, resumed, uninterrupted

v1 = tf.compat.v1
CSV, MIXTURE, REPEATED, CONCATENATED = KNOWN_FAULTS


def shuffled(dataset: Any, seed: int = 1, buffer: int = 7, **options: Any) -> Any:
    return dataset.shuffle(buffer, seed=seed, **options)


def csv(file: str, header: bool) -> Any:
    return tf.data.experimental.CsvDataset(file, [tf.int64, tf.float32], header=header).batch(4)


def flat(batches: list[Any]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def run_apart(name: str) -> subprocess.CompletedProcess[str]:
    """Run what may end its process."""
    return subprocess.run(command(name), capture_output=True, text=True, timeout=100)


def ends_after_the_restore(name: str, within: float) -> bool:
    """Return whether a process ends within some seconds after it has restored its iterator."""
    with subprocess.Popen(command(name), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "restored\n"
            process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        finally:
            process.kill()
    return True


def command(name: str) -> list[str]:
    return [sys.executable, "-m", "tests.support.restoring", name]


def untuned(build: Build) -> Build:
    """Return a pipeline that reads ahead only where it says so: TensorFlow adds no prefetch of its own."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    return lambda: build().with_options(options)


class TestTensorFlowsOwnFaults:
    """If one of these fails, TensorFlow no longer has the fault, and its row can go."""

    def test_a_csv_reader_with_a_header_loses_most_rows(self, tmp_path: Path) -> None:
        file = tmp_path / "rows.csv"
        file.write_text("id,x\n" + "".join(f"{number},{number / 7:.3f}\n" for number in range(400)))
        found = resumed(lambda: csv(str(file), header=True), saved_at=3, count=100)
        assert len(found) < 10

    def test_a_csv_reader_without_a_header_is_exact(self, tmp_path: Path) -> None:
        file = tmp_path / "rows.csv"
        file.write_text("".join(f"{number},{number / 7:.3f}\n" for number in range(400)))
        expected = uninterrupted(lambda: csv(str(file), header=False), 100)
        assert resumed(lambda: csv(str(file), header=False), saved_at=3, count=100) == expected[3:]

    def test_a_mixture_of_which_one_dataset_has_ended_never_ends(self) -> None:
        assert not ends_after_the_restore("mixture", within=3)

    @pytest.mark.parametrize(
        ("build", "saved_at"),
        [
            pytest.param(lambda: shuffled(numbers(20)).batch(3).repeat(), 7, id="a last, partial batch"),
            pytest.param(lambda: shuffled(numbers(20)).batch(2).prefetch(2).repeat(), 9, id="a prefetch"),
            pytest.param(
                lambda: shuffled(numbers(20)).batch(2).map(increment, num_parallel_calls=2).repeat(),
                9,
                id="a parallel map",
            ),
            pytest.param(
                lambda: shuffled(shuffled(numbers(20)), seed=2).batch(2).repeat(), 8, id="two shuffles"
            ),
        ],
    )
    def test_passes_after_a_consumed_shuffle_come_in_another_order_and_are_complete(
        self, build: Build, saved_at: int
    ) -> None:
        assert find_faults_in(build) == [REPEATED]
        expected = flat(uninterrupted(untuned(build), 60))
        drawn = flat(uninterrupted(untuned(build), saved_at))
        found = drawn + flat(resumed(untuned(build), saved_at, 60))
        assert found[:20] == expected[:20]
        assert sorted(found[20:40]) == sorted(expected[20:40])
        assert found != expected

    def test_passes_after_a_concatenated_shuffle_come_in_another_order_and_are_complete(self) -> None:
        def build() -> Any:
            return shuffled(numbers(20)).concatenate(Dataset.range(100, 120)).repeat()

        expected = uninterrupted(untuned(build), 80)
        found = resumed(untuned(build), 25, 80)
        assert found[:15] == expected[25:40]
        assert sorted(found[15:]) == sorted(expected[40:])
        assert found[15:] != expected[40:]


class TestCures:
    """What the table advises is exact, and not reported."""

    @pytest.mark.parametrize(
        "build",
        [
            pytest.param(
                lambda: shuffled(numbers(20)).repeat().batch(3), id="repeat after the first shuffle"
            ),
            pytest.param(
                lambda: shuffled(shuffled(numbers(20)).repeat().map(increment), seed=2).batch(2),
                id="repeat between two shuffles",
            ),
            pytest.param(
                lambda: shuffled(numbers(20).concatenate(Dataset.range(100, 120))).repeat(),
                id="shuffle after concatenate",
            ),
            pytest.param(
                lambda: (
                    shuffled(numbers(20), reshuffle_each_iteration=False).concatenate(numbers(9)).repeat()
                ),
                id="one order for all passes",
            ),
            pytest.param(
                lambda: Dataset.sample_from_datasets(
                    [numbers(10), Dataset.range(100, 140)], seed=3, stop_on_empty_dataset=True
                ),
                id="stop when a dataset has ended",
            ),
            pytest.param(
                lambda: Dataset.sample_from_datasets(
                    [numbers(10).repeat(), Dataset.range(100, 140).repeat()], seed=3
                ),
                id="repeat before mixing",
            ),
        ],
    )
    @pytest.mark.parametrize("saved_at", [0, 6, 13, 19])
    def test_the_restored_pipeline_continues_exactly(self, build: Build, saved_at: int) -> None:
        assert find_faults_in(build) == []
        assert resumed(build, saved_at, 60) == uninterrupted(build, 60)[saved_at:]

    def test_text_lines_without_the_first_one_are_exact(self, tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("id\n" + "".join(f"{number}\n" for number in range(90)))

        def build() -> Any:
            lines = tf.data.TextLineDataset(str(tmp_path / "rows.csv")).skip(1)
            return lines.map(lambda line: tf.io.decode_csv(line, [tf.constant(0, tf.int64)])[0])

        assert find_faults_in(build) == []
        assert resumed(build, 30, 90) == list(range(30, 90))


def find_faults_in(build: Build) -> list[Any]:
    (pipeline,) = read(build).values()
    return find_faults(pipeline)


def make_csv(folder: Path) -> Any:
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    return tf.data.experimental.make_csv_dataset(str(folder / "rows.csv"), 4, shuffle=False, num_epochs=1)


def header_inside(folder: Path) -> Any:
    return Dataset.from_tensor_slices(FILES).flat_map(
        lambda file: tf.data.experimental.CsvDataset(file, [tf.int64], header=True)
    )


def choosing(folder: Path) -> Any:
    return Dataset.choose_from_datasets(
        [numbers(4), numbers(5)], numbers(2).repeat(), stop_on_empty_dataset=False
    )


@pytest.mark.parametrize(
    ("build", "fault"),
    [
        pytest.param(make_csv, CSV, id="make_csv_dataset"),
        pytest.param(header_inside, CSV, id="a header in a file of many"),
        pytest.param(choosing, MIXTURE, id="choose_from_datasets"),
        pytest.param(
            lambda folder: Dataset.sample_from_datasets([numbers(4), numbers(5)]), MIXTURE, id="equal weights"
        ),
        pytest.param(
            lambda folder: numbers(3).flat_map(lambda n: choosing(folder)),
            MIXTURE,
            id="a mixture in a function",
        ),
        pytest.param(
            lambda folder: shuffled(shuffled(shuffled(numbers()))).repeat(), REPEATED, id="three shuffles"
        ),
        pytest.param(
            lambda folder: shuffled(numbers(20)).batch(2).map(increment).repeat(),
            REPEATED,
            id="a map that TensorFlow may run in parallel",
        ),
        pytest.param(
            lambda folder: numbers(3).flat_map(lambda n: shuffled(numbers()).batch(3).repeat(2)),
            REPEATED,
            id="a repeat in a function",
        ),
    ],
)
def test_it_is_recognized(build: Callable[[Path], Any], fault: Any, tmp_path: Path) -> None:
    assert find_faults_in(lambda: build(tmp_path)) == [fault]


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: tf.data.experimental.CsvDataset(FILES, [tf.int64]), id="csv without a header"),
        pytest.param(
            lambda: Dataset.choose_from_datasets(
                [numbers(4), numbers(5)], numbers(2).repeat(3), stop_on_empty_dataset=False
            ),
            id="a choice that ends",
        ),
        pytest.param(
            lambda: Dataset.sample_from_datasets([numbers(4), numbers(5).repeat()]), id="one endless dataset"
        ),
        pytest.param(lambda: shuffled(numbers()).repeat(), id="repeat after shuffle"),
        pytest.param(lambda: shuffled(numbers()).map(increment).batch(3).repeat(), id="map and batch"),
        pytest.param(lambda: shuffled(numbers()).batch(4, drop_remainder=True).repeat(), id="whole batches"),
        pytest.param(lambda: numbers().shuffle(9).batch(3).repeat(), id="a shuffle without a seed"),
        pytest.param(lambda: shuffled(numbers()).batch(3), id="one pass"),
        pytest.param(lambda: shuffled(numbers()).concatenate(numbers()), id="one concatenated pass"),
    ],
)
def test_what_tensorflow_restores_exactly_is_not_reported(build: Build) -> None:
    assert find_faults_in(build) == []


class TestPolicies:
    @staticmethod
    def check(build: Build, policy: str) -> None:
        check_known_faults(read(build).values(), external_state_policy_number(policy))

    @staticmethod
    def losing() -> Any:
        return tf.data.experimental.CsvDataset(FILES, [tf.int64], header=True)

    @staticmethod
    def reordering() -> Any:
        return shuffled(numbers()).batch(3).repeat()

    def test_fail_refuses_what_loses_data_and_names_the_cure(self) -> None:
        with pytest.raises(ic.UnsupportedPipelineError, match=r"IteratorV2 uses .*header.*skip\(1\).*'warn'"):
            self.check(self.losing, "fail")

    def test_fail_warns_of_what_reorders(self, caplog: pytest.LogCaptureFixture) -> None:
        self.check(self.reordering, "fail")
        assert "Call `repeat()` directly after the first `shuffle`" in caplog.text

    @pytest.mark.parametrize("name", ["losing", "reordering"])
    def test_warn_warns_of_both(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        self.check(getattr(self, name), "warn")
        assert [record.levelno for record in caplog.records] == [logging.WARNING]

    @pytest.mark.parametrize("name", ["losing", "reordering"])
    def test_ignore_is_silent(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        self.check(getattr(self, name), "ignore")
        assert caplog.records == []


class TestChangesThatTensorFlowDoesNotSurvive:
    """Why a changed pipeline is refused and not left to TensorFlow."""

    def test_another_shuffle_buffer_ends_the_process(self) -> None:
        assert run_apart("shuffle").returncode < 0

    @pytest.mark.parametrize("parallel", [None, 2])
    def test_another_cycle_length_is_an_error(self, parallel: Optional[int]) -> None:
        """A smaller one is undefined behavior: an endless loop, a segmentation fault, or wrong elements."""
        with pytest.raises(tf.errors.OpError, match="Failed to restore"):
            resumed(lambda: interleaved(2, parallel), 7, 30, then=lambda: interleaved(4, parallel))

    def test_another_batch_size_after_a_map_ends_the_process_or_returns_what_was_never_read(self) -> None:
        ended = run_apart("map and batch")
        if ended.returncode == 0:
            drawn = flat(json.loads(ended.stdout))
            assert drawn != list(range(31, 31 + len(drawn)))


class TestShufflesInsideFunctions:
    """TensorFlow calls them stateful. It restores them exactly, so they are saved under every policy."""

    @staticmethod
    def resumed(build: Build, saved_at: int, count: int, policy: str) -> list[Any]:
        with tf.Graph().as_default() as graph:
            following = v1.data.make_one_shot_iterator(build()).get_next()
            iterators = GraphIterators(graph, external_state_policy_number(policy))
            with v1.Session(graph=graph) as session:
                for _ in range(saved_at):
                    session.run(following)
                snapshot = iterators.snapshot(session)
                (state,) = [(each.name, list(each.elements)) for each in snapshot.states()]
                snapshot.release()
            with v1.Session(graph=graph) as session:
                name, elements = state
                whole = ElementBatch(list(range(len(elements))), elements)
                iterators.restore(session, [StoredState(name, len(elements), iter([whole]))])
                return [session.run(following).tolist() for _ in range(count - saved_at)]

    @pytest.mark.parametrize(
        "build",
        [
            pytest.param(
                lambda: (
                    numbers(6).interleave(lambda n: shuffled(Dataset.range(n * 10, n * 10 + 10)), 3).repeat()
                ),
                id="interleave",
            ),
            pytest.param(
                lambda: (
                    shuffled(numbers(6))
                    .interleave(
                        lambda n: shuffled(Dataset.range(n * 10, n * 10 + 10)), 3, num_parallel_calls=2
                    )
                    .repeat()
                ),
                id="parallel interleave of shuffled files",
            ),
            pytest.param(
                lambda: numbers(6).flat_map(lambda n: shuffled(Dataset.range(n, n + 10)).repeat(2)).repeat(),
                id="two passes of each file",
            ),
            pytest.param(
                lambda: numbers(6).flat_map(lambda n: Dataset.range(n, n + 10).cache().repeat(2)).repeat(),
                id="a cache of each file",
            ),
        ],
    )
    @pytest.mark.parametrize("saved_at", [0, 15, 70])
    def test_they_are_saved_and_continue_exactly(self, build: Build, saved_at: int) -> None:
        expected = uninterrupted(build, 150)
        assert self.resumed(build, saved_at, 150, "fail") == expected[saved_at:]

    def test_random_numbers_in_a_function_beside_a_shuffle_are_still_refused(self) -> None:
        def build() -> Any:
            return numbers(6).flat_map(
                lambda n: shuffled(numbers()).map(lambda m: m + tf.random.uniform([], 0, 9, tf.int64))
            )

        with pytest.raises(ic.UnsupportedPipelineError, match="is stateful"):
            self.resumed(build, 3, 10, "fail")

    def test_a_shuffle_that_a_map_runs_to_its_end_is_still_refused(self) -> None:
        def build() -> Any:
            return numbers().map(lambda n: n + numbers(9).shuffle(9).reduce(n, lambda total, each: each))

        with pytest.raises(ic.UnsupportedPipelineError, match="is stateful"):
            self.resumed(build, 3, 10, "fail")


class TestLockedCache:
    @staticmethod
    def begin(folder: Path) -> None:
        with tf.Graph().as_default() as graph:
            v1.data.make_one_shot_iterator(numbers().cache(str(folder / "cache")))
            GraphIterators(graph, external_state_policy_number("fail"))

    def test_the_lock_file_that_a_killed_run_left_is_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "cache_0.lockfile").touch()
        self.begin(tmp_path)
        assert f"{tmp_path}/cache_0.lockfile" in caplog.text
        assert "Delete that file" in caplog.text

    def test_a_finished_cache_is_not_reported(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "cache_0.lockfile").touch()
        (tmp_path / "cache.index").touch()
        self.begin(tmp_path)
        assert caplog.text == ""


def test_the_documentation_has_the_table_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text()
    assert known_faults_table() in text
