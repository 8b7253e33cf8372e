"""Where the command line ends: every way to fail becomes one line on stderr and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import typer

from .errors import BrainfastError

USER_ERROR = 2
BROKEN_PIPE = 141  # what a shell gives for a program that SIGPIPE ended

# The base of typer's usage errors, which lies in click or, later, in typer's own copy of it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class Stopped(BaseException):
    """The user or the system asked the program to end."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def resumable(remedy: str) -> Iterator[None]:
    """Add to the line that tells of a stop how to go on."""
    try:
        yield
    except Stopped as stopped:
        raise Stopped(stopped.code, f"{stopped}; {remedy}") from None


def run(command: Callable[..., Any]) -> NoReturn:
    """Run `command`, a typer app, on the arguments of this process, and exit.

    Codes: 0 done; 2 a mistake that the user can mend, or a refusal of the system (disk, memory,
    permission); 130 and 143 stopped by SIGINT and SIGTERM; 141 nobody reads the output any more.
    What is left is a defect of brainfast and keeps its traceback.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        arguments = sys.argv[1:] or ["--help"]
        code = command(arguments, prog_name="brainfast", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except Stopped as stopped:
        _end(str(stopped), stopped.code)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        _end(message, USER_ERROR)
    sys.exit(code if isinstance(code, int) else 0)


def explain(error: Exception) -> str | None:
    """One line for an error that is the user's or the system's; None for a defect."""
    if isinstance(error, BrainfastError):
        return str(error)
    if isinstance(error, UsageError):
        return _explain_usage(error)
    if isinstance(error, OSError) and error.errno is not None:
        return _one_line(
            str(error.filename or "system"),
            expected="a file or folder that can be used",
            got=error.strerror or str(error),
            remedy="check the path, its permissions and the free space",
        )
    if isinstance(error, MemoryError) or _is_torch_memory(error):
        return _one_line(
            "memory",
            expected="enough of it",
            got=str(error) or "none left",
            remedy="close other programs, or take fewer images, layers or vertices",
        )
    return None


def _explain_usage(error: Any) -> str:
    text = " ".join(str(error.format_message()).split())
    context = error.ctx
    return f"{text.rstrip('.')}; see {context.command_path if context else 'brainfast'} --help"


def _is_torch_memory(error: Exception) -> bool:
    """torch has a class for a full GPU and only a message for full host memory."""
    full = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, RuntimeError) and full


def _one_line(name: str, *, expected: str, got: str, remedy: str) -> str:
    return str(BrainfastError(name, expected=expected, got=got.splitlines()[0], remedy=remedy))


def _stop(number: int, _frame: FrameType | None) -> None:
    raise Stopped(128 + number, f"stopped by {signal.Signals(number).name}")


def _end(message: str, code: int) -> NoReturn:
    typer.echo(f"brainfast: {message}", err=True)
    sys.exit(code)
