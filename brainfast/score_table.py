"""Scores for people and for scripts: lines of text, and values that are valid JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .analysis.group_scores import group_summary
from .analysis.scores import Scores
from .vertex_space import VertexSpace

WIDTHS = {"r2": 7, "r": 7, "ceiling": 8, "normalised": 11}
HEADINGS = {"r2": "R2", "r": "r", "ceiling": "ceiling", "normalised": "normalised"}


def score_lines(scores: Scores, space: VertexSpace) -> list[str]:
    """A table with one line a region, means over its vertices; why there is no ceiling, if so."""
    lines = [_line("ROI", "vertices", HEADINGS)]
    for row in scores.roi_table(space):
        cells = {name: _cell(row[name]) for name in WIDTHS}
        lines.append(_line(str(row["roi"]), str(row["vertices"]), cells))
    if scores.reason:
        lines.append(f"no normalised score: {scores.reason}")
    return lines


def score_values(scores: Scores, space: VertexSpace) -> dict[str, Any]:
    """Summary and regions for `json.dumps`; what has no value is None."""
    rows = [{key: _known(value) for key, value in row.items()} for row in scores.roi_table(space)]
    summary = {key: _known(value) for key, value in scores.summary().items()}
    return {"summary": summary, "rois": rows, "reason": scores.reason}


def _line(name: str, vertices: str, cells: dict[str, str]) -> str:
    numbers = "".join(f"{cells[key]:>{width}}" for key, width in WIDTHS.items())
    return f"{name:12}{vertices:>9}{numbers}"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def group_lines(scores: Mapping[str, Scores], spaces: Mapping[str, VertexSpace]) -> list[str]:
    """The table of every subject, then the medians and means over all of them."""
    lines = []
    for subject, found in scores.items():
        lines += [f"{subject}: {found.n} images", *score_lines(found, spaces[subject]), ""]
    summary = group_summary(scores)
    lines.append(f"{len(scores)} subjects: median R2 {_cell(summary['r2_median'])}")
    if math.isfinite(summary["normalised_mean"]):
        lines[-1] += f", challenge score {_cell(summary['normalised_mean'])}"
    return lines


def group_values(scores: Mapping[str, Scores], spaces: Mapping[str, VertexSpace]) -> dict[str, Any]:
    """Every subject's values and those over all of them, for `json.dumps`."""
    return {
        "subjects": {name: score_values(found, spaces[name]) for name, found in scores.items()},
        "summary": {key: _known(value) for key, value in group_summary(scores).items()},
    }
