"""Two plots of the readout: latency over the number of images, cost over the number of vertices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from measured import BASE, Measured

# Okabe and Ito's colours: told apart by every kind of colour vision. Line styles say the precision.
COLOURS = {
    "brainfast": "#0072B2",
    "PyTorch": "#D55E00",
    "ONNX Runtime": "#009E73",
    "torch.compile": "#CC79A7",
}
STYLES = {"fp32": "-", "bf16": "--", "bf16x3": ":"}
MARKERS = {"compiled head": "o", "cell form": "s", "Listing 1": "^"}
COST_BATCH = 8
_GAP = 0.045  # between two labels, as a part of the axis

Lines = dict[tuple[str, str, str], dict[int, float]]


def latency(measured: Measured, path: Path) -> None:
    """Best time over B for every form, at the usual sizes."""
    lines: Lines = {}
    for _, row in measured.of_stage("readout", **BASE):
        if row.best_ms is not None:
            key = (row.form, row.library, row.precision)
            lines.setdefault(key, {})[row.batch] = row.best_ms
    _draw(
        lines,
        path,
        title=f"Readout of {BASE['V']:,} vertices",
        across="images in a batch",
        note=measured.about(),
    )


def cost_over_v(measured: Measured, path: Path) -> None:
    """Best time over V for every form, at B = 8."""
    lines: Lines = {}
    for case, row in measured.of_stage("readout", L=BASE["L"], D=BASE["D"]):
        if row.best_ms is not None and row.batch == COST_BATCH:
            key = (row.form, row.library, row.precision)
            lines.setdefault(key, {})[case["V"]] = row.best_ms
    _draw(
        lines,
        path,
        title=f"Readout of {COST_BATCH} images",
        across="vertices",
        note=measured.about(),
    )


def _draw(lines: Lines, path: Path, *, title: str, across: str, note: str) -> None:
    if not lines:  # the readout was not measured
        return
    figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
    axes.set(xscale="log", yscale="log")
    places = sorted({x for points in lines.values() for x in points})
    for (form, library, precision), points in lines.items():
        xs = sorted(points)
        axes.plot(
            xs,
            [points[x] for x in xs],
            color=COLOURS[library],
            linestyle=STYLES[precision],
            marker=MARKERS[form],
            markersize=7,
            linewidth=2.2,
        )
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
    axes.grid(which="major", color="0.88")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=13)
    axes.set_xlabel(across, fontsize=14)
    axes.set_ylabel("time of a call, ms (lower is better)", fontsize=14)
    axes.set_title(title, fontsize=17, loc="left", fontweight="bold")
    figure.text(1, -0.01, note, fontsize=9, color="0.35", ha="right", va="top")
    _label_ends(axes, lines, places[-1])
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    pyplot.close(figure)


def _label_ends(axes: Any, lines: Lines, last: int) -> None:
    """Name every line where it ends, labels pushed apart: beside the axes, or beside its last point
    where it ends early."""
    ends = {key: max(points.items()) for key, points in lines.items()}
    low, high = np.log(axes.get_ylim())
    to_axes = axes.transData + axes.transAxes.inverted()
    for x in {x for x, _ in ends.values()}:
        order = sorted((key for key in ends if ends[key][0] == x), key=lambda key: ends[key][1])
        heights = np.array([(np.log(ends[key][1]) - low) / (high - low) for key in order])
        left = to_axes.transform((x, 1.0))[0] + 0.03 if x < last else 1.04
        for key, height in zip(order, _apart(heights), strict=True):
            form, library, precision = key
            axes.annotate(
                f"{form}, {library} {precision}",
                xy=ends[key],
                xytext=(left, height),
                textcoords="axes fraction",
                fontsize=12,
                va="center",
                color=COLOURS[library],
                annotation_clip=False,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
                arrowprops={
                    "arrowstyle": "-",
                    "color": COLOURS[library],
                    "lw": 0.6,
                    "alpha": 0.5,
                    "relpos": (0, 0.5),
                },
            )


def _apart(wanted: np.ndarray) -> np.ndarray:
    """Ascending heights at least a gap apart, near where they were wanted."""
    steps = _GAP * np.arange(len(wanted))
    # Isotonic: no label may lie below the running best of those before it.
    upwards = np.maximum.accumulate(wanted - steps)
    downwards = np.minimum.accumulate((wanted - steps)[::-1])[::-1]
    return (upwards + downwards) / 2 + steps
