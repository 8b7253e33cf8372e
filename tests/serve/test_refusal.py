"""Refusals and limits: a code for programs, one line for people."""

from __future__ import annotations

import inspect
import logging
from typing import Any, get_args

import msgspec
import pytest

from brainfast.errors import BrainfastError
from brainfast.loop import Session, options
from brainfast.serve.limits import Limits
from brainfast.serve.refusal import CODES, HTTP_STATUS, ErrorReply, Refusal, refusal_of
from brainfast.serve.requests import OpenSession, Strategy


def test_every_code_has_its_status() -> None:
    assert set(CODES) == set(HTTP_STATUS)
    refusals = {code: Refusal(code, "x", expected="y", got="z") for code in CODES}
    assert {code: one.status for code, one in refusals.items()} == {
        "invalid": 400,
        "unauthorised": 401,
        "not_found": 404,
        "conflict": 409,
        "too_large": 413,
        "busy": 429,
        "too_many": 429,
        "stalled": 503,
        "draining": 503,
        "starting": 503,
        "timed_out": 504,
        "internal": 500,
    }


def decoding(data: bytes) -> Exception:
    """What msgspec says of a message."""
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(data, type=OpenSession)
    return caught.value


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Refusal("busy", "a", expected="b", got="c"), "busy", "a: expected b, got c"),
        (
            BrainfastError("a", expected="b", got="c", remedy="d"),
            "invalid",
            "a: expected b, got c; d",
        ),
        (decoding(b'{"strategy": "best"}'), "invalid", "Invalid enum value 'best'"),
        (decoding(b'{"what": 1}'), "invalid", "unknown field `what`"),
        (decoding(b"{"), "invalid", "truncated"),
        (TimeoutError(), "timed_out", "request"),
    ],
)
def test_any_error_is_a_refusal(
    error: Exception, code: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = refusal_of(error)
    assert (found.code, line in str(found)) == (code, True)
    assert found.reply() == ErrorReply(found.code, str(found), found.retry_after_s)
    assert not caplog.records


def test_a_defect_is_told_in_a_line_and_logged_in_full(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "brainfast.serve"):
        try:
            raise KeyError("a secret\nof the server")
        except KeyError as error:
            found = refusal_of(error)
    assert found.code == "internal"
    assert "secret" not in str(found)
    assert "\n" not in str(found)
    assert "Traceback" in caplog.text
    assert "secret" in caplog.text


def test_what_was_asked_is_not_quoted_without_end() -> None:
    reply = Refusal("invalid", "objective", expected="one", got="x" * 10**6).reply()
    assert len(reply.error) < 1100


@pytest.mark.parametrize("name", Limits.__dataclass_fields__)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "3", None, True])
def test_a_limit_is_a_number_above_0(name: str, value: Any) -> None:
    with pytest.raises(BrainfastError, match=name):
        Limits(**{name: value})


def test_a_request_has_what_a_session_takes() -> None:
    session = inspect.signature(Session).parameters
    for field in msgspec.structs.fields(OpenSession):
        if field.name in ("objective", "subject", "resume"):
            continue
        default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        taken = session[field.name].default
        assert default == (list(taken) if isinstance(taken, tuple) else taken)
    assert get_args(Strategy) == get_args(options.Strategy)


def test_counts_are_whole() -> None:
    with pytest.raises(BrainfastError, match="images"):
        Limits(images=2.5)
    assert Limits(timeout_s=2).timeout_s == 2
