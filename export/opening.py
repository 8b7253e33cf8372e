"""Exported files by their endings. Torch-free."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import BrainfastError

# Ending: the module and the class that run such a file, each with libraries of its own.
RUNNERS = {".onnx": ("model", "OnnxModel"), ".engine": ("tensorrt_runtime", "TensorRTModel")}


def is_exported(path: str | Path) -> bool:
    """Whether a path is that of an exported file and not of a model folder."""
    return Path(path).suffix in RUNNERS and not Path(path).is_dir()


def open_exported(path: str | Path, *, device: str = "auto") -> Any:
    """The runner of an exported file, with `run` and `predict` as `OnnxModel` has them."""
    path = Path(path)
    if path.suffix not in RUNNERS:
        raise BrainfastError(
            str(path), expected=f"a file that ends in {' or '.join(RUNNERS)}", got=path.name
        )
    module, name = RUNNERS[path.suffix]
    runner = getattr(import_module(f".{module}", __package__), name)
    gpu_only = path.suffix == ".engine"
    return runner(path, device="cuda" if gpu_only and device == "auto" else device)
