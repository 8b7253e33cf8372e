"""The clocks of a session and of a rehearsal."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Protocol

from ..errors import BrainfastError


class Clock(Protocol):
    """What a session asks the time of; tests bring their own."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, UTC."""
        ...

    def wait_for(
        self, condition: threading.Condition, ready: Callable[[], bool], seconds: float
    ) -> bool:
        """Wait on a condition that is held until `ready`, at most so long; whether it is."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time()

    def wait_for(
        self, condition: threading.Condition, ready: Callable[[], bool], seconds: float
    ) -> bool:
        """Wait on a condition that is held until `ready`, at most so long; whether it is."""
        return condition.wait_for(ready, max(0.0, seconds))


def lsl_clock() -> Callable[[], float] | None:
    """The clock of Lab Streaming Layer in seconds, where pylsl and its library are installed."""
    try:
        clock: Callable[[], float] = import_module("pylsl").local_clock
    except (ImportError, RuntimeError, OSError, AttributeError):
        # Without liblsl, pylsl raises RuntimeError when it is imported.
        return None
    return clock


def check_speed(speed: float) -> None:
    """Refuse a pace at which no time would pass."""
    if not speed > 0:
        raise BrainfastError("speed", expected="a number above 0, or inf", got=str(speed))


class ExperimentClock:
    """Seconds of an experiment that runs `speed` times as fast as the wall clock.

    With speed infinite nobody waits: the clock jumps to the time that is asked for.
    """

    def __init__(self, speed: float = 1.0) -> None:
        check_speed(speed)
        self.speed = speed
        self._start = time.monotonic()
        self._jumped = 0.0

    def now(self) -> float:
        """Seconds since the start of the experiment."""
        if math.isinf(self.speed):
            return self._jumped
        return (time.monotonic() - self._start) * self.speed

    def sleep_until(self, moment: float) -> None:
        """Return at `moment`, or at once where it has passed."""
        if math.isinf(self.speed):
            self._jumped = max(self._jumped, moment)
            return
        # A sleep may end early by less than the clock's resolution.
        while (left := moment - self.now()) > 0:
            time.sleep(left / self.speed)
