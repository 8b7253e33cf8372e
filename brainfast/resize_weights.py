"""An image's resize as two matrices: what graphs and GPUs need to repeat Pillow's bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
UNIT = 1 << 22  # Pillow's fixed-point one for 8-bit channels
PROBED = 64  # rows and columns of a resize that are compared


def fixed_point_weights(source: int, size: int, interpolation: str) -> Integers:  # [size,source]
    """Pillow's weights of one axis: out = clip((weights @ bytes + UNIT / 2) // UNIT, 0, 255).

    The filter widens as the image shrinks (antialias) and is cut off and normalised at the borders.
    The product and the rounding are Pillow's own, to the bit; see `rows_first` for their order.
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


def rows_first(
    rows: Integers,  # [H,H0]
    columns: Integers,  # [W,W0]
    interpolation: str,
) -> bool | None:
    """Whether the installed Pillow resizes rows before columns; None where it does neither.

    Pillow 13 begins with the rows where the height shrinks much more than the width, and the
    bytes between the two products are rounded. So a resize of noise is asked.
    """
    source, size = (rows.shape[1], columns.shape[1]), (len(rows), len(columns))
    noise = np.random.default_rng(0).integers(0, 256, source, dtype=np.uint8)
    resized = Image.fromarray(noise).resize(size[::-1], Image.Resampling[interpolation.upper()])
    some = np.ix_(*(np.linspace(0, side - 1, min(side, PROBED)).astype(int) for side in size))
    wanted, values = np.asarray(resized)[some], noise.astype(np.float64)  # holds the sums exactly
    rows, columns = rows[some[0][:, 0]], columns[some[1][0]]
    if np.array_equal(_rounded(rows @ _rounded(values @ columns.T)), wanted):
        return False
    return True if np.array_equal(_rounded(_rounded(rows @ values) @ columns.T), wanted) else None


def _rounded(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.clip((sums + UNIT / 2) // UNIT, 0, 255)


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
