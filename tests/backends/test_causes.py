"""What led to an error is shown without secrets, as deep as the chain goes."""

from __future__ import annotations

import pickle
import traceback

import pytest

from input_checkpoint import BackendError, BackendPermissionError, ObjectNotFoundError
from input_checkpoint.backends.causes import RedactedError, raise_from, redact_causes
from tests.support.planted_secrets import everything_shown

LEAK = "GET https://host/run?sig=hunter2PW&se=2030"


def raised_with_a_chain() -> BackendError:
    try:
        try:
            try:
                raise KeyError(LEAK)
            except KeyError as error:
                raise ConnectionError(LEAK) from error
        except ConnectionError:
            raise ValueError(LEAK)  # noqa: B904 - without "from"
    except ValueError as error:
        try:
            raise_from(BackendPermissionError("no access", uri="s3://bucket/run", key="key"), error)
        except BackendError as problem:
            return problem


def test_the_chain_holds_no_secret() -> None:
    assert "hunter2PW" not in everything_shown(raised_with_a_chain())


def test_the_chain_still_tells_what_happened_and_where() -> None:
    error = raised_with_a_chain()
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    for line in ("KeyError: 'GET https://host/run?***", "ConnectionError: GET", "ValueError: GET"):
        assert line in text
    assert text.count("in raised_with_a_chain") == 4


def test_an_error_of_ours_stays_in_the_chain() -> None:
    inner = ObjectNotFoundError("no key")
    with pytest.raises(BackendError) as raised:
        raise_from(BackendError("no access"), inner)
    assert raised.value.__cause__ is inner


def test_a_suppressed_context_stays_out() -> None:
    error = BackendError("no access")
    error.__context__ = ValueError(LEAK)
    error.__suppress_context__ = True
    redact_causes(error)
    assert error.__context__ is None
    assert error.__suppress_context__


def test_a_circle_of_causes_ends() -> None:
    one, two = ValueError(LEAK), KeyError(LEAK)
    one.__cause__, two.__cause__ = two, one
    error = BackendError("no access")
    error.__cause__ = one
    redact_causes(error)
    assert "hunter2PW" not in everything_shown(error)


def test_a_message_that_cannot_be_built_is_left_out() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError(LEAK)

    with pytest.raises(BackendError) as raised:
        raise_from(BackendError("no access"), BrokenError())
    assert isinstance(raised.value.__cause__, RedactedError)
    assert str(raised.value.__cause__).endswith("BrokenError")


def test_an_error_survives_pickling() -> None:
    error = raised_with_a_chain()
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.uri, copy.key, type(copy)) == (str(error), error.uri, error.key, type(error))


@pytest.mark.parametrize("cls", [BackendError, ObjectNotFoundError])
def test_no_error_can_be_made_with_a_secret(cls: type[BackendError]) -> None:
    error = cls(f"refused: {LEAK}", uri="s3://AKIA:hunter2PW@bucket/run?sig=hunter2PW", key="key")
    assert str(error) == "refused: GET https://host/run?***"
    assert error.uri == "s3://***@bucket/run?***"
