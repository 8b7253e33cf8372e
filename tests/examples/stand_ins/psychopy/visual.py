"""A window that writes down the level of grey of every picture that comes onto it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


class Window:
    def __init__(self, *, fullscr: bool) -> None:
        self.drawn = self._shown = -1
        self._file = Path(os.environ["BRAINFAST_TEST_FLIPS"])

    def flip(self) -> float:
        time.sleep(1 / 120)
        if self.drawn != self._shown and self.drawn >= 0:
            with self._file.open("a") as file:
                file.write(f"{self.drawn}\n")
        self._shown = self.drawn
        return time.monotonic()


class TextStim:
    def __init__(self, window: Window, *, text: str) -> None:
        self._window = window

    def draw(self) -> None:
        self._window.drawn = -1


class ImageStim:
    image: Any

    def __init__(self, window: Window) -> None:
        self._window = window

    def draw(self) -> None:
        self._window.drawn = self.image.getpixel((0, 0))[0]
