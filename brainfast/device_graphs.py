"""A function of one batch size, captured in a CUDA graph, between pinned buffers of the host."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Function = Callable[[torch.Tensor], torch.Tensor]

WARM_UPS = 2  # calls before the capture: self-checks, tuning and workspaces come with the first

# torch's captures set state of the whole process, so there is one at a time.
CAPTURING = threading.Lock()


@contextmanager
def recording(graph: Any, stream: Any, pool: Any) -> Iterator[None]:
    """Inside, the work of this thread is recorded on `stream` in place of being done.

    Hold CAPTURING from the warm-up on. After a recording that failed, the stream that was current
    before is so again, which torch.cuda.graph alone does not see to.
    """
    with (
        torch.cuda.stream(stream),
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        yield


class Slot:
    """Where one call at a time is on its way: a stream, graphs on it, and memory they share.

    Graphs of one slot run one after another, so each may overwrite what the last left behind.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.replays: OrderedDict[Hashable, Replay] = OrderedDict()
        self.stream: Any = None
        if device.type == "cuda":
            make_stream: Any = torch.cuda.Stream
            self.stream = make_stream(device)

    @property
    def pool(self) -> Any:
        """The memory that the slot's graphs share; None before the first."""
        return next((replay.pool for replay in self.replays.values()), None)

    def on_stream(self) -> AbstractContextManager[Any]:
        """Inside, torch works on the slot's stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def wait(self) -> None:
        """Until the stream has done all that it was given."""
        if self.stream is not None:
            self.stream.synchronize()


class Replay:
    """rows out = function(rows in) at one batch size: fewer rows are padded with what was there.

    On CUDA the function is captured, so it waits for nothing, and each row of its output depends
    on that row of its input alone. On the CPU it is called, between the same buffers. One call at
    a time, by who holds the slot.
    """

    def __init__(
        self, function: Function, shape: Sequence[int], dtype: torch.dtype, slot: Slot
    ) -> None:
        pinned = slot.device.type == "cuda"
        self._function, self._slot = function, slot
        self._from_host = torch.zeros(*shape, dtype=dtype, pin_memory=pinned)
        self._input = self._from_host.to(slot.device, copy=True)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output = self._capture() if pinned else self._call()
        self._to_host = torch.empty_like(self._output, device="cpu", pin_memory=pinned)
        self.batch = shape[0]

    @property
    def pool(self) -> Any:
        """Where the graph's memory is; None without a graph."""
        return None if self._graph is None else self._graph.pool()

    def run(self, rows: Sequence[NDArray[Any]]) -> NDArray[np.float32]:  # [n,...]
        """The function's answer to n rows, at most the batch, in host memory of its own."""
        count = len(rows)
        staging = self._from_host.numpy()
        for index, row in enumerate(rows):
            staging[index] = row
        with torch.inference_mode(), self._slot.on_stream():
            self._input[:count].copy_(self._from_host[:count], non_blocking=True)
            self._step()
            self._to_host[:count].copy_(self._output[:count], non_blocking=True)
        self._slot.wait()
        return self._to_host[:count].numpy().copy()

    def replay(self) -> None:
        """Answer once more to the rows that are there, and wait for it."""
        with torch.inference_mode(), self._slot.on_stream():
            self._step()
        self._slot.wait()

    def _step(self) -> None:
        if self._graph is None:
            self._output = self._call()
        else:
            self._graph.replay()

    def _call(self) -> torch.Tensor:
        with torch.inference_mode():
            return self._function(self._input)

    def _capture(self) -> torch.Tensor:
        """Call the function on the slot's stream until it is warm, then record it there.

        Other threads may use the GPU meanwhile, as the recording minds this thread alone, but not
        its default random generator, which torch locks for them.
        """
        stream = self._slot.stream
        device = torch.cuda.device(self._slot.device)
        # torch makes tensors of its own in a capture, which a caller's inference mode would spoil.
        with CAPTURING, device, torch.inference_mode(False):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self._call()
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with recording(graph, stream, self._slot.pool):
                output = self._call()
        self._graph = graph
        return output
