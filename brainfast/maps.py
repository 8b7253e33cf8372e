"""Brain maps on the flattened cortex: layers, values, retinotopy, planted beside recovered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from .analysis.hierarchy import check_layer_weights, confidence
from .errors import BrainfastError
from .flat_mesh import Raster, on_mesh
from .flat_sheet import Sheet
from .map_colours import (
    Floats,
    Limits,
    Pixels,
    Scale,
    angle_rgb,
    layer_colours,
    layer_key,
    shade,
    value_key,
    visual_field,
)
from .vertex_space import Hemisphere, VertexSpace

Painter: TypeAlias = Callable[[Hemisphere, Raster], Pixels]


class Selectors(NamedTuple):
    """What every vertex reads: space [V,2] (x right, y down, -1 to 1), layer [V,L], scale [V]."""

    space: npt.NDArray[np.floating]
    layer: npt.NDArray[np.floating]
    scale: npt.NDArray[np.floating]


def layer_map(
    layer: npt.ArrayLike,  # [V,L]
    space: VertexSpace,
    path: str | Path | None = None,
    *,
    layers: Sequence[object] | None = None,
    rois: Sequence[str] | None = None,
    title: str = "",
    height: float = 6.0,
) -> Figure:
    """Hue = argmax_l of the layer selector, brightness = its confidence, on the flat cortex.

    FactorTopy, section 3.2 and eq. 2. Between vertices the selector is interpolated before the
    argmax; a vertex keeps its own colour.

    layers: what the L layers are called in the key, 1 to L by default
    rois: regions to outline; by default the well-known ones that the space has
    path: .png (200 dpi), .pdf or .svg to write as well
    height: inches of a hemisphere, 3 or more; small ones for figures that are shown small

    Raises BrainfastError for weights that are no distribution and for a space without a mesh.
    """
    weights = _layer_weights(layer, space)
    labels = _layer_labels(layers, weights.shape[1])
    sheet = Sheet.plan(space, path, rois, title, height=height)
    sheet.draw(_layer_painter(weights, space))
    width = min(sheet.cell - 1.2, 0.6 + 0.36 * len(labels))
    layer_key(sheet.key(0, width, 0.5), labels)
    return sheet.finish()


def value_map(
    values: npt.ArrayLike,  # [V]
    space: VertexSpace,
    path: str | Path | None = None,
    *,
    label: str = "",
    cmap: str | Colormap | None = None,
    limits: Limits | None = None,
    rois: Sequence[str] | None = None,
    title: str = "",
    height: float = 6.0,
) -> Figure:
    """One number a vertex in colour on both hemispheres, in one scale; NaN shows the bare cortex.

    limits: values of the first and the last colour. By default the 1st and 99th percentile, made
        symmetric around zero where a tenth of the values is negative
    cmap: a matplotlib colour map; by default "inferno", or "RdBu_r" where zero is the middle
    label: what is shown, and its unit; the colour bar adds how the range was chosen

    `rois`, `path`, `height` and errors as in `layer_map`.
    """
    numbers = _numbers("values", values, (space.V,))
    scale = Scale.choose(numbers, cmap, limits)
    sheet = Sheet.plan(space, path, rois, title, height=height, foot=1.1)
    sheet.draw(_painter(numbers, space, scale.rgb))
    value_key(sheet.figure, sheet.key(0, 3.2, 0.16), scale, label)
    return sheet.finish()


def space_map(
    space_xy: npt.ArrayLike,  # [V,2]
    space: VertexSpace,
    visual_angle_deg: float,
    path: str | Path | None = None,
    *,
    layer: npt.ArrayLike | None = None,  # [V,L]
    layers: Sequence[object] | None = None,
    rois: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Retinotopy of the space selector: polar angle, eccentricity and the visual field's samples.

    Angle and eccentricity on the flat cortex, as vision science draws them; below, each
    hemisphere's sampling points over the image (FactorTopy, Figure 3).

    space_xy: -1 to 1 over the image, x to the right and y **downwards**; drawn upwards, in degrees
    visual_angle_deg: width of the image in degrees, 8.4 in NSD
    layer: colours the sampling points by argmax layer, as the paper does

    `layers`, `rois`, `path` and errors as in `layer_map`.
    """
    degrees = _degrees(space_xy, space, visual_angle_deg)
    half = visual_angle_deg / 2
    weights = None if layer is None else _layer_weights(layer, space)
    labels = [] if weights is None else _layer_labels(layers, weights.shape[1])
    sheet = Sheet.plan(space, path, rois, title, columns=2, height=4.2, foot=4.3, narrowest=10.8)
    rings = Scale.fixed("viridis_r", 0.0, _reach(half, np.hypot(*degrees.T)))
    paints: dict[str, Callable[[Pixels], Pixels]] = {
        "polar angle": lambda points: angle_rgb(points[..., 0], points[..., 1]),
        "eccentricity": lambda points: rings.rgb(np.hypot(points[..., 0], points[..., 1])),
    }
    field = np.stack(np.meshgrid(*[np.linspace(-half, half, 201, dtype=np.float32)] * 2), axis=-1)
    middle = sheet.figure.get_figwidth() / 2
    for column, (name, paint) in enumerate(paints.items()):
        sheet.draw(_painter(degrees, space, paint), 0, column, name)
        ax = sheet.add((middle - 4.9 + 8.5 * column, 1.95, 1.4, 1.4), f"{name} key")
        ax.imshow(paint(field), origin="lower", extent=(-half, half, -half, half))
        visual_field(ax, half, name)
    colours = np.full((space.V, 3), 0.35)
    if weights is not None:
        colours = layer_colours(weights.shape[1])[weights.argmax(axis=1)]
        width = min(4.6, 0.6 + 0.3 * len(labels))
        layer_key(sheet.add((middle - width / 2, 0.48, width, 0.3), "key"), labels)
    drawn = {"lh": space.lh_slice, "rh": space.rh_slice}
    drawn = {side: columns for side, columns in drawn.items() if columns.start < columns.stop}
    for place, (side, columns) in enumerate(drawn.items()):
        order = np.random.default_rng(0).permutation(np.arange(space.V)[columns])  # none on top
        left = middle - 1.2 + 3.1 * (place - (len(drawn) - 1) / 2)
        ax = sheet.add((left, 1.4, 2.4, 2.4), f"{side} samples")
        x, up = degrees[order].T
        ax.scatter(x, up, s=5, c=colours[order], linewidths=0, rasterized=True)
        visual_field(ax, half, f"samples, {'left' if side == 'lh' else 'right'} hemisphere")
    return sheet.finish()


def selector_panel(
    rows: Mapping[str, Selectors],
    space: VertexSpace,
    visual_angle_deg: float,
    path: str | Path | None = None,
    *,
    layers: Sequence[object] | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
    rois: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Selectors below each other, as {"planted": ..., "recovered": ...}, each column in one scale.

    Columns: layer (hue and confidence as in `layer_map`), horizontal and vertical position in
    degrees (right and up positive), scale.

    notes: a row's four remarks, as "r = 0.97", written below its maps

    `visual_angle_deg` as in `space_map`; `layers`, `rois`, `path` and errors as in `layer_map`.
    """
    sizes = sorted({np.shape(chosen.layer)[1:] for chosen in rows.values()})
    if len(sizes) != 1:
        raise BrainfastError("rows", expected="selectors over the same L layers", got=f"{sizes}")
    weights = {name: _layer_weights(chosen.layer, space) for name, chosen in rows.items()}
    labels = _layer_labels(layers, sizes[0][0])
    degrees = {
        name: _degrees(chosen.space, space, visual_angle_deg) for name, chosen in rows.items()
    }
    reach = _reach(visual_angle_deg / 2, np.abs(list(degrees.values())))
    where, local = Scale.fixed("RdBu_r", -reach, reach), Scale.fixed("cividis", 0.0, 1.0)
    sheet = Sheet.plan(
        space, path, rois, title, rows=len(rows), columns=4, height=2.6, foot=0.95, side=0.4
    )
    for row, (name, chosen) in enumerate(rows.items()):
        scale = _numbers("scale", chosen.scale, (space.V,))
        cells = {
            "layer": _layer_painter(weights[name], space),
            "x": _painter(degrees[name][:, 0], space, where.rgb),
            "y": _painter(degrees[name][:, 1], space, where.rgb),
            "scale": _painter(scale, space, local.rgb),
        }
        remarks = [*(notes or {}).get(name, ()), "", "", "", ""]
        for column, (heading, paint) in enumerate(cells.items()):
            sheet.draw(paint, row, column, "" if row else heading, remarks[column])
        sheet.name_row(row, name)
    width = 0.8 * sheet.cell
    layer_key(sheet.key(0, width, 0.25), labels, size=6.5)
    sides = "degrees, right positive", "degrees, up positive", "0 local, 1 global"
    for column, (shown, label) in enumerate(zip((where, where, local), sides, strict=True), 1):
        value_key(sheet.figure, sheet.key(column, width, 0.09), shown, label, size=6.5)
    return sheet.finish()


def _layer_painter(weights: Floats, space: VertexSpace) -> Painter:  # [V,L]
    """Colours [P,3] of argmax layer and confidence, NaN where there are no data."""
    full, sure = on_mesh(weights, space), on_mesh(confidence(weights), space)
    palette = layer_colours(weights.shape[1])

    def paint(side: Hemisphere, part: Raster) -> Pixels:
        best = np.argmax(np.nan_to_num(part.interpolate(full[side])), axis=1)
        return shade(palette[best], part.interpolate(sure[side]))

    return paint


def _painter(values: Floats, space: VertexSpace, colour: Callable[[Pixels], Pixels]) -> Painter:
    """Colours [P,3] of values [V] or [V,K], interpolated first."""
    full = on_mesh(values, space)
    return lambda side, part: colour(part.interpolate(full[side]))


def _layer_weights(layer: npt.ArrayLike, space: VertexSpace) -> Floats:
    weights = check_layer_weights(layer)
    if len(weights) != space.V:
        raise BrainfastError("layer", expected=f"[{space.V},L]", got=f"{list(weights.shape)}")
    return weights


def _layer_labels(layers: Sequence[object] | None, L: int) -> Sequence[object]:
    labels = range(1, L + 1) if layers is None else list(layers)
    if len(labels) != L:
        raise BrainfastError("layers", expected=f"{L} labels", got=f"{len(labels)}")
    return labels


def _numbers(name: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
    numbers = np.asarray(values)
    if numbers.shape != shape or numbers.dtype.kind not in "fiub":
        raise BrainfastError(
            name,
            expected=f"numbers {list(shape)}, a row for each vertex",
            got=f"{numbers.dtype} {list(numbers.shape)}",
        )
    return numbers.astype(np.float64)


def _degrees(space_xy: npt.ArrayLike, space: VertexSpace, visual_angle_deg: float) -> Floats:
    """Sampling points [V,2] in degrees, right and up positive, from image units with y down."""
    if not 0 < visual_angle_deg < 360:
        raise BrainfastError(
            "visual_angle_deg", expected="the image's width in degrees", got=f"{visual_angle_deg}"
        )
    points = _numbers("space_xy", space_xy, (space.V, 2))
    half = visual_angle_deg / 2
    return np.asarray(points * [half, -half], dtype=np.float64)


def _reach(half: float, degrees: Floats) -> float:
    """How far a colour scale goes, degrees: the 99th percentile, within reason of the image."""
    return float(np.clip(np.nanpercentile(degrees, 99), 0.2 * half, 1.5 * half))
