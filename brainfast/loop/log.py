"""The log of a session: one JSON line an event, only ever appended to, each sealed to the last."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..files import file_size

FORMAT = "brainfast session"
FORMAT_VERSION = 2
MAX_LOG_BYTES = 16 << 30
LOOK_S = 0.05  # between two looks for lines to sync

_SEAL_DIGITS = 16
_SEAL_BEFORE, _SEAL_AFTER = b',"seal":"', b'"}\n'
_TAIL = len(_SEAL_BEFORE) + _SEAL_DIGITS + len(_SEAL_AFTER)


@dataclass(frozen=True)
class LogFile:
    """What a log holds. events: one dict a whole line, the header first, `line` counted from 1.

    size: bytes of the whole lines; torn: bytes behind them, of a line that was never finished;
    seal: of the last line
    """

    path: Path
    events: tuple[dict[str, Any], ...]
    size: int
    torn: int
    seal: str

    @property
    def header(self) -> dict[str, Any]:
        """The first line."""
        return self.events[0]


class LogWriter:
    """Appends lines. A line is with the system when `append` returns; a thread syncs it soon after.

    So a killed process loses none, and a machine that loses power those of the last 50 ms and of
    the sync. The thread looks by itself and is not woken: on a busy machine whoever wakes another
    thread may have to wait until that one, and others, have run.

    stages: called with "sync" and its seconds.
    """

    def __init__(
        self, path: Path, after: LogFile | None, stages: Callable[[str, float], None], clock: Any
    ) -> None:
        self.path = path
        self._stages, self._clock = stages, clock
        flags = os.O_WRONLY | (0 if after else os.O_CREAT | os.O_EXCL)
        self._file = _opened_file(path, flags)
        _lock(self._file, path)
        if after and os.fstat(self._file).st_size != after.size + after.torn:
            os.close(self._file)
            raise _in_use(path)
        self._size = after.size if after else 0
        self._seal = after.seal if after else ""
        os.ftruncate(self._file, self._size)
        os.lseek(self._file, self._size, os.SEEK_SET)
        self._condition = threading.Condition()
        self._written = self._synced = 0
        self._closing = self._hurried = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._sync, name="brainfast-log", daemon=True)
        self._thread.start()

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one line; a disk that refuses it is a BrainfastError and leaves no part of it.

        Where a sync failed, or a part of a line is left, nothing can be trusted to follow: then
        every further line is refused, and the error says how to go on.
        """
        self._raise_error()
        if self._closing:  # its number may be another file's by now
            raise BrainfastError(str(self.path), expected="an open log", got="a closed one")
        line, seal = sealed(event, self._seal)
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(None, "a part of the line only, the disk is full")
        except OSError as error:
            self._take_back()
            self._raise_error()
            raise refused(self.path, error, "free some space and call again") from error
        self._size, self._seal = self._size + len(line), seal
        self._written += 1

    def flush(self) -> None:
        """Return when every line is on the disk; a disk that fails is a BrainfastError."""
        with self._condition:
            self._hurried = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._synced == self._written or self._error)
        self._raise_error()

    def close(self) -> None:
        """Sync what is left and let the file go; lines that are not synced are an error then."""
        if self._closing:
            return
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()
        os.close(self._file)
        self._raise_error()

    def _take_back(self) -> None:
        """Cut off a part of a line; where that fails, nothing may be glued to it."""
        try:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
        except OSError as error:
            self._error = error

    def _raise_error(self) -> None:
        if self._error is not None:
            remedy = "mend the disk, close this session and go on with Session.resume(log)"
            raise refused(self.path, self._error, remedy) from self._error

    def _sync(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closing or self._hurried, LOOK_S)
                self._hurried = False
                closing, upto = self._closing, self._written
            if upto == self._synced:
                if closing:
                    return
                continue
            start = self._clock()
            try:
                os.fsync(self._file)
            except OSError as error:
                # The system may forget what it could not write: a later sync would prove nothing.
                with self._condition:
                    self._error = error
                    self._condition.notify_all()
                return
            self._stages("sync", self._clock() - start)
            with self._condition:
                self._synced = upto
                self._condition.notify_all()


def sealed(event: Mapping[str, Any], before: str) -> tuple[bytes, str]:
    """The line of an event, and its seal: SHA-256, cut to 16 digits, of the seal before and it."""
    body = json.dumps(event, separators=(",", ":"), allow_nan=False).encode()
    seal = _seal(before, body)
    return body[:-1] + _SEAL_BEFORE + seal.encode() + _SEAL_AFTER, seal


def read_log(path: str | Path, *, betas: bool = True) -> LogFile:
    """Read a log line by line, whatever became of its writer.

    A last line without its end was torn and is left out. Any other line that is not as it was
    written, one that is missing, and a clock that runs backwards are a BrainfastError with the
    number of the line. betas: whether the events keep those that were told, which are most of a
    log, and which only a replay looks at
    """
    path = Path(path)
    _check_size(path)
    events: list[dict[str, Any]] = []
    size, torn, seal, moment = 0, 0, "", -math.inf
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                torn = len(line)
                break
            event, seal = _opened(path, number, line, seal)
            if number == 1:
                _check_header(path, event)
            if event.get("event") in ("session", "resumed"):
                moment = -math.inf  # the monotonic clock starts anew with the machine
            moment = _later(path, number, event, moment)
            if not betas:
                event.pop("measured", None)
            events.append(event)
            size += len(line)
    if not events:
        raise _no_line(path, torn)
    return LogFile(path, tuple(events), size, torn, seal)


def read_header(path: str | Path) -> dict[str, Any]:
    """The first line of a log, which alone is read; it is refused as `read_log` does."""
    path = Path(path)
    _check_size(path)
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        raise _no_line(path, len(line))
    event, _ = _opened(path, 1, line, "")
    _check_header(path, event)
    _later(path, 1, event, -math.inf)
    return event


def encode_betas(betas: NDArray[np.float32]) -> str:  # [V]
    """float32, little-endian, in base64: every bit of them."""
    return base64.b64encode(betas.astype("<f4").tobytes()).decode()


def decode_betas(text: str) -> NDArray[np.float32]:
    """Back from `encode_betas`; ValueError where it is none."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)


def line_error(path: Path, number: int, *, expected: str, got: str) -> BrainfastError:
    """An error that tells the line."""
    return BrainfastError(
        f"{path} line {number}",
        expected=expected,
        got=got,
        remedy="the log was edited or damaged: take a copy of it",
    )


def _check_size(path: Path) -> None:
    size = file_size(path)
    if size > MAX_LOG_BYTES:
        raise BrainfastError(str(path), expected=f"at most {MAX_LOG_BYTES} bytes", got=f"{size}")


def _no_line(path: Path, size: int) -> BrainfastError:
    return BrainfastError(
        str(path),
        expected="a session's log",
        got=f"{size} bytes and no whole line",
        remedy="nothing was chosen yet: delete it and start again",
    )


def _opened(path: Path, number: int, line: bytes, before: str) -> tuple[dict[str, Any], str]:
    body = line[:-_TAIL] + b"}"
    seal = line[-_TAIL:][len(_SEAL_BEFORE) : -len(_SEAL_AFTER)].decode("ascii", "replace")
    framed = line[-_TAIL:].startswith(_SEAL_BEFORE) and line.endswith(_SEAL_AFTER)
    if not framed or seal != _seal(before, body):
        raise line_error(path, number, expected="the line as it was written", got="another")
    event: dict[str, Any] = json.loads(body)
    return event, seal


def _seal(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()[:_SEAL_DIGITS]


def _check_header(path: Path, event: dict[str, Any]) -> None:
    if event.get("format") != FORMAT or event.get("format_version") != FORMAT_VERSION:
        raise BrainfastError(
            str(path),
            expected=f"{FORMAT}, format_version {FORMAT_VERSION}",
            got=f"{event.get('format')!r}, {event.get('format_version')!r}",
            remedy="read it with the brainfast that wrote it",
        )


def _later(path: Path, number: int, event: dict[str, Any], before: float) -> float:
    moment = event.get("mono_s")
    if not isinstance(moment, float) or moment < before:
        raise line_error(
            path, number, expected=f"mono_s of {before} or later", got=f"{moment}, a clock set back"
        )
    return moment


def _opened_file(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o644)
    except OSError as error:
        if not isinstance(error, FileExistsError):
            raise refused(path, error, "choose a file that can be written") from error
        folder = path.is_dir()
        raise BrainfastError(
            str(path),
            expected="a new file",
            got="a folder" if folder else "one that is there already",
            remedy=f"give {path / 'run.jsonl'}"
            if folder
            else "Session.resume(log) goes on with it",
        ) from error


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise _in_use(path) from error


def _in_use(path: Path) -> BrainfastError:
    return BrainfastError(str(path), expected="a log that nobody writes", got="another session's")


def refused(path: Path, error: OSError, remedy: str) -> BrainfastError:
    """What the system said of a log, in one line."""
    return BrainfastError(
        str(path),
        expected="a disk that takes the log",
        got=error.strerror or str(error),
        remedy=remedy,
    )
