"""The clock."""

from __future__ import annotations

import time


def getTime() -> float:
    return time.monotonic()
