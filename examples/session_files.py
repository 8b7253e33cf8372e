"""The files of an experiment: its record, which outlives a crash, and those that a user names."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from brainfast.errors import BrainfastError

T = TypeVar("T")


class Shown(NamedTuple):
    """A line of the record; trial: number of the choice, None for a fallback."""

    trial: int | None
    image: str
    onset_s: float


class Record:
    """SESSION.csv: what was shown, written before the next frame is drawn.

    torn: the end of a last line that a power cut left; `begin` takes it out of the file.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.shown: list[Shown] = []
        if path.exists() and not resume:
            raise BrainfastError(
                str(path),
                expected="a new file",
                got="one that is there",
                remedy="choose another --session, or go on with this one: --resume",
            )
        self.torn = b""
        self._path, self._size = path, 0  # bytes of whole lines
        if path.exists():
            self._read(of_user(str(path), "a file", path.read_bytes))

    def begin(self) -> None:
        """Open the file, once the session is there that it tells of."""
        self._file = of_user(
            str(self._path),
            "a file that can be written",
            lambda: self._path.open("a", encoding="utf-8", newline="", buffering=1),
        )
        self._file.truncate(self._size)
        self._table = csv.writer(self._file)

    def _read(self, data: bytes) -> None:
        """Take the whole lines; a power cut tears the last one."""
        self._size = data.rfind(b"\n") + 1
        self.torn = data[self._size :]
        lines = data[: self._size].decode(errors="backslashreplace").splitlines()
        for number, line in enumerate(csv.reader(lines), start=1):
            try:
                trial, image, onset = line
                self.shown.append(Shown(int(trial) if trial else None, image, float(onset)))
            except ValueError as error:
                raise BrainfastError(
                    f"{self._path}, line {number}",
                    expected="trial,image,onset",
                    got=repr(",".join(line)),
                    remedy="mend the line, or take it out",
                ) from error

    def add(self, shown: Shown) -> None:
        self.shown.append(shown)
        self._table.writerow(shown)

    @property
    def trials(self) -> list[int]:
        """Choices that were shown."""
        return [shown.trial for shown in self.shown if shown.trial is not None]


def load(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def of_user(name: str, expected: str, read: Callable[[], T]) -> T:
    """What a file of the user's gives; one that cannot be used is told in a line."""
    try:
        return read()
    except (OSError, UnicodeDecodeError) as error:
        raise BrainfastError(name, expected=expected, got=str(error)) from error
