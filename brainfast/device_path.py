"""The way of an engine whose trunk is on a GPU: opened when it is first needed. Torch-free."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BrainfastError
from .folded_blobgpt import FoldedBlobGPT
from .heads import FoldedHead
from .runtimes import TorchRuntime, TrunkRuntime

if TYPE_CHECKING:
    from .device_engine import DeviceRunner
    from .preprocessing import Preprocessing


class DevicePath:
    """The `DeviceRunner` of a trunk runtime and a head, or of heads of several subjects.

    None where the trunk is not on a GPU: tokens then come back to numpy, and the head runs there.
    """

    def __init__(
        self,
        runtime: TrunkRuntime,
        head: FoldedHead | Mapping[str, FoldedBlobGPT],
        preprocessing: Preprocessing,
    ) -> None:
        self._runtime, self._head, self._preprocessing = runtime, head, preprocessing
        self._opening = threading.Lock()
        self._runner: DeviceRunner | None = None

    def runner(self) -> DeviceRunner | None:
        """The runner, with the head packed on the device by the first call."""
        runtime = self._runtime
        if not isinstance(runtime, TorchRuntime) or not runtime.on_gpu:
            return None
        with self._opening:
            if self._runner is None:
                from .device_engine import DeviceRunner, open_head

                head: Any = self._head
                self._runner = DeviceRunner(
                    runtime.trunk,
                    open_head(head, runtime.device),
                    self._preprocessing,
                    runtime.device,
                    runtime.precision,
                )
            return self._runner

    def warm_up(
        self,
        predict: Callable[..., Any],
        batch_sizes: Sequence[int],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> None:
        """`DeviceRunner.warm_up`; without one, `predict` blank images of the trunk's size."""
        runner = self.runner()
        if runner is not None:
            runner.warm_up(batch_sizes, sizes)
            return
        for batch in batch_sizes:
            blank = np.zeros((batch, *self._preprocessing.size, 3), dtype=np.uint8)
            predict(blank, batch_size=batch)

    def keep_warm(self, every_ms: float | None) -> None:
        """`DeviceRunner.keep_warm`; an engine on the CPU has no clocks to keep up."""
        runner = self.runner()
        if runner is None:
            raise BrainfastError(
                "keep_warm",
                expected="an engine on a GPU",
                got=place(self._runtime) or f"runtime {self._runtime.name}",
                remedy="load it with device='cuda' and runtime='torch'",
            )
        runner.keep_warm(every_ms)


def place(runtime: TrunkRuntime) -> str:
    """The runtime's device, such as "cuda:0"; "cpu" for those that know no other."""
    return str(getattr(runtime, "device", "cpu"))
