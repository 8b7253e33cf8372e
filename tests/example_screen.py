"""The PsychoPy example on a stand-in for its window, which counts what its thread waits for."""

from __future__ import annotations

import argparse
import csv
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brainfast.loop import read_log
from example_world import Server, grey


class Waits:
    """How often this thread slept or waited for another."""

    def __init__(self) -> None:
        self.count = 0
        self._thread = threading.current_thread()

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **named: Any) -> Any:
            self.count += threading.current_thread() is self._thread
            return function(*arguments, **named)

        return count


class StubScreen:
    """Counts frames, and what was waited for between them; `at_frame` may do things meanwhile."""

    def __init__(self, waits: Waits, at_frame: Callable[[StubScreen], None] | None = None) -> None:
        self.frames, self.waited, self.escape = 0, 0, False
        self.levels: list[int] = []
        self._waits, self._at_frame = waits, at_frame
        self._before: int | None = None
        self._level, self._was_picture = -1, False
        self._clock = threading.Event()  # its wait is taken off again: it is the screen's

    def now(self) -> float:
        return time.monotonic()

    def prepare(self, image: Any) -> None:
        self._level = image.getpixel((0, 0))[0]

    def frame(self, picture: bool) -> float:
        if self._before is not None:
            self.waited += self._waits.count - self._before
        if picture and not self._was_picture:
            self.levels.append(self._level)
        self._was_picture = picture
        self.frames += 1
        if self._at_frame is not None:
            self._at_frame(self)
        self._clock.wait(1 / 240)
        self._before = self._waits.count
        return time.monotonic()

    def stop(self) -> bool:
        return self.escape


class Run:
    """Runs the example in a folder of its own, as its command line does."""

    def __init__(self, example: Any, server: Server, waits: Waits, **options: Any) -> None:
        self._example, self._waits = example, waits
        self.server, self.options = server, options

    def __call__(
        self, at_frame: Callable[[StubScreen], None] | None = None, **changed: Any
    ) -> StubScreen:
        options = self.options | changed
        given = argparse.Namespace(address=self.server.zmq, **options)
        timing = self._example.Timing(onsets=0.8, image=0.1, ask=0.5, load=0.1, last_betas=60.0)
        self.screen = StubScreen(self._waits, at_frame)
        self._example.run(given, lambda: self.screen, timing)
        return self.screen

    @property
    def rows(self) -> list[tuple[int | None, str]]:
        path = Path(f"{self.options['session']}.csv")
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return [(int(trial) if trial else None, image) for trial, image, _ in csv.reader(file)]

    @property
    def trials(self) -> list[int]:
        return [trial for trial, _ in self.rows if trial is not None]

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(read_log(self.server.logs / f"{self.options['session']}.jsonl").events)

    def of(self, kind: str) -> dict[int, dict[str, Any]]:
        return {event["trial"]: event for event in self.events if event["event"] == kind}


def check_shown(run: Run, levels: list[int]) -> None:
    """What was on the screen is what was recorded, and what was recorded was chosen."""
    assert levels == [grey(image) for _, image in run.rows]
    choices = run.of("choice")
    assert [image for trial, image in run.rows if trial is not None] == [
        choices[trial]["image"] for trial in run.trials
    ]


class CrashError(Exception):
    """Of the program that draws."""
