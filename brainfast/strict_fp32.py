"""float32 products that are float32: torch's settings for them, held by whoever needs them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@contextmanager
def strict_fp32() -> Iterator[None]:
    """Inside, float32 products are float32 on every device: no TF32 and no bf16 stand-in.

    The settings are the whole process's: the first thread in keeps them, the last out restores.
    """
    with _STRICT.lock:
        if _STRICT.inside == 0:
            _STRICT.before = [backend.fp32_precision for backend in _fp32_backends()]
            for backend in _fp32_backends():
                backend.fp32_precision = "ieee"
        _STRICT.inside += 1
    try:
        yield
    finally:
        with _STRICT.lock:
            _STRICT.inside -= 1
            if _STRICT.inside == 0:
                for backend, precision in zip(_fp32_backends(), _STRICT.before, strict=True):
                    backend.fp32_precision = precision


@dataclass
class _Strict:
    lock: threading.Lock = field(default_factory=threading.Lock)
    inside: int = 0
    before: list[str] = field(default_factory=list)


_STRICT = _Strict()


def _fp32_backends() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn  # of cuDNN both parts, or torch.export refuses to work
    return (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)
