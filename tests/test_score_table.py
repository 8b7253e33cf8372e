"""Score tables: aligned text, and JSON without NaN."""

from __future__ import annotations

import json

import numpy as np

from brainfast.analysis.scores import score
from brainfast.score_table import score_lines, score_values
from brainfast.vertex_space import VertexSpace

SPACE = VertexSpace(
    "custom", np.arange(3), np.arange(2), {"EBA": np.array([True, True, False, False, False])}
)


def make_scores(ceiling: np.ndarray | None = None):
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(30, 5))
    return score(measured + rng.normal(size=(30, 5)), measured, ceiling)


def test_lines_are_aligned_and_hold_the_means() -> None:
    scores = make_scores(np.full(5, 0.8))
    head, whole, region = score_lines(scores, SPACE)
    assert len(head) == len(whole) == len(region)
    assert region.split() == [
        "EBA",
        "2",
        *(
            f"{value:.3f}"
            for value in (
                scores.r2[:2].mean(),
                scores.r[:2].mean(),
                0.8,
                scores.normalised[:2].mean(),
            )
        ),
    ]


def test_what_is_not_known_is_a_dash_and_null() -> None:
    scores = make_scores()
    lines = score_lines(scores, SPACE)
    assert lines[1].split()[-2:] == ["-", "-"]
    assert lines[-1].startswith("no normalised score: ")
    values = json.loads(json.dumps(score_values(scores, SPACE), allow_nan=False))
    assert values["rois"][0]["normalised"] is None
    assert values["summary"]["ceiling_mean"] is None
    assert values["summary"]["r2_mean"] == np.mean(scores.r2)
