"""How the tests use the command line."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from brainfast import cli

TRUNK = ("--random-trunk", "--trunk", "vit_tiny_patch16_224")
RECIPE = ("--recipe", "demo", "--epochs", "3", "--layers", "0,4,11")
HOW = ("--coordinates", "fsaverage5", "--quiet")
V = 300


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def brainfast(*arguments: object) -> Answer:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = sys.argv, [signal.getsignal(number) for number in numbers]
    sys.argv = ["brainfast", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as done:
            cli.main()
    finally:
        sys.argv = before[0]
        for number, handler in zip(numbers, before[1], strict=True):
            signal.signal(number, handler)
    return Answer(int(done.value.code or 0), out.getvalue(), err.getvalue())


def start(*arguments: object, **options) -> subprocess.Popen[str]:
    """Run a command in a process of its own."""
    code = "from brainfast.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        **options,
    )


class Place(NamedTuple):
    root: Path
    subject: Path
    model: Path

    @property
    def image(self) -> Path:
        return self.subject / "test_split/test_images/test-0001_nsd-00060.png"


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def assert_one_line(done: Answer, text: str) -> None:
    assert done.code == 2, done
    assert done.err.startswith("brainfast: ")
    assert len(done.err.splitlines()) == 1, done.err
    assert text in done.err
