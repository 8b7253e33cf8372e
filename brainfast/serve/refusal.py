"""Why a server does not answer: a code for programs, and one line for people."""

from __future__ import annotations

import logging
from typing import Literal, get_args

import msgspec

from ..errors import BrainfastError

Code = Literal[
    "invalid",
    "unauthorised",
    "not_found",
    "conflict",
    "too_large",
    "busy",
    "too_many",
    "stalled",
    "draining",
    "starting",
    "timed_out",
    "internal",
]
CODES: tuple[Code, ...] = get_args(Code)

HTTP_STATUS: dict[Code, int] = {
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

RETRY_S = 1.0  # until a server that ends may have another in its place
LONGEST_LINE = 1000  # letters: an error may quote what was asked

_log = logging.getLogger("brainfast.serve")


class ErrorReply(msgspec.Struct, frozen=True):
    """A refusal on either wire; error: one line."""

    code: Code
    error: str
    retry_after_s: float | None = None


class Refusal(BrainfastError):
    """A request that is not answered. retry_after_s: when it may be worth another try, if ever."""

    def __init__(
        self,
        code: Code,
        name: str,
        *,
        expected: str,
        got: str,
        remedy: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(name, expected=expected, got=got, remedy=remedy)
        self.code: Code = code
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status."""
        return HTTP_STATUS[self.code]

    def reply(self) -> ErrorReply:
        """As it goes over the wire."""
        line = str(self)
        short = line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."
        return ErrorReply(self.code, short, self.retry_after_s)


def draining() -> Refusal:
    """The refusal of what a server that ends takes no more."""
    return Refusal(
        "draining",
        "server",
        expected="one that takes requests",
        got="one that ends",
        remedy="ask the server that takes its place",
        retry_after_s=RETRY_S,
    )


def code_of(error: BaseException) -> Code:
    """The code that `refusal_of` would give; nothing is written down."""
    if isinstance(error, Refusal):
        return error.code
    if isinstance(error, BrainfastError | msgspec.ValidationError | msgspec.DecodeError):
        return "invalid"
    if isinstance(error, TimeoutError):
        return "timed_out"
    return "internal"


def refusal_of(error: BaseException) -> Refusal:
    """Any error as a refusal: a user's mistake keeps its line, a defect goes to the log.

    BrainfastError and messages that cannot be read are "invalid", a TimeoutError is "timed_out".
    What is left is "internal", and its traceback is logged by "brainfast.serve".
    """
    code = code_of(error)
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BrainfastError):
        return Refusal(
            code, error.name, expected=error.expected, got=error.got, remedy=error.remedy
        )
    if code == "invalid":
        return Refusal(code, "request", expected="a readable message", got=str(error))
    if code == "timed_out":
        return Refusal(
            code, "request", expected="an answer in time", got="none", remedy="try again"
        )
    _log.error("a request failed", exc_info=error)
    return Refusal(
        code,
        "request",
        expected="an answer",
        got=type(error).__name__,
        remedy="the server's log has the traceback",
    )
