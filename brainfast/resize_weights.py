"""An image's resize as two matrices: what graphs and GPUs need to repeat Pillow's bits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .images import sampling_weights

Integers = npt.NDArray[np.int64]
UNIT = 1 << 22  # Pillow's fixed-point one for 8-bit channels


def fixed_point_weights(source: int, size: int, interpolation: str) -> Integers:  # [size,source]
    """Pillow's weights of one axis: out = clip((weights @ bytes + UNIT / 2) // UNIT, 0, 255).

    The filter widens as the image shrinks (antialias) and is cut off and normalised at the borders.
    The product and the rounding are Pillow's own, to the bit; it does the columns first.
    """
    if source == size:
        return np.diag(np.full(size, UNIT, dtype=np.int64))
    scale = source / size
    centre = (np.arange(size) + 0.5) * scale
    if interpolation == "nearest":
        nearest = np.minimum(centre.astype(np.int64), source - 1)
        return np.where(np.arange(source) == nearest[:, None], UNIT, 0)
    kernel, reach = _KERNELS[interpolation]
    widening = max(scale, 1.0)
    support = reach * widening
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)[:, None]
    last = np.minimum((centre + support + 0.5).astype(np.int64), source)[:, None]
    pixel = np.arange(source)
    weights = kernel((pixel - centre[:, None] + 0.5) * (1.0 / widening))
    weights = np.where((pixel >= first) & (pixel < last), weights, 0.0)
    weights *= 1.0 / weights.sum(axis=1, keepdims=True)
    return np.trunc(weights * UNIT + np.copysign(0.5, weights)).astype(np.int64)


def plain_weights(source: int, size: int, interpolation: str) -> npt.NDArray[np.float32]:
    """Weights [size,source] of one axis without antialias, those of `images.preprocess`."""
    if source == size:
        return np.eye(size, dtype=np.float32)
    weights = np.zeros((size, source), dtype=np.float32)
    rows = np.arange(size)
    for pixel, weight in sampling_weights(source, size, interpolation):
        np.add.at(weights, (rows, pixel), weight)
    return weights


def _triangle(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where((x >= -3.0) & (x < 3.0), _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    angle = np.where(x == 0, 1.0, x * math.pi)
    return np.where(x == 0, 1.0, np.sin(angle) / angle)


_KERNELS: dict[str, tuple[Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
