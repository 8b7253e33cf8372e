"""An image's resize as two matrices: what graphs and GPUs need to repeat Pillow's bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
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


def plain_weights(source: int, size: int, interpolation: str) -> Floats:
    """Weights [size,source] of one axis without antialias, those of `images.preprocess`."""
    if source == size:
        return np.eye(size, dtype=np.float32)
    weights = np.zeros((size, source), dtype=np.float32)
    rows = np.arange(size)
    for pixel, weight in sampling_weights(source, size, interpolation):
        np.add.at(weights, (rows, pixel), weight)
    return weights


def sampling_weights(
    source: int, size: int, interpolation: str
) -> Iterator[tuple[Integers, Floats]]:
    """(pixel [size], weight [size]) of every tap of the plain kernel along one axis.

    Pixels are sampled at their centres (align_corners=False); the border is repeated.
    """
    centre = (np.arange(size) + 0.5) * (source / size) - 0.5
    reach = 1 if interpolation == "bilinear" else 2
    if reach == 1:
        centre = np.maximum(centre, 0)
    base = np.floor(centre).astype(np.int64)
    for offset in range(1 - reach, reach + 1):
        weight = _plain_kernel(np.abs(centre - base - offset), interpolation).astype(np.float32)
        yield np.clip(base + offset, 0, source - 1), weight


def _plain_kernel(distance: npt.NDArray[np.float64], interpolation: str) -> npt.NDArray[np.float64]:
    if interpolation == "bilinear":
        return 1 - distance
    a = -0.75  # torch's cubic; Pillow's antialiased one uses -0.5
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, far)


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
