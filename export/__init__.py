"""Encoders as files for other runtimes: ONNX, TensorRT and Triton, each compared with float64.

Lazy, so that `brainfast.export.OnnxModel` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import OnnxModel
    from .onnx import Exported, export_onnx
    from .triton import export_triton

__all__ = ["Exported", "OnnxModel", "export_onnx", "export_triton"]

_HOME = {
    "Exported": "onnx",
    "OnnxModel": "model",
    "export_onnx": "onnx",
    "export_triton": "triton",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'brainfast.export' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
