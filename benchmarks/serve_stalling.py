"""`brainfast serve` with a trunk that waits while the file $STALL_FILE exists, as one does whose
GPU or disk hangs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from brainfast import cli
from brainfast.runtimes import TorchRuntime

STALL = Path(os.environ["STALL_FILE"])
run = TorchRuntime.__call__


def wait_then_run(self: TorchRuntime, pixels: Any) -> Any:
    """The trunk, later."""
    while STALL.exists():
        time.sleep(0.01)
    return run(self, pixels)


TorchRuntime.__call__ = wait_then_run  # type: ignore[method-assign]
sys.argv[1:1] = ["serve"]
cli.main()
