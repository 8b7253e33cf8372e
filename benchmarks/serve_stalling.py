"""`brainfast serve` with a trunk that waits while the file $STALL_FILE exists, as one does whose
GPU or disk hangs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from brainfast import cli
from brainfast.runtimes import CompiledRuntime, TorchRuntime

STALL = Path(os.environ["STALL_FILE"])


def stall(runtime: type[Any]) -> None:
    """Make a trunk runtime run later."""
    run = runtime.__call__

    def wait_then_run(self: Any, pixels: Any) -> Any:
        while STALL.exists():
            time.sleep(0.01)
        return run(self, pixels)

    runtime.__call__ = wait_then_run  # type: ignore[method-assign]


for runtime in (TorchRuntime, CompiledRuntime):
    stall(runtime)
sys.argv[1:1] = ["serve"]
cli.main()
