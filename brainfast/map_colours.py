"""The colours of the brain maps: layers with confidence, values, visual angle; and their keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from .errors import BrainfastError

Floats: TypeAlias = npt.NDArray[np.float64]
Pixels: TypeAlias = npt.NDArray[np.float32]
Limits: TypeAlias = tuple[float, float]

INK, FAINT = "#1d2129", "#6b7280"
DIMMEST = 0.18  # brightness of no confidence: dark, and the hue still to be seen
PERCENTILES = (1.0, 99.0)

# One bright colour after another in the rainbow's order: brightness is left free for confidence.
LAYER_ANCHORS = (
    "#6a5cff",
    "#2f8bff",
    "#12c2e0",
    "#1fcf8a",
    "#93d83c",
    "#f0dc2e",
    "#ff9a2b",
    "#f8503f",
    "#e83a9a",
)
LAYERS = LinearSegmentedColormap.from_list("brainfast.layers", LAYER_ANCHORS)

# Right, upper, left, lower and right again: opposite fields in opposite colours.
ANGLE_ANCHORS = ("#f3c623", "#e8503a", "#3d6be0", "#2aa876", "#f3c623")
ANGLES = LinearSegmentedColormap.from_list("brainfast.angle", ANGLE_ANCHORS)


def layer_colours(L: int) -> Floats:
    """One colour a layer, [L,3] from violet (first) to pink (last)."""
    return np.asarray(LAYERS(np.linspace(0.0, 1.0, L))[:, :3])


def shade(
    colours: npt.NDArray[np.floating],  # [...,3]
    confidence: npt.NDArray[np.floating],  # [...]
) -> Pixels:
    """Colours at full brightness where confidence is 1, dark where it is 0, linear between."""
    bright = DIMMEST + (1.0 - DIMMEST) * confidence
    return np.asarray(colours * bright[..., None], dtype=np.float32)


def angle_rgb(
    x: npt.NDArray[np.floating],  # [...] to the right
    up: npt.NDArray[np.floating],  # [...]
) -> Pixels:
    """Colours [...,3] of the direction in the visual field, NaN where there is none."""
    turn = np.arctan2(up, x) / (2 * math.pi) % 1.0
    colours = np.asarray(ANGLES(np.nan_to_num(turn)))[..., :3]
    return np.where(np.isfinite(turn)[..., None], colours, np.nan).astype(np.float32)


@dataclass(frozen=True)
class Scale:
    """Colours for numbers; `extend` and `note` say on the colour bar what was cut off, and how."""

    colours: Colormap
    norm: Normalize
    extend: str = "neither"
    note: str = ""

    @staticmethod
    def fixed(cmap: str | Colormap, low: float, high: float) -> Scale:
        """The colour map `cmap` from `low` to `high`."""
        if isinstance(cmap, str) and cmap not in matplotlib.colormaps:
            raise BrainfastError("cmap", expected="a matplotlib colour map", got=repr(cmap))
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise BrainfastError("limits", expected="low below high", got=f"{low}, {high}")
        colours = matplotlib.colormaps[cmap] if isinstance(cmap, str) else cmap
        return Scale(colours, Normalize(low, high, clip=True))

    @staticmethod
    def choose(values: Floats, cmap: str | Colormap | None, limits: Limits | None) -> Scale:
        """A scale for `values`: `limits`, or percentiles, symmetric if a tenth is negative."""
        known = values[np.isfinite(values)]
        if not known.size:
            raise BrainfastError("values", expected="at least one finite value", got="none")
        note = ""
        if limits is None:
            low, high = (float(edge) for edge in np.percentile(known, PERCENTILES))
            note = "colours span the 1st to the 99th percentile"
            if np.percentile(known, 10) < 0:
                low, high = -max(-low, high), max(-low, high)
                note += ", symmetric"
            if low == high:
                low, high, note = low - 0.5, high + 0.5, ""
        else:
            low, high = limits
        scale = Scale.fixed(cmap or ("RdBu_r" if low == -high else "inferno"), low, high)
        ends = (bool(known.min() < low), bool(known.max() > high))
        extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
        return Scale(scale.colours, scale.norm, extend.get(ends, "neither"), note)

    def rgb(self, values: npt.NDArray[np.floating]) -> Pixels:  # [...]
        """Colours [...,3], NaN where the value is."""
        colours = np.asarray(self.colours(self.norm(np.nan_to_num(values))))[..., :3]
        return np.where(np.isfinite(values)[..., None], colours, np.nan).astype(np.float32)


def layer_key(ax: Axes, labels: Sequence[object], *, size: float = 8.0) -> None:
    """The two-way key of a layer map: colour along x, confidence along y."""
    L = len(labels)
    sure = np.linspace(0.0, 1.0, 64)[:, None]
    picture = shade(layer_colours(L)[None], np.broadcast_to(sure, (64, L)))
    ax.imshow(picture, origin="lower", aspect="auto", extent=(0, L, 0, 1), interpolation="nearest")
    width = ax.get_window_extent().width / ax.figure.dpi  # inches
    every = max(1, math.ceil(0.034 * size * L / width))  # a tick needs its two digits' width
    ticks = range(0, L, every)
    ax.set_xticks([tick + 0.5 for tick in ticks], [str(labels[tick]) for tick in ticks])
    ax.set_yticks([0, 1])
    ax.tick_params(labelsize=size, length=0 if every == 1 else 2, colors=INK, pad=2)
    ax.set_xlabel("layer", fontsize=size + 1, color=INK, labelpad=2)
    ax.set_ylabel("confidence", fontsize=size, color=INK, labelpad=0)
    ax.spines[:].set_visible(False)


def value_key(figure: Figure, ax: Axes, scale: Scale, label: str, *, size: float = 8.0) -> None:
    """A horizontal colour bar; a pointed end says that values beyond it exist."""
    bar = figure.colorbar(
        ScalarMappable(scale.norm, scale.colours),
        cax=ax,
        orientation="horizontal",
        extend=scale.extend,
    )
    bar.ax.spines[:].set_visible(False)
    bar.ax.tick_params(labelsize=size, length=2, colors=INK, pad=2)
    bar.ax.locator_params(axis="x", nbins=5)
    bar.set_label(label, fontsize=size + 1, color=INK, labelpad=2)
    if scale.note:
        where = {"xy": (0.5, 0.0), "xycoords": bar.ax.xaxis.label, "va": "top", "ha": "center"}
        bar.ax.annotate(scale.note, fontsize=size - 1, color=FAINT, **where)  # type: ignore[arg-type]


def visual_field(ax: Axes, half: float, title: str) -> None:  # degrees
    """Dress axes as the image in the visual field: fixation's cross, degrees, up is up."""
    for line in (ax.axhline, ax.axvline):
        line(0, color=FAINT, linewidth=0.6, zorder=0.5)
    ax.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    ticks = (-half, 0, half)
    names = [f"{tick:g}\N{DEGREE SIGN}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
    ax.set_xticks(ticks, names)
    ax.set_yticks(ticks, names)
    ax.tick_params(labelsize=7, length=2, colors=FAINT, pad=2)
    ax.spines[:].set_color(FAINT)
    ax.set_title(title, fontsize=9, color=INK, pad=5)
