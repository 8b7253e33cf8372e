"""The file beside a log that holds its candidates' numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..files import hash_arrays, load_tensors, save_tensors
from .design import OWN_SHARE, Design, ObjectiveModel, Reading
from .measured import Weighted
from .pattern import PatternReading

Arrays = dict[str, NDArray[Any]]


def design_path(log: Path) -> Path:
    """Where it lies."""
    return log.with_name(f"{log.name}.design.safetensors")


def design_hash(design: Design) -> str:
    """SHA-256 of everything in it."""
    return hash_arrays(_arrays(design))


def save_design(design: Design, path: Path) -> None:
    """Write it as a safetensors file, atomically."""
    save_tensors(path, _arrays(design))


def load_design(path: Path, expected_hash: str) -> Design:
    """Read what `save_design` wrote; another or a damaged file is a BrainfastError."""
    arrays = load_tensors(path)
    if hash_arrays(arrays) != expected_hash:
        raise BrainfastError(
            str(path),
            expected="the file that was written with this log",
            got="another",
            remedy="keep a log and the file beside it together",
        )
    names = _texts(arrays["objectives"])
    models = [_model(name, _under(f"{index}.", arrays)) for index, name in enumerate(names)]
    categories = _texts(arrays["categories"])
    return Design(
        _texts(arrays["ids"]), tuple(models), categories, arrays.get("codes"), arrays.get("places")
    )


def _model(name: str, arrays: Arrays) -> ObjectiveModel:
    centre, spread, adapt, *own_share = arrays["about"].tolist()
    reading = _reading(arrays)
    z = arrays["z"].astype(np.float64)
    return ObjectiveModel(name, z, centre, spread, reading, bool(adapt), *own_share)


def _arrays(design: Design) -> Arrays:
    texts = {"ids": design.ids, "objectives": design.names, "categories": design.categories}
    arrays: Arrays = {name: _bytes(words) for name, words in texts.items()}
    kept = {"codes": design.codes, "places": design.places}
    arrays |= {name: array for name, array in kept.items() if array is not None}
    for index, model in enumerate(design.models):
        numbers = [model.centre, model.spread, model.adapt]
        if model.own_share != OWN_SHARE:  # older files hold none, and mean this one
            numbers.append(model.own_share)
        about = np.array(numbers, dtype=np.float64)
        z = model.z.astype(np.float32)  # exact: it was float32 before
        own: Arrays = {"z": z, "about": about}
        own |= _reading_arrays(model.reading)
        arrays |= {f"{index}.{name}": array for name, array in own.items()}
    return arrays


def _reading(arrays: Arrays) -> Reading:
    if "weights" in arrays:
        return Weighted(arrays["weights"], arrays["noise"])
    correlates, gain, slope, floor = arrays["pattern"].tolist()
    return PatternReading(arrays["target"], arrays["noise"], bool(correlates), gain, slope, floor)


def _reading_arrays(reading: Reading) -> Arrays:
    if isinstance(reading, Weighted):
        return {"weights": reading.weights, "noise": reading.noise}
    if isinstance(reading, PatternReading):
        numbers = [reading.correlates, reading.gain, reading.slope, reading.floor]
        pattern = np.array(numbers, dtype=np.float64)
        return {"target": reading.target, "noise": reading.noise, "pattern": pattern}
    raise TypeError(f"no file holds {type(reading).__name__}")


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _bytes(texts: tuple[str, ...]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)


def _texts(given: NDArray[Any]) -> tuple[str, ...]:
    return tuple(json.loads(given.tobytes()))
