"""brainfast: a photograph in, the predicted response of every visual-cortex vertex out.

>>> import brainfast as bf
>>> engine = bf.load("subj01-factortopy").compile(vertices=["FFA", "PPA"])
>>> response = engine.predict(["cat.png"])

The verbs are loaded when they are first used, so `import brainfast` needs neither torch nor a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data
    from .encoder import Encoder, load
    from .engine import Engine
    from .errors import BrainfastError
    from .group_encoder import GroupEncoder
    from .group_engine import GroupEngine
    from .loop import Choice, Session
    from .objective import Objective
    from .pool import Pool
    from .response import Response
    from .target_pattern import TargetPattern
    from .training.fit import fit
    from .training.group_fit import fit_group
    from .training.new_subject import add_subject

__all__ = [
    "BrainfastError",
    "Choice",
    "Encoder",
    "Engine",
    "GroupEncoder",
    "GroupEngine",
    "Objective",
    "Pool",
    "Response",
    "Session",
    "TargetPattern",
    "add_subject",
    "data",
    "fit",
    "fit_group",
    "load",
]

_HOME = {
    "BrainfastError": "errors",
    "Choice": "loop",
    "Encoder": "encoder",
    "Engine": "engine",
    "GroupEncoder": "group_encoder",
    "GroupEngine": "group_engine",
    "Objective": "objective",
    "Pool": "pool",
    "Response": "response",
    "Session": "loop",
    "TargetPattern": "target_pattern",
    "add_subject": "training",
    "fit": "training",
    "fit_group": "training",
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
    for place in (str(here), *_installed(here.parent)):
        if PathFinder.find_spec("_C", [place]) is not None:
            return [place, *_checkout(Path(place))]
    raise ImportError(
        f"brainfast: expected a built package, got the source tree {here.parent};"
        " run 'pip install .' there first"
    )


def _checkout(package: Path) -> list[str]:
    """The source tree around `package`, where brainfast.export is the folder export/ beside it."""
    beside = package.parent / "export" / "__init__.py"
    inside = (package / "export").is_dir()
    return [] if inside or not beside.is_file() else [str(package.parent)]


def _installed(tree: Path) -> Iterator[str]:
    """Packages of this name on the path outside `tree`, and those of editable installs."""
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != tree]
    specs = [PathFinder.find_spec("brainfast", elsewhere)]
    specs += [f.find_spec("brainfast", None) for f in sys.meta_path if f is not PathFinder]
    for spec in specs:
        yield from (spec and spec.submodule_search_locations) or ()


__path__ = _package_path()
