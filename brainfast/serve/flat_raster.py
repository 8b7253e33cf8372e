"""The static flat map as data for a screen: the vertices that a pixel mixes, outlines and names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from ..flat_mesh import Raster, on_mesh
from ..flat_sheet import SIDES, Sheet
from ..map_colours import Pixels, Scale
from ..vertex_space import Hemisphere, VertexSpace

Points: TypeAlias = npt.NDArray[np.float64]  # [n,2], x to the right, y downwards, pixels

HEIGHT = 3.0  # inches of the static map: 600 pixels, from which regions are named
COLOURS = "RdBu_r"  # the static maps' where zero is the middle
NO_TRIANGLE = 0xFFFF
NO_COLUMN = -1


@dataclass(frozen=True, eq=False)
class FlatSide:
    """One hemisphere [H,W], first row on top, drawn as `maps.value_map` draws it.

    corners: columns of the response at a triangle's corners [T,3], -1 where nothing is predicted
    triangle: of a pixel, 65535 where no data can be;  weights: of its first two corners, of 255
    grey: the bare cortex;  opacity: 0 outside the cortex, falling off at the picture's edges
    outlines: of regions;  labels: name and centre;  leaders: lines from a label to its region
    """

    side: Hemisphere
    corners: npt.NDArray[np.int32]  # [T,3]
    triangle: npt.NDArray[np.uint16]  # [H,W]
    weights: npt.NDArray[np.uint8]  # [2,H,W]
    grey: npt.NDArray[np.uint8]  # [H,W]
    opacity: npt.NDArray[np.uint8]  # [H,W]
    outlines: Sequence[Points]
    labels: Sequence[tuple[str, Points]]
    leaders: Sequence[Points]

    def about(self) -> dict[str, Any]:
        """What the binary part holds, and what is drawn over the pixels."""
        H, W = self.triangle.shape
        return {
            "side": self.side,
            "title": SIDES[self.side],
            "height": H,
            "width": W,
            "triangles": len(self.corners),
            "outlines": [_rounded(line) for line in self.outlines],
            "labels": [{"name": name, "at": _rounded(at)} for name, at in self.labels],
            "leaders": [_rounded(line) for line in self.leaders],
        }

    def pack(self) -> bytes:
        """corners int32, triangle uint16, weights, grey and opacity uint8, little-endian."""
        parts = (
            self.corners.astype("<i4"),
            self.triangle.astype("<u2"),
            self.weights,
            self.grey,
            self.opacity,
        )
        return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def flat_sides(space: VertexSpace) -> list[FlatSide]:
    """The hemispheres that have data, read from a static map on which nothing is coloured yet.

    Raises BrainfastError for a space without a flat mesh.
    """
    sheet = Sheet.plan(space, None, None, "", height=HEIGHT)
    sheet.draw(_bare)
    columns = on_mesh(np.arange(space.V), space)
    drawn = {str(ax.get_label()): ax for ax in sheet.figure.axes}
    return [
        _side(side, part, drawn[f"{side} 0 0"], columns[side], sheet.names)
        for side, part in sheet.parts.items()
    ]


def colour_table() -> npt.NDArray[np.uint8]:
    """The 256 colours [256,3] from the scale's lower to its upper end."""
    scale = Scale.fixed(COLOURS, -1.0, 1.0)
    steps = (np.arange(256) + 0.5) / 128 - 1.0
    return np.asarray(np.rint(255 * scale.rgb(steps)), dtype=np.uint8)


def colour_limit(values: npt.NDArray[np.floating[Any]]) -> float:
    """The end of one scale for all images, rounded up to half of a digit.

    values: responses [n,V] to a sample of images; of each the 99th percentile of |value| is taken,
    and of these the median. 1 where there is nothing to go by.
    """
    known = [np.abs(row[np.isfinite(row)]) for row in values]
    tops = [np.percentile(row, 99) for row in known if row.size]
    top = float(np.median(tops)) if tops else 0.0
    if top <= 0:
        return 1.0
    step = 10.0 ** np.floor(np.log10(top)) / 2
    return float(np.round(np.ceil(top / step) * step, 12))


def _bare(_: Hemisphere, part: Raster) -> Pixels:  # [P,3]
    return np.full((len(part.corners), 3), np.nan, dtype=np.float32)


def _side(
    side: Hemisphere, part: Raster, ax: Axes, columns: Points, names: Sequence[str]
) -> FlatSide:
    of_pixel = np.where(np.isfinite(columns), columns, NO_COLUMN).astype(np.int32)[part.corners]
    corners, number = np.unique(of_pixel, axis=0, return_inverse=True)
    number = np.where((of_pixel == NO_COLUMN).all(axis=1), NO_TRIANGLE, number.reshape(-1))
    triangle = np.full(part.shape, NO_TRIANGLE, dtype=np.uint16)
    triangle[part.inside] = number
    weights = np.zeros((2, *part.shape), dtype=np.uint8)
    weights[:, part.inside] = np.rint(255 * part.weights[:, :2].T)
    picture = np.asarray(ax.images[0].get_array())
    grey, opacity = (np.rint(255 * picture[::-1, :, n]).astype(np.uint8) for n in (0, 3))
    to_pixels = _Place(part)
    return FlatSide(
        side,
        corners,
        triangle[::-1],
        weights[:, ::-1],
        grey,
        opacity,
        [to_pixels(line) for line in _outlines(ax)],
        [
            (text.get_text(), to_pixels(np.array([text.get_position()])))
            for text in ax.texts
            if text.get_text() in names
        ],
        [to_pixels(np.column_stack(line.get_data())) for line in ax.lines],
    )


@dataclass(frozen=True, eq=False)
class _Place:
    """Flat cortex, mm and upwards, to pixels and downwards."""

    part: Raster

    def __call__(self, points: Points) -> Points:  # [n,2]
        x0, x1, y0, y1 = self.part.box
        H, W = self.part.shape
        scaled = (points - [x0, y0]) / [x1 - x0, y1 - y0]
        return np.asarray([0, H] + scaled * [W, -H])


def _outlines(ax: Axes) -> Iterator[Points]:
    for contours in ax.collections:
        for path in contours.get_paths():
            yield from (np.asarray(line) for line in path.to_polygons(closed_only=False))


def _rounded(points: Points) -> list[list[float]]:
    found: list[list[float]] = np.round(points, 1).tolist()
    return found
