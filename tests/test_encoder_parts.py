"""Scores of a split of which some trials, or some vertices of some, were not measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from brainfast.analysis.scores import Scores, challenge_score, pearson, r2
from brainfast.data.responses import Responses
from brainfast.data.splits import Split
from brainfast.encoder_parts import score_card, score_split
from brainfast.errors import BrainfastError
from brainfast.vertex_space import VertexSpace

N, V = 40, 5


def scored(measured: np.ndarray, predicted: np.ndarray, batch: int = 16) -> Scores:
    split = Split(
        name="heldout",
        images=[None] * N,
        responses=Responses([measured], allow_nan=True),
        image_ids=np.array([f"image-{row}" for row in range(N)]),
        space=VertexSpace("custom", np.arange(V), np.arange(0)),
        ceiling=np.linspace(0.3, 0.9, V).astype(np.float32),
        ceiling_reason=None,
        hash="split",
    )
    parts = (predicted[start : start + batch] for start in range(0, N, batch))
    return score_split(parts, split, "model", progress=False)


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(4)
    measured = random.standard_normal((N, V)).astype(np.float32)
    return measured, (measured + random.standard_normal((N, V))).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 16, N])
def test_a_vertex_is_scored_on_the_trials_that_measured_it(
    answers: tuple[np.ndarray, np.ndarray], batch: int
) -> None:
    measured, predicted = answers
    measured[[0, 3, 20]] = np.nan  # trials without data
    measured[24:, 1] = np.nan  # a session that missed a vertex
    measured[:, 2] = np.nan  # nowhere measured
    measured[1:, 4] = np.nan
    measured[7, 4] = 1.0  # once
    scores = scored(measured, predicted, batch)
    for vertex in (0, 1, 3):
        known = ~np.isnan(measured[:, vertex])
        assert known.sum() < N
        pair = predicted[known, vertex][:, None], measured[known, vertex][:, None]
        assert scores.r2[vertex] == pytest.approx(r2(*pair)[0], rel=1e-12)
        assert scores.r[vertex] == pytest.approx(pearson(*pair)[0], rel=1e-12)
    assert np.isnan(scores.r2).tolist() == [False, False, True, False, True]
    assert scores.n == N - 3
    ceiling = np.linspace(0.3, 0.9, V).astype(np.float32)
    expected = challenge_score(scores.r, ceiling)
    np.testing.assert_array_equal(scores.normalised, expected)
    card = score_card("heldout", scores)
    assert card.images == N - 3
    assert card.r2_mean == pytest.approx(scores.r2[[0, 1, 3]].mean())
    assert card.challenge_mean == pytest.approx(expected[[0, 1, 3]].mean())


def test_trials_without_data_change_nothing(
    answers: tuple[np.ndarray, np.ndarray], tmp_path
) -> None:
    measured, predicted = answers
    measured[5:9] = np.nan
    kept = np.setdiff1d(np.arange(N), np.arange(5, 9))
    scores = scored(measured, predicted)
    np.testing.assert_allclose(scores.r2, r2(predicted[kept], measured[kept]), rtol=1e-12)
    np.testing.assert_allclose(scores.r, pearson(predicted[kept], measured[kept]), rtol=1e-12)
    scores.save(tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["n"] == len(kept)


def test_a_split_without_measurements_is_an_error(answers: tuple[np.ndarray, np.ndarray]) -> None:
    measured, predicted = answers
    measured[1:] = np.nan
    with pytest.raises(BrainfastError, match="at least 2 images measured, got 1"):
        scored(measured, predicted)
