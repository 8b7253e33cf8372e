"""Where in the network a vertex reads: confidence, centre of mass and the hierarchy slope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import BrainfastError

if TYPE_CHECKING:
    from ..vertex_space import VertexSpace

Floats = npt.NDArray[np.float64]

# The four levels of FactorTopy, section 4.3: regions and the place that each should take.
LEVELS: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.0, ("V1",)),
    (0.33, ("V2", "V3")),
    (0.66, ("OPA",)),
    (1.0, ("EBA",)),
)
SUM_TOLERANCE = 1e-2  # rows of a layer selector stored in bf16 still pass


@dataclass(frozen=True)
class HierarchySlope:
    """The line through the regions' centres of mass: `slope` = b1 - b0, `b0` at V1, `b1` at EBA."""

    slope: float
    b0: float
    b1: float
    vertices: dict[str, int]  # per region used
    missing: tuple[str, ...]  # regions of the four levels that the space lacks


def check_layer_weights(layer: npt.ArrayLike) -> Floats:  # [V,L]
    """Layer selector [V,L] as float64, checked: finite, not negative, rows that sum to 1."""
    weights = np.asarray(layer, dtype=np.float64)
    expected = "layer weights [V,L] that are not negative and sum to 1 over L"
    if weights.ndim != 2 or weights.shape[1] == 0:
        raise BrainfastError("layer", expected=expected, got=f"size {list(weights.shape)}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise BrainfastError("layer", expected=expected, got="negative or not finite values")
    off = np.abs(weights.sum(axis=1) - 1.0)
    if off.size and off.max() > SUM_TOLERANCE:
        got = f"a row that sums to {weights[off.argmax()].sum():.4g}"
        raise BrainfastError("layer", expected=expected, got=got, remedy="apply the softmax first")
    return weights


def confidence(layer: npt.ArrayLike) -> Floats:  # [V,L]
    """s = 1 - (sum_l w_l log w_l) / (sum_l 1/L log 1/L), per vertex [V] (FactorTopy, eq. 2).

    1 for one layer alone, 0 for all layers alike; 0 log 0 is 0, and one layer in all gives 1.
    """
    weights = check_layer_weights(layer)
    L = weights.shape[1]
    if L == 1:
        return np.ones(len(weights))
    entropy = -(weights * np.log(np.where(weights > 0, weights, 1.0))).sum(axis=1)
    return np.asarray(np.clip(1.0 - entropy / np.log(L), 0.0, 1.0), dtype=np.float64)


def centre_of_mass(layer: npt.ArrayLike) -> Floats:  # [V,L]
    """sum_l (l-1)/(L-1) w_l, per vertex [V], 0 for the first layer and 1 for the last.

    FactorTopy, section 4.3; l counts the chosen layers from 1, whatever their depth. One layer in
    all gives 0.
    """
    weights = check_layer_weights(layer)
    return np.asarray(weights @ np.linspace(0.0, 1.0, weights.shape[1]), dtype=np.float64)


def hierarchy_slope(layer: npt.ArrayLike, space: VertexSpace) -> HierarchySlope:  # [V,L]
    """Least squares of centre_of_mass = slope x level + b0, levels V1 0, V2 V3 .33, OPA .66, EBA 1.

    b1 = slope + b0 (FactorTopy, section 4.3). Every vertex of a region counts once. Regions that
    the subject lacks are left out and listed; fewer than two levels is a BrainfastError.
    """
    place = centre_of_mass(layer)
    if place.size != space.V:
        raise BrainfastError(
            "layer", expected=f"a row for each of {space.V} vertices", got=f"{place.size}"
        )
    x, y, vertices, missing = [], [], {}, []
    for level, names in LEVELS:
        for name in names:
            inside = _region(space, name)
            if inside.size == 0:
                missing.append(name)
                continue
            vertices[name] = int(inside.size)
            x.append(np.full(inside.size, level))
            y.append(place[inside])
    if len({float(part[0]) for part in x}) < 2:
        raise BrainfastError(
            "hierarchy slope",
            expected="regions of at least two of the levels V1, V2 or V3, OPA, EBA",
            got=f"a space without {', '.join(missing)}",
            remedy="give region masks for them",
        )
    slope, b0 = np.polyfit(np.concatenate(x), np.concatenate(y), 1)
    return HierarchySlope(
        float(slope), float(b0), float(slope + b0), vertices=vertices, missing=tuple(missing)
    )


def _region(space: VertexSpace, name: str) -> npt.NDArray[np.int64]:
    try:
        return space.roi(name)
    except BrainfastError:  # how a space says that it lacks the region
        return np.zeros(0, dtype=np.int64)
