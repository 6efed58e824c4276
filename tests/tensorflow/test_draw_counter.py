"""The distance between two positions is certain, or there is a reason why it is not."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from input_checkpoint.tensorflow.draw_counter import DrawCounter, Drawn, draws_between
from input_checkpoint.tensorflow.draws import Draw, DrawOperation, InputUse


def use(*iterators: Any, uncertain: Any = None, initializes: bool = False) -> InputUse:
    return InputUse(
        tuple(Draw(name, "fetch") for name in iterators),
        initializes,
        tuple(DrawOperation(f"next-{index}", name, uncertain) for index, name in enumerate(iterators)),
    )


@pytest.fixture
def counter() -> DrawCounter:
    return DrawCounter(["a", "b"])


def test_draws_are_counted_by_iterator(counter: DrawCounter) -> None:
    base = counter.position()
    for iterators in (["a"], ["a", "b"], ["a", "a"]):
        counter.observed(use(*iterators))
    counter.digested("a", "aa")
    counter.digested("b", "bb")
    assert draws_between(base, counter.position()) == Drawn({"a": 4, "b": 1}, {"a": "aa", "b": "bb"})


def test_a_position_does_not_change_with_the_counter(counter: DrawCounter) -> None:
    base = counter.position()
    counter.observed(use("a"))
    assert draws_between(base, base) == Drawn({"a": 0, "b": 0}, {})


def test_an_iterator_that_was_not_drawn_from_needs_no_digest(counter: DrawCounter) -> None:
    counter.observed(use("b"))
    base = counter.position()
    counter.observed(use("a"))
    counter.digested("a", "aa")
    assert draws_between(base, counter.position()) == Drawn({"a": 1, "b": 0}, {"a": "aa"})


def test_the_digest_must_be_that_of_the_last_batch(counter: DrawCounter) -> None:
    base = counter.position()
    counter.observed(use("a"))
    counter.digested("a", "aa")
    counter.observed(use("a"))
    assert draws_between(base, counter.position()) == "the last batch from iterator 'a' has no digest"


def test_a_batch_that_has_no_digest_takes_the_place_of_an_earlier_one(counter: DrawCounter) -> None:
    base = counter.position()
    counter.observed(use("a"))
    counter.digested("a", "aa")
    counter.digested("a", None)
    assert draws_between(base, counter.position()) == "the last batch from iterator 'a' has no digest"


DOUBTS: dict[str, tuple[Callable[[DrawCounter], None], str]] = {
    "an operation in a loop": (
        lambda counter: counter.observed(use("a", uncertain="it is in a loop")),
        "iterator 'a' cannot be counted: it is in a loop",
    ),
    "an iterator that is not known": (
        lambda counter: counter.observed(use(b"handle")),
        "iterator 'a' cannot be counted: operation 'next-0' draws from an iterator that cannot be found",
    ),
    "an initialization": (
        lambda counter: counter.observed(use(initializes=True)),
        "iterator 'a' cannot be counted: it may have been initialized again",
    ),
    "a run that failed": (
        lambda counter: counter.failed(use("b")),
        "iterator 'b' cannot be counted: a run that may have drawn from it failed",
    ),
    "a run outside of the hooks": (
        lambda counter: counter.untracked(use("b")),
        "iterator 'b' cannot be counted: a run outside of the session hooks",
    ),
    "an initialization outside of the hooks": (
        lambda counter: counter.untracked(use(initializes=True)),
        "iterator 'a' cannot be counted",
    ),
    "an unknown iterator outside of the hooks": (
        lambda counter: counter.untracked(use(b"handle")),
        "iterator 'a' cannot be counted",
    ),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_doubt_makes_the_distance_uncertain_until_the_next_base(doubt: str, counter: DrawCounter) -> None:
    event, reason = DOUBTS[doubt]
    base = counter.position()
    event(counter)
    found = draws_between(base, counter.position())
    assert isinstance(found, str)
    assert reason in found
    later = counter.position()
    assert draws_between(later, counter.position()) == Drawn({"a": 0, "b": 0}, {})


def test_a_doubt_about_one_iterator_is_none_about_another_before_its_draws(counter: DrawCounter) -> None:
    counter.untracked(use("b"))
    base = counter.position()
    counter.observed(use("a", "b"))
    counter.digested("a", "aa")
    counter.digested("b", "bb")
    assert draws_between(base, counter.position()) == Drawn({"a": 1, "b": 1}, {"a": "aa", "b": "bb"})


def test_a_run_that_may_draw_at_any_time_makes_every_later_distance_uncertain(counter: DrawCounter) -> None:
    counter.untracked(use("a"), lasting=True)
    base = counter.position()
    assert "outside of the session hooks" in str(draws_between(base, counter.position()))


def test_after_a_fast_forward_the_base_lies_before_its_draws() -> None:
    counter = DrawCounter(["a", "b"], {"a": 7, "b": 2}, {"a": "old", "b": "bb"})
    counter.observed(use("a"))
    counter.digested("a", "new")
    found = draws_between(counter.base, counter.position())
    assert found == Drawn({"a": 8, "b": 2}, {"a": "new", "b": "bb"})


def test_positions_of_two_sessions_are_not_compared(counter: DrawCounter) -> None:
    other = DrawCounter(["a", "b"])
    assert draws_between(counter.position(), other.position()) == (
        "the two positions belong to different sessions"
    )


def test_the_earlier_position_comes_first(counter: DrawCounter) -> None:
    base = counter.position()
    counter.observed(use("a"))
    assert "had been drawn from more often" in str(draws_between(counter.position(), base))
