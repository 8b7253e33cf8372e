"""brainfast: a photograph in, the predicted response of every visual-cortex vertex out.

>>> import brainfast as bf
>>> engine = bf.load("subj01-factortopy").compile(vertices=["FFA", "PPA"])
>>> response = engine.predict(["cat.png"])

The verbs are loaded when they are first used, so `import brainfast` needs neither torch nor a GPU.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data
    from .encoder import Encoder, load
    from .engine import Engine
    from .errors import BrainfastError
    from .response import Response
    from .training.fit import fit

__all__ = ["BrainfastError", "Encoder", "Engine", "Response", "data", "fit", "load"]

_HOME = {
    "BrainfastError": "errors",
    "Encoder": "encoder",
    "Engine": "engine",
    "Response": "response",
    "fit": "training",
    "load": "encoder",
}


def __getattr__(name: str) -> Any:
    if name == "data":
        return import_module(".data", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'brainfast' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _package_path() -> list[str]:
    """Where the modules lie: here, or, in a source tree that is not built, where pip put them."""
    here = Path(__file__).resolve().parent
    if PathFinder.find_spec("_C", [str(here)]) is not None:
        return [str(here)]
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != here.parent]
    installed = PathFinder.find_spec("brainfast", elsewhere)
    if installed is None or not installed.submodule_search_locations:
        raise ImportError(
            f"brainfast: expected a built package, got the source tree {here.parent};"
            " run 'pip install .' there first"
        )
    return list(installed.submodule_search_locations)


__path__ = _package_path()
