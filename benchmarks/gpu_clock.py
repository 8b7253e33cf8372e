"""Time on a device: events around CUDA graphs; on a CPU, for the tests, the host's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], Any]

_CPU_CACHE_BYTES = 1 << 20  # of the stand-in, so that tests rotate too


def cache_bytes(device: torch.device) -> int:
    """Size of the device's last cache."""
    if device.type != "cuda":
        return _CPU_CACHE_BYTES
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken."""
    if device.type != "cuda":
        return 1 << 30
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])


def seconds(device: torch.device, call: Call) -> float:
    """Of what `call` launches, from the first kernel's start to the last one's end."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def captured(device: torch.device, calls: Sequence[Call]) -> tuple[Call, list[Any]]:
    """(replay, answers): all calls in turn as one CUDA graph, and where it writes their answers.

    Each call has been made once before, so that what sets itself up has done so. On a CPU a replay
    makes the calls and writes their answers over those before.
    """
    if device.type != "cuda":
        answers = [call() for call in calls]

        def repeat() -> None:
            for answer, call in zip(answers, calls, strict=True):
                answer.copy_(call())

        return repeat, answers
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side), torch.cuda.graph(graph, stream=side):
        answers = [call() for call in calls]
    return graph.replay, answers
