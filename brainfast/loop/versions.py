"""What a session ran with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import scipy

from ..machine import cpu_model


def versions() -> dict[str, str]:
    """What may change a last bit: a log keeps it, and a replay that differs tells it."""
    try:
        own = version("brainfast")
    except PackageNotFoundError:
        own = "source tree"
    return {
        "brainfast": own,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "cpu": cpu_model(),
    }
