from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import r2_score

from brainfast.analysis.scores import (
    ScoreAccumulator,
    Scores,
    challenge_score,
    noise_ceiling,
    pearson,
    r2,
    score,
)
from brainfast.errors import BrainfastError
from brainfast.vertex_space import VertexSpace


@pytest.fixture
def answers():
    random = np.random.default_rng(0)
    measured = random.normal(size=(300, 7)).astype(np.float32)
    predicted = 0.6 * measured + random.normal(size=measured.shape).astype(np.float32)
    return predicted.astype(np.float32), measured


def space():
    rois = {"V1v": np.arange(7) < 2, "EBA": np.isin(np.arange(7), [3, 5])}
    return VertexSpace("custom", np.arange(4), np.arange(3), rois)


def test_r2_is_scikit_learns(answers):
    predicted, measured = answers
    want = r2_score(measured.astype(float), predicted.astype(float), multioutput="raw_values")
    np.testing.assert_allclose(r2(predicted, measured), want, rtol=1e-12)


def test_pearson_is_scipys(answers):
    predicted, measured = answers
    want = [pearsonr(*pair).statistic for pair in zip(predicted.T, measured.T, strict=True)]
    np.testing.assert_allclose(pearson(predicted, measured), want, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_neither_batches_nor_an_offset_change_the_scores(cuts, offset):
    random = np.random.default_rng(1)
    measured = random.normal(size=(40, 3))
    predicted = measured + random.normal(size=(40, 3))
    accumulator = ScoreAccumulator()
    for rows in np.split(np.arange(40), sorted(cuts)):
        accumulator.update(predicted[rows] + offset, measured[rows] + offset)
    np.testing.assert_allclose(accumulator.r2(), r2(predicted, measured), rtol=1e-8)
    np.testing.assert_allclose(accumulator.pearson(), pearson(predicted, measured), rtol=1e-8)


def test_float32_responses_far_from_zero_keep_their_digits():
    random = np.random.default_rng(2)
    measured = (1000 + random.normal(size=(500, 2))).astype(np.float32)
    predicted = (measured + random.normal(size=measured.shape)).astype(np.float32)
    want = r2_score(measured.astype(float), predicted.astype(float), multioutput="raw_values")
    np.testing.assert_allclose(r2(predicted, measured), want, rtol=1e-10)


def test_the_mean_scores_zero_and_the_truth_one(answers):
    _, measured = answers
    mean = np.broadcast_to(measured.mean(axis=0, dtype=float), measured.shape)
    np.testing.assert_allclose(r2(mean, measured), 0, atol=1e-12)
    np.testing.assert_array_equal(r2(measured, measured), 1)
    np.testing.assert_allclose(pearson(-measured, measured), -1)


def test_vertices_without_a_score():
    random = np.random.default_rng(3)
    measured = random.normal(size=(300, 4)).astype(np.float32)
    predicted = random.normal(size=(300, 4)).astype(np.float32)
    measured[:, 0] = 0.1  # constant, and 0.1 has no exact mean in binary
    measured[1:, 1] = np.nan
    predicted[:, 2] = 0.3
    assert np.isnan(r2(predicted, measured)).tolist() == [True, True, False, False]
    r = pearson(predicted, measured)
    assert np.isnan(r).tolist() == [True, True, False, False]
    assert r[2] == 0
    predicted[:, 0] = 0.3
    assert np.isnan(pearson(predicted, measured)[0])


@pytest.mark.parametrize("batch", [1, 9, 300])
def test_each_vertex_is_scored_on_its_own_trials(batch):
    random = np.random.default_rng(5)
    measured = random.standard_normal((300, 7)) + 30
    predicted = measured + random.standard_normal((300, 7))
    present = random.random((300, 7)) < 0.7
    present[[0, 100]] = False
    present[:, 2] = False
    present[1:, 3] = False
    present[8, 3] = True  # one trial only
    measured[:, 4] = 0.1
    predicted[:, 5] = 1
    measured[~present] = np.nan
    accumulator = ScoreAccumulator()
    for start in range(0, 300, batch):
        accumulator.update(predicted[start : start + batch], measured[start : start + batch])
    for vertex in (0, 1, 5, 6):
        pair = predicted[present[:, vertex], vertex], measured[present[:, vertex], vertex]
        r = 0 if vertex == 5 else pearsonr(*pair).statistic
        assert accumulator.r2()[vertex] == pytest.approx(r2_score(*reversed(pair)), rel=1e-9)
        assert accumulator.pearson()[vertex] == pytest.approx(r, rel=1e-9)
    for values in (accumulator.r2(), accumulator.pearson()):
        assert np.flatnonzero(np.isnan(values)).tolist() == [2, 3, 4]
    assert accumulator.n == present.any(axis=1).sum() == 298


def test_noise_ceiling():
    ncsnr = np.array([0.0, 0.5, 1.0, np.nan])
    np.testing.assert_allclose(
        noise_ceiling(ncsnr, n3=10), [0, 0.25 / (0.25 + 1 / 3), 0.75, np.nan]
    )
    mixed = noise_ceiling(ncsnr, n1=1, n2=2, n3=3)
    np.testing.assert_allclose(mixed[2], 1 / (1 + (3 / 3 + 2 / 2 + 1) / 6))


def test_challenge_score():
    r = [-0.9, 0.5, 0.5, 0.9, 0.0, np.nan, 0.5]
    ceiling = [0.5, 0.5, 0.1, 0.0, 0.0, 0.5, np.nan]
    np.testing.assert_allclose(challenge_score(r, ceiling), [0, 0.5, 1.0, 1.0, 0.0, np.nan, np.nan])
    np.testing.assert_allclose(challenge_score([1e-8], [0.0]), [1e-2])


@settings(max_examples=50, deadline=None)
@given(st.floats(-1, 1), st.floats(0, 1))
def test_challenge_score_stays_between_0_and_1(r, ceiling):
    value = challenge_score([r], [ceiling])[0]
    assert 0 <= value <= 1
    assert value >= max(r, 0) ** 2 * (1 - 1e-12)


def test_without_a_ceiling_the_normalised_score_is_nan_with_a_reason(answers):
    scores = score(*answers)
    assert np.isnan(scores.normalised).all()
    assert scores.reason
    assert score(*answers, reason="no --ncsnr").reason == "no --ncsnr"
    assert math.isnan(scores.summary()["normalised_mean"])
    assert "not normalised" in repr(scores)


def test_summary_leaves_out_what_has_no_score(answers):
    predicted, measured = answers
    measured[:, 6] = 1
    scores = score(predicted, measured, np.full(7, 0.8))
    numbers = scores.summary()
    assert numbers["n"] == 300
    assert numbers["vertices"] == 7
    assert numbers["r2_mean"] == pytest.approx(scores.r2[:6].mean())
    assert numbers["normalised_median"] == pytest.approx(np.median(scores.r[:6] ** 2 / 0.8))
    assert scores.reason is None


def test_roi_table(answers):
    scores = score(*answers, np.full(7, 0.8))
    rows = {row["roi"]: row for row in scores.roi_table(space())}
    assert rows["all"]["vertices"] == 7
    assert rows["V1v"]["r2"] == pytest.approx(scores.r2[:2].mean())
    assert rows["EBA"]["r"] == pytest.approx(scores.r[[3, 5]].mean())
    assert rows["EBA"]["ceiling"] == pytest.approx(0.8)
    halves = {row["roi"]: row for row in scores.roi_table(space(), hemispheres=True)}
    assert halves["lh.EBA"]["vertices"] == halves["rh.EBA"]["vertices"] == 1
    assert halves["rh.EBA"]["r2"] == pytest.approx(scores.r2[5])
    assert "rh.V1v" not in halves
    with pytest.raises(BrainfastError, match="7 vertices"):
        scores.roi_table(space().take(np.arange(3)))


@pytest.mark.parametrize("ceiling", [None, np.linspace(0, 1, 7)])
def test_save_and_load(tmp_path, answers, ceiling):
    scores = score(*answers, ceiling, reason="none", split_hash="s", model_hash="m")
    scores.save(tmp_path)
    again = Scores.load(tmp_path)
    for name in ("r2", "r", "normalised"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scores, name))
    assert (again.n, again.split_hash, again.model_hash) == (300, "s", "m")
    assert again.reason == (None if ceiling is not None else "none")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.json", "scores.safetensors"]


def test_files_that_do_not_belong_together_are_refused(tmp_path, answers):
    predicted, measured = answers
    score(predicted, measured).save(tmp_path)
    old = (tmp_path / "scores.json").read_bytes()
    score(predicted / 2, measured).save(tmp_path)
    (tmp_path / "scores.json").write_bytes(old)
    with pytest.raises(BrainfastError, match=r"evaluate again"):
        Scores.load(tmp_path)
    (tmp_path / "scores.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(BrainfastError, match="format 1"):
        Scores.load(tmp_path)


def test_bad_input(answers):
    predicted, measured = answers
    with pytest.raises(BrainfastError, match="one size"):
        r2(predicted[:, :3], measured)
    with pytest.raises(BrainfastError, match="2 images"):
        r2(predicted[:1], measured[:1])
    with pytest.raises(BrainfastError, match="finite"):
        r2(np.where(predicted > 1, np.nan, predicted), measured)
    with pytest.raises(BrainfastError, match="infinity"):
        r2(predicted, np.where(measured > 1, np.inf, measured))
    with pytest.raises(BrainfastError, match="percent"):
        challenge_score([0.5], [30.0])
    with pytest.raises(BrainfastError, match="ceiling"):
        score(predicted, measured, np.ones(3))
    with pytest.raises(BrainfastError, match="ncsnr"):
        noise_ceiling([-1.0], n3=1)
    with pytest.raises(BrainfastError, match="at least one image"):
        noise_ceiling([1.0])
    accumulator = ScoreAccumulator()
    accumulator.update(predicted, measured)
    with pytest.raises(BrainfastError, match="as before"):
        accumulator.update(predicted[:, :3], measured[:, :3])
