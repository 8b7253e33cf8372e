"""A picture of a rehearsal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ..files import atomic_path
from ..flat_sheet import check_picture
from ..map_colours import FAINT, INK
from .rehearse import Rehearsed

ACCENT, WARM, PALE = "#2f6fde", "#e8603c", "#b9c0cb"
SIZE = 10.0


def plot(run: Rehearsed, path: str | Path | None = None) -> Figure:
    """Three panels: every trial's prediction and measurement; regret; the latency of choosing.

    path: of a PNG, PDF or SVG to write; another ending is a BrainfastError
    """
    if path is not None:
        check_picture(path)
    figure = Figure(figsize=(11.0, 7.0), dpi=160, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1.0), width_ratios=(1.6, 1.0))
    places = (grid[0, :], grid[1, 0], grid[1, 1])
    trials, regret, latency = (figure.add_subplot(part) for part in places)
    _draw_trials(trials, run)
    _draw_regret(regret, run)
    _draw_latency(latency, run)
    for ax in (trials, regret, latency):
        _dress(ax)
    figure.suptitle(
        f"Rehearsal of {run.objective}, {run.strategy}, {len(run.played)} trials",
        x=0.01,
        ha="left",
        fontsize=SIZE + 4,
        color=INK,
    )
    if path is not None:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:].lower())
    return figure


def _draw_trials(ax: Axes, run: Rehearsed) -> None:
    number = np.arange(1, len(run.played) + 1)
    score, sd, measured, true = (
        np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        for values in (
            [trial.choice.score for trial in run.played],
            [trial.choice.uncertainty for trial in run.played],
            [trial.measured for trial in run.played],
            [trial.true for trial in run.played],
        )
    )
    ax.fill_between(
        number, score - sd, score + sd, color=ACCENT, alpha=0.14, lw=0, label="\u00b1 1 sd"
    )
    ax.plot(number, score, color=ACCENT, lw=1.8, label="predicted")
    ax.plot(number, true, color=INK, lw=1.2, ls=(0, (1, 1.5)), label="true, without noise")
    ax.plot(number, measured, "o", color=WARM, ms=4.2, mec="white", mew=0.5, label="measured")
    lost = np.isnan(measured)
    floor = float(np.nanmin(np.concatenate([score - sd, measured, true])))
    if lost.any():
        ax.plot(number[lost], np.full(lost.sum(), floor), "x", color=FAINT, ms=6, label="lost")
    late = np.array([trial.choice.late for trial in run.played])
    if late.any():
        ax.plot(number[late], np.full(late.sum(), floor), "|", color=WARM, ms=11, label="late")
    ax.axhline(0, color=PALE, lw=0.8, zorder=0)
    ax.set(xlim=(0.5, len(number) + 0.5), xlabel="trial", ylabel=f"{run.objective} (z)")
    ax.set_title("What was asked for, and what came back")
    ax.legend(
        ncols=6,
        frameon=False,
        fontsize=SIZE - 1,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2,
        handlelength=1.4,
        columnspacing=1.2,
    )


def _draw_regret(ax: Axes, run: Rehearsed) -> None:
    number = np.arange(1, len(run.played) + 1)
    curves = [(np.cumsum(run.regret) / number, ACCENT, f"session, {run.strategy}")]
    if run.model_regret is not None:
        curves.insert(0, (np.cumsum(run.model_regret) / number, INK, "model alone"))
    if run.random_regret is not None:
        random = np.cumsum(run.random_regret, axis=1) / number
        ax.plot(number, random.T, color=PALE, lw=0.6, alpha=0.7)
        curves.insert(0, (random.mean(axis=0), FAINT, f"random ({len(random)} seeds)"))
    for values, colour, label in curves:
        ax.plot(number, values, color=colour, lw=2.0, label=label)
    ax.set(xlim=(1, max(len(number), 2)), xlabel="trial", ylabel="mean regret so far (z)")
    ax.set_ylim(bottom=0)
    ax.set_title("Regret against the best image left")
    ax.legend(frameon=False, fontsize=SIZE - 1, loc="best")


def _draw_latency(ax: Axes, run: Rehearsed) -> None:
    latency = np.asarray(run.stages["choose"]) * 1e3
    top = max(float(latency.max()) * 1.3, run.deadline_ms * 1.3)
    low = min(float(latency.min()) * 0.7, run.deadline_ms * 0.01)
    ax.hist(latency, bins=list(np.geomspace(low, top, 41)), color=ACCENT, alpha=0.85)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.axvline(run.deadline_ms, color=WARM, lw=1.6)
    ax.annotate(
        f"deadline {run.deadline_ms:g} ms ",
        (run.deadline_ms, 0.97),
        xycoords=("data", "axes fraction"),
        ha="right",
        va="top",
        fontsize=SIZE - 1,
        color=WARM,
    )
    p50, p99 = np.percentile(latency, [50, 99])
    ax.set(xlabel="ms", ylabel="choices")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(f"Time to choose: p50 {p50:.2g} ms, p99 {p99:.2g} ms")


def _dress(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(PALE)
    ax.tick_params(colors=FAINT, labelsize=SIZE - 1, length=3)
    ax.xaxis.label.set(color=INK, size=SIZE)
    ax.yaxis.label.set(color=INK, size=SIZE)
    ax.title.set(color=INK, size=SIZE + 1, ha="left", x=0.0)
