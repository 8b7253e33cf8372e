"""Exported files by their endings. Torch-free."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..card import Card
from ..errors import BrainfastError
from ..files import check_writable

# Ending: the module and the class that run such a file, each with libraries of its own.
RUNNERS = {".onnx": ("model", "OnnxModel"), ".engine": ("tensorrt_runtime", "TensorRTModel")}


def is_exported(path: str | Path) -> bool:
    """Whether a path is that of an exported file and not of a model folder."""
    return Path(path).suffix in RUNNERS and not Path(path).is_dir()


def beside(model: Path, ending: str) -> Path:
    """Where the export of a model folder lies unless a place is named: by its name, beside it."""
    folder = model.resolve()
    return folder.parent / f"{folder.name}{ending}"


def check_place(path: Path, ending: str) -> None:
    """Refuse a file that could not be written, or that no command would open: before long work."""
    if path.suffix != ending or path.is_dir():
        raise BrainfastError(
            str(path),
            expected=f"a file that ends in {ending}",
            got="a folder" if path.is_dir() else f"the ending {path.suffix!r}",
            remedy="`predict` and `bench` know exported files by their ending",
        )
    check_writable(path.parent)


def open_exported(path: str | Path, *, device: str = "auto", card: Card | None = None) -> Any:
    """The runner of an exported file, with `run` and `predict` as `OnnxModel` has them.

    card: of the model that the file must come from, where given.
    """
    path = Path(path)
    if path.suffix not in RUNNERS:
        raise BrainfastError(
            str(path), expected=f"a file that ends in {' or '.join(RUNNERS)}", got=path.name
        )
    module, name = RUNNERS[path.suffix]
    runner = getattr(import_module(f".{module}", __package__), name)
    gpu_only = path.suffix == ".engine"
    return runner(path, device="cuda" if gpu_only and device == "auto" else device, card=card)
