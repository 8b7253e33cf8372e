"""The demo's maps and its one-page report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import maps
from .analysis.hierarchy import hierarchy_slope
from .analysis.scores import Scores, pearson
from .bench import BenchTable
from .card import ParityCard
from .data.algonauts import VISUAL_ANGLE_DEG, Algonauts
from .data.simulated import Planted
from .encoder import Encoder
from .engine import Engine
from .maps import Selectors
from .report import Photograph, Table, build
from .response import Response
from .trunks import Trunk

FOUND = {
    "layer_r": ("layer, centre of mass", "r"),
    "layer_within_one": ("layer, strongest at most one off", "share of vertices"),
    "space_x_r": ("space, horizontal", "r"),
    "space_y_r": ("space, vertical", "r"),
    "space_error": ("space, median error", "half image widths"),
    "scale_r": ("scale", "r"),
}


@dataclass(frozen=True)
class Unseen:
    """Photographs whose source was never trained on: what was predicted, what was measured."""

    images: list[Any]
    predicted: Response
    measured: np.ndarray  # [B,V]


@dataclass(frozen=True)
class DemoResult:
    """All that the demo found."""

    trunk: Trunk
    data: Algonauts
    planted: Planted
    encoder: Encoder
    engine: Engine
    scores: Scores
    selectors: Selectors
    found: dict[str, float]
    parity: list[ParityCard]
    bench: BenchTable
    unseen: Unseen


def write_report(result: DemoResult, out: Path) -> Path:
    """Draw the maps into `out/maps`, write `out/report.html`, and give its path."""
    drawing = list(tqdm(_figures(result, out / "maps"), total=4, desc="maps", unit="map"))
    return build(
        out / "report.html",
        title="A photograph, and what a cortex answers",
        subtitle="FactorTopy trained on a simulated subject, folded into constants and compiled.",
        summary=_summary(result),
        figures=drawing,
        photographs=_photographs(result),
        tables=[_recovery(result), _rois(result), _parity(result), _bench(result)],
        notes=_notes(result),
    )


def _figures(result: DemoResult, folder: Path) -> Iterator[tuple[Path, str]]:
    space, layers = result.data.space, result.trunk.config.layers
    angle = result.encoder.card.space.visual_angle_deg or VISUAL_ANGLE_DEG
    found, planted = result.selectors, result.planted
    names = {"layer": "layer.png", "panel": "planted-and-recovered.png"}
    names |= {"r2": "r2.png", "space": "space.png"}
    paths = {name: folder / file for name, file in names.items()}
    maps.layer_map(found.layer, space, paths["layer"], layers=layers)
    yield (
        paths["layer"],
        "Which block of the trunk every vertex reads. Hue: the block with the largest weight;"
        " brightness: confidence, 1 - H/log L (eq. 2 of the paper).",
    )
    truth = Selectors(planted.space, planted.layer, planted.scale)
    r = result.found
    maps.selector_panel(
        {"planted": truth, "recovered": found},
        space,
        angle,
        paths["panel"],
        layers=layers,
        notes={
            "recovered": [
                f"r = {r['layer_r']:.2f} (centre of mass)",
                f"r = {r['space_x_r']:.2f}",
                f"r = {r['space_y_r']:.2f}",
                f"r = {r['scale_r']:.2f}",
            ]
        },
    )
    yield (
        paths["panel"],
        "What the simulator planted in every vertex, and what training found. Positions are"
        " compared where the planted scale is below 0.8: beyond it a response has none.",
    )
    maps.value_map(result.scores.r2, space, paths["r2"], label="R2 on the heldout photograph")
    yield paths["r2"], "How well the responses to crops of an unseen photograph are predicted."
    maps.space_map(found.space, space, angle, paths["space"], layer=found.layer, layers=layers)
    yield paths["space"], "Where in the visual field every vertex looks, in degrees from fixation."


def _photographs(result: DemoResult) -> list[Photograph]:
    unseen, space = result.unseen, result.data.space
    limit = float(np.percentile(np.abs(unseen.predicted.values), 99))
    shown = []
    for row, image in enumerate(unseen.images):
        predicted, measured = unseen.predicted.values[row], unseen.measured[row]
        r = float(pearson(predicted[:, None], measured[:, None])[0])
        figure = maps.value_map(
            predicted,
            space,
            label="predicted response (z)",
            limits=(-limit, limit),
            cmap="RdBu_r",
            height=3.2,
        )
        caption = f"Never trained on. Over vertices, prediction and measurement have r = {r:.2f}."
        shown.append(Photograph(image, caption, figure))
    return shown


def _summary(result: DemoResult) -> list[tuple[str, object]]:
    rows = [row for row in result.bench.rows if row.batch == 1 and row.median_ms is not None]
    ours = next(row for row in rows if row.library == "brainfast" and row.precision == "fp32")
    normalised = result.scores.summary()["normalised_mean"]
    return [
        ("vertices", result.data.space.V),
        ("R2, unseen photograph", float(np.nanmean(result.scores.r2))),
        ("of the noise ceiling", f"{100 * normalised:.0f} %"),
        ("layer recovered, r", result.found["layer_r"]),
        ("readout of one image", f"{1000 * (ours.best_ms or 0):.0f} µs"),
        ("largest error", f"{result.parity[0].max_error:.0e} sd"),
    ]


def _recovery(result: DemoResult) -> Table:
    rows = [[*FOUND[name], value] for name, value in result.found.items()]
    slope = hierarchy_slope(result.selectors.layer, result.data.space)
    planted = hierarchy_slope(result.planted.layer, result.data.space)
    rows.append(["hierarchy slope", f"planted {planted.slope:.2f}", slope.slope])
    return Table("Selectors recovered", ["selector", "measure", "value"], rows)


def _rois(result: DemoResult) -> Table:
    table = result.scores.roi_table(result.data.space)
    names = ("roi", "vertices", "r2", "r", "ceiling", "normalised")
    rows = [[row[name] for name in names] for row in table]
    note = "Ceilings as planted. Normalised: r squared over the ceiling, as in the challenge."
    heads = ["ROI (synthetic)", "vertices", "R2", "r", "ceiling", "normalised"]
    return Table("Heldout photograph, by ROI", heads, rows, note)


def _parity(result: DemoResult) -> Table:
    rows = [
        [f"{card.form}, {card.trunk_precision}", card.precision, card.max_error, card.rms_error]
        for card in result.parity
    ]
    note = "Against Listing 1 in float64, in standard deviations of the response, all vertices."
    return Table(
        "Parity of the compiled forms", ["trunk", "head", "largest error", "rms error"], rows, note
    )


def _bench(result: DemoResult) -> Table:
    heads = ["form", "library", "images", "best ms", "median ms", "x ours", "largest error"]
    rows = [
        [
            f"{row.form}, {row.precision}",
            row.library,
            row.batch,
            row.best_ms,
            row.median_ms,
            row.ratio,
            row.max_error,
        ]
        for row in result.bench.rows
    ]
    machine = result.bench.machine
    note = (
        f"Readout alone, all forms on the same tokens, interleaved in one process on"
        f" {machine['threads']} threads of {machine['cpu']}; errors against float64."
    )
    return Table("Time of the readout", heads, rows, note)


def _notes(result: DemoResult) -> list[str]:
    notes = [
        "Simulated: the surface is fsaverage5, the photographs are real, the responses follow"
        " FactorTopy's equation with planted selectors and noise. ROIs are discs around published"
        " centres, not an atlas.",
        "Splits are by photograph: crops of one scene never lie on both sides.",
    ]
    if not result.trunk.config.pretrained:
        notes.insert(
            0,
            "The trunk's weights are random (block matrices x "
            f"{result.trunk.config.block_gain:g}): the scores show that the method finds what was"
            " planted, not how well a trained trunk predicts a brain.",
        )
    return notes
