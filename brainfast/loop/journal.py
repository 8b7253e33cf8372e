"""The lines that a session writes: every event, with the time of all clocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BrainfastError
from .clock import Clock, lsl_clock
from .design import Design
from .design_file import design_path, save_design
from .log import LogFile, LogWriter, refused


class Journal:
    """A session's log, if it has one, and the moment of its latest event.

    record: called with "write" or "sync" and seconds, for every line
    """

    def __init__(self, clock: Clock, record: Callable[[str, float], None]) -> None:
        self._clock, self._record, self._lsl = clock, record, lsl_clock()
        self._log: LogWriter | None = None
        self._begun: list[Path] = []
        self._latest, self._closed = -np.inf, False

    def begin(self, path: Path, design: Design, header: Mapping[str, Any]) -> None:
        """A new log, and the candidates' numbers beside it."""
        try:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refused(path, error, "choose a folder that can be written") from error
        self._log = LogWriter(path, None, self._record, self._clock.monotonic)
        self._begun.append(path)
        beside = design_path(path)
        if beside.exists():
            raise BrainfastError(
                str(beside),
                expected="no such file beside a new log",
                got="that of an older log",
                remedy="choose another name, or put that log back in its place",
            )
        self._begun.append(beside)
        save_design(design, beside)
        self.append(header)

    def go_on(self, file: LogFile, event: Mapping[str, Any]) -> None:
        """A log that was read, and what is written where it ends."""
        self._log = LogWriter(file.path, file, self._record, self._clock.monotonic)
        self.append(event)

    def append(self, event: Mapping[str, Any]) -> None:
        """One line, or nothing where there is no log."""
        start = self._clock.monotonic()
        self._latest = start
        if self._log is None:
            return
        times = {"mono_s": float(start), "wall_s": float(self._clock.wall())}
        if self._lsl is not None:
            times["lsl_s"] = float(self._lsl())
        self._log.append({**event, **times})
        self._record("write", self._clock.monotonic() - start)

    def check_open(self) -> None:
        """Refuse an event after the end, or before the latest."""
        if self._closed:
            raise BrainfastError("session", expected="an open one", got="one that was closed")
        moment = self._clock.monotonic()
        if moment < self._latest:
            raise BrainfastError(
                "clock",
                expected=f"{self._latest:.6f} s or later",
                got=f"{moment:.6f} s: it went back",
            )

    def flush(self) -> None:
        """Return when every line is on the disk."""
        if self._log is not None:
            self._log.flush()

    def close(self) -> None:
        """Sync what is left; nothing can be written afterwards."""
        self._closed = True
        if self._log is not None:
            self._log.close()

    def take_back(self) -> None:
        """Close, and remove the files of a session that could not start."""
        with suppress(BrainfastError):  # the error of the start tells more
            self.close()
        for path in self._begun:
            path.unlink(missing_ok=True)
