"""What counts as the answer to a request for an object, and as the end of a listing."""

from __future__ import annotations

from typing import Optional

import pytest

from input_checkpoint.backends.answers import (
    AnswerHead,
    PageChain,
    UnexpectedAnswerError,
    requested_bytes,
)

OBJECT = b"0123456789"


def head(status: Optional[int] = 206, **headers: str) -> AnswerHead:
    return AnswerHead("GET", status, {name.replace("_", "-"): value for name, value in headers.items()})


class TestRanges:
    @pytest.mark.parametrize(
        ("start", "end", "content_range", "body"),
        [
            (2, 5, "bytes 2-4/10", b"234"),
            (2, 5, "bytes 2-4/*", b"234"),
            (8, 50, "bytes 8-9/10", b"89"),
            (8, None, "bytes 8-9/10", b"89"),
            (8, None, "bytes 8-9/*", b"89"),
        ],
    )
    def test_the_requested_one_is_returned(self, start, end, content_range, body):
        assert requested_bytes(head(content_range=content_range), body, start, end) == body

    def test_it_is_cut_out_of_a_whole_object(self):
        assert requested_bytes(head(200), OBJECT, 2, 5) == b"234"

    @pytest.mark.parametrize(
        ("content_range", "body"),
        [
            ("", b"234"),
            ("bytes 3-5/10", b"345"),
            ("bytes 2-3/10", b"23"),
            ("bytes 2-5/10", b"2345"),
            ("bytes 2-4/10", b"23"),
            ("bytes 2-4/10", b"2345"),
            ("items 2-4/10", b"234"),
        ],
    )
    def test_another_one_is_an_error(self, content_range, body):
        with pytest.raises(UnexpectedAnswerError, match="the server answered GET with"):
            requested_bytes(head(content_range=content_range), body, 2, 5)

    @pytest.mark.parametrize(
        "answer",
        [
            head(200, content_type="text/html"),
            head(200, content_type="Application/XHTML+xml; charset=utf-8"),
            head(200, content_encoding="gzip"),
            head(204),
            head(302),
            head(201),
        ],
        ids=str,
    )
    def test_what_is_no_object_is_an_error(self, answer):
        with pytest.raises(UnexpectedAnswerError):
            requested_bytes(answer, OBJECT, 0, None)


class TestPages:
    def test_a_repeated_token_is_an_error(self):
        pages = PageChain("LIST")
        pages.follow("a", entries=0)
        with pytest.raises(UnexpectedAnswerError, match="the same continuation token twice"):
            pages.follow("a", entries=1)

    def test_empty_pages_end_after_a_while(self):
        pages = PageChain("LIST")
        for number in range(999):
            pages.follow(str(number), entries=0)
        with pytest.raises(UnexpectedAnswerError, match="1000 pages without objects in a row"):
            pages.follow("999", entries=0)

    def test_any_number_of_pages_with_objects_is_followed(self):
        pages = PageChain("LIST")
        for number in range(10_000):
            assert pages.follow(str(number), entries=number % 2) == str(number)
