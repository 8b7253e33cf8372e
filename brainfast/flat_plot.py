"""A shaded hemisphere, and the outlines and names of its regions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from scipy import ndimage

from .flat_mesh import MARGIN, Raster, flat_mesh, on_mesh, raster
from .map_colours import FAINT, INK, Pixels
from .vertex_space import Hemisphere, VertexSpace

Mask: TypeAlias = npt.NDArray[np.bool_]

GYRI, SULCI = 0.90, 0.76  # greys of cortex without data

# Regions that hardly overlap each other and together cover visual cortex.
OUTLINED = ("V1", "V2", "V3", "hV4", "EBA", "FFA", "OPA", "PPA", "RSC")
OUTLINE_PIXELS = 360  # along the longer side; the mesh itself has fewer vertices
ROUNDING = 1.6  # pixels, about 1 mm
SMALLEST_LABELLED = 0.25  # of the region's largest piece; a cut splits V1


def draw_cortex(
    ax: Axes,
    side: Hemisphere,
    part: Raster,
    colours: Pixels,  # [P,3], NaN where there are no data
    *,
    compass: bool = True,
) -> None:
    """The data over the cortex's curvature in two greys, faded where the picture cuts it."""
    sulc = part.interpolate(flat_mesh(side).sulc)
    grey = GYRI + (SULCI - GYRI) / (1.0 + np.exp(-sulc / 0.06))
    colours = np.where(np.isfinite(colours), colours, grey[:, None])
    opaque = np.concatenate([colours, _edge_fade(part)[:, None]], axis=1)
    picture = np.nan_to_num(part.picture(opaque.astype(np.float32)))
    ax.imshow(picture, origin="lower", extent=part.box, interpolation="nearest")
    ax.set_xlim(part.box[:2])
    ax.set_ylim(part.box[2:])
    ax.set_axis_off()
    anterior = {"lh": (0.0, "left", "\u2190 anterior"), "rh": (1.0, "right", "anterior \u2192")}
    x, align, text = anterior[side]
    if compass:
        ax.text(x, -0.01, text, ha=align, va="top", transform=ax.transAxes, fontsize=8, color=FAINT)


def _edge_fade(part: Raster) -> Pixels:
    """Opacity [P] that falls to 0 over the margin towards the crop's edges."""
    x, y = part.centres()
    x0, x1, y0, y1 = part.box
    to_edge = np.minimum(np.minimum(x - x0, x1 - x), np.minimum(y - y0, y1 - y)[:, None])
    return np.clip(to_edge[part.inside] / (0.8 * MARGIN), 0.0, 1.0).astype(np.float32)


def region_names(space: VertexSpace, wanted: Sequence[str] | None) -> list[str]:
    """`wanted`, checked; by default those of `OUTLINED` that the space has, else all it has."""
    if wanted is not None:
        for name in wanted:
            space.roi(name)
        return list(wanted)
    present = space.roi_names()
    return [name for name in OUTLINED if name in present] or present


def draw_regions(
    axes: Mapping[Hemisphere, Axes],
    rasters: Mapping[Hemisphere, Raster],
    space: VertexSpace,
    names: Sequence[str],
    *,
    width: float = 0.9,  # of the line, points
    labelled: bool = True,
) -> None:
    """A thin outline around each region, and its name where no other name stands."""
    for side, ax in axes.items():
        coarse = raster(side, rasters[side].box, OUTLINE_PIXELS)
        pieces: list[tuple[str, Mask]] = []
        for name in names:
            inside = np.zeros(space.V)
            inside[space.roi(name)] = 1.0
            field = _smooth(coarse, np.nan_to_num(on_mesh(inside, space)[side]))
            if field.max() <= 0.5:
                continue
            lines = ax.contour(*coarse.centres(), field, [0.5], colors=INK, linewidths=width)
            halo = withStroke(linewidth=2.4 * width, foreground="white", alpha=0.85)
            lines.set_path_effects([halo])
            pieces += [(name, piece) for piece in _pieces(field.filled(0.0) > 0.5)]
        if labelled:
            _place_labels(ax, coarse, sorted(pieces, key=lambda item: int(item[1].sum())))


def _smooth(coarse: Raster, values: npt.NDArray[np.float64]) -> np.ma.MaskedArray[Any, Any]:
    """Values [N] at the pixels, with the mesh's corners rounded off; masked outside the cortex."""
    field = np.nan_to_num(coarse.picture(coarse.interpolate(values)))
    cover = ndimage.gaussian_filter(coarse.inside.astype(np.float32), ROUNDING)
    mean = ndimage.gaussian_filter(field, ROUNDING) / np.maximum(cover, 1e-6)
    return np.ma.masked_array(mean, ~coarse.inside)


def _pieces(mask: Mask) -> Iterator[Mask]:
    numbered, count = ndimage.label(mask)
    sizes = ndimage.sum_labels(mask, numbered, np.arange(1, count + 1))
    for number, size in enumerate(np.atleast_1d(sizes), start=1):
        if size > SMALLEST_LABELLED * sizes.max():
            yield numbered == number


def _place_labels(ax: Axes, coarse: Raster, pieces: Iterable[tuple[str, Mask]]) -> None:
    """Small regions choose first: deep inside themselves, or beside with a line to it."""
    figure = ax.get_figure(root=True)
    assert figure is not None  # axes of `add_axes` belong to one
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = ax.get_window_extent(renderer)
    taken: list[Bbox] = []
    for name, piece in pieces:
        text = ax.text(0, 0, name, ha="center", va="center", fontsize=8, weight="bold", color=INK)
        text.set_path_effects([withStroke(linewidth=2.2, foreground="white")])
        size = np.add(text.get_window_extent(renderer).size, 3)
        inside, beside = _candidates(coarse, piece)
        for spot in (*inside, *beside):
            centre = ax.transData.transform(spot)
            box = Bbox([centre - size / 2, centre + size / 2])
            fits = frame.x0 <= box.x0 and box.x1 <= frame.x1
            if fits and not any(box.overlaps(other) for other in taken):
                break
        else:
            text.remove()  # the outline stays; a name over another would hide both
            continue
        taken.append(box)
        text.set_position(spot)
        if not any(spot is own for own in inside):
            ax.plot(*zip(spot, inside[0], strict=True), color=INK, linewidth=0.6, zorder=2.5)


def _candidates(
    coarse: Raster, piece: Mask
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    x, y = coarse.centres()
    depth = ndimage.distance_transform_edt(piece)
    order = np.argsort(-depth, axis=None)[: int(piece.sum())]
    rows, columns = np.unravel_index(order[:: max(1, len(order) // 60)], piece.shape)
    inside = [(float(x[c]), float(y[r])) for r, c in zip(rows, columns, strict=True)]
    middle = np.array(inside[0])
    turns = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    beside = [
        (float(middle[0] + radius * math.cos(turn)), float(middle[1] + radius * math.sin(turn)))
        for radius in (12.0, 18.0, 25.0)
        for turn in turns
    ]
    return inside, beside
