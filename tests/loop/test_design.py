"""The reduced numbers of every candidate: what they must keep of the pool and the objective."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.files import load_tensors
from brainfast.loop import ArrayCandidates, FoldedObjective, design_build
from brainfast.loop.design import ObjectiveModel
from brainfast.loop.design_build import build_design
from brainfast.loop.design_file import design_hash, load_design, save_design
from brainfast.loop.posterior import fit
from loop_world import READOUT, WEIGHTS, F, N, features, objective, pool


def built(candidates: ArrayCandidates | None = None, **options: Any) -> ObjectiveModel:
    """The numbers of one objective."""
    return build_design(
        pool() if candidates is None else candidates, [objective()], **options
    ).models[0]


def test_prior_mean_is_the_folded_template() -> None:
    design = built()
    expected = features() @ (WEIGHTS @ READOUT) + 0.25
    found = design.z @ design.prior(0.5).mean
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_columns_are_uncorrelated_with_the_score_and_together_of_variance_one() -> None:
    z = built().z
    np.testing.assert_allclose(z[:, 0], 1.0)
    np.testing.assert_allclose(z[:, 1:].mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(z[:, 1] @ z[:, 2:], 0.0, atol=1e-5)
    assert z[:, 2:].var(axis=0).sum() == pytest.approx(1.0, rel=1e-5)


def test_any_other_linear_function_can_be_learnt() -> None:
    """With all components, what the features tell linearly is within reach."""
    design = built()
    truth = features() @ np.random.default_rng(5).standard_normal(F)
    posterior = fit(design.prior(0.01), design.z, truth, np.full(N, 1e-9))
    np.testing.assert_allclose(design.z @ posterior.mean, truth, atol=1e-3)


def test_equal_images_have_equal_rows() -> None:
    z = built().z
    assert np.array_equal(z[3], z[7])
    assert not np.array_equal(z[3], z[4])


def test_components_of_a_sample_serve_the_whole_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(design_build, "SAMPLE", 12)
    monkeypatch.setattr(design_build, "CHUNK_NUMBERS", 70)  # seven candidates at a time
    small = built(components=5, seed=3)
    assert small.z.shape == (N, 7)
    assert np.array_equal(built(components=5, seed=3).z, small.z)
    whole = features() @ (WEIGHTS @ READOUT) + 0.25
    np.testing.assert_allclose(small.z @ small.prior(0.5).mean, whole, atol=1e-6)


@pytest.mark.parametrize("components", [0, 3])
def test_fewer_components(components: int) -> None:
    assert built(components=components).z.shape == (N, 2 + components)


def test_a_pool_of_the_score_alone_has_no_components() -> None:
    """What rounding leaves is none, so that all of the model's error is each image's own."""
    scores = (features() @ objective().template)[:, None].astype(np.float32)
    goal = replace(objective(), template=np.full(1, 0.7, np.float32))
    model = build_design(ArrayCandidates(scores, pool().ids), [goal]).models[0]
    assert model.z.shape == (N, 2)
    prior = model.prior(0.2)
    assert prior.own == pytest.approx(4 * model.spread**2)
    assert prior.noise == pytest.approx(model.noise + prior.own)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_file_keeps_the_share_of_own_error(tmp_path: Path, share: float) -> None:
    """So that a log from before it was all of the error without components replays."""
    design = build_design(pool(), [objective()], components=0)
    assert design.models[0].own_share == 1.0
    design = replace(design, models=(replace(design.models[0], own_share=share),))
    save_design(design, tmp_path / "d")
    about = load_tensors(tmp_path / "d")["0.about"]
    assert len(about) == (3 if share == 0.25 else 4)
    model = load_design(tmp_path / "d", design_hash(design)).models[0]
    assert model.prior(0.5).own == pytest.approx(share * model.spread**2)


def test_one_candidate_and_equal_candidates() -> None:
    assert built(pool(n=1)).z.tolist() == [[1.0, 0.0]]
    same = ArrayCandidates(np.ones((4, F), np.float32), list("abcd"))
    design = built(same)
    assert design.spread == 0.0
    assert np.isfinite(fit(design.prior(0.5), design.z[:1], np.ones(1), np.ones(1)).mean).all()


def test_saved_and_loaded(tmp_path: Path) -> None:
    """Of several objectives, whose numbers stay their own."""
    goals = [objective(), replace(objective(), name="other", template=READOUT[0])]
    design = build_design(pool(), goals, ceiling=np.linspace(0, 1, 6))
    save_design(design, tmp_path / "d")
    loaded = load_design(tmp_path / "d", design_hash(design))
    assert (loaded.ids, loaded.names) == (design.ids, ("first - last", "other"))
    assert design_hash(loaded) == design_hash(design)
    for found, model in zip(loaded.models, design.models, strict=True):
        assert np.array_equal(found.z, model.z)
        assert not found.adapt
        prior, other = found.prior(0.5), model.prior(0.5)
        assert np.array_equal(prior.mean, other.mean)
        assert prior.noise == other.noise


def test_several_objectives_are_each_as_if_alone() -> None:
    goals = [objective(), replace(objective(), name="other", template=READOUT[0], offset=-1.0)]
    together = build_design(pool(), goals, ceiling=np.linspace(0, 1, 6))
    for goal, model in zip(goals, together.models, strict=True):
        alone = build_design(pool(), [goal], ceiling=np.linspace(0, 1, 6)).models[0]
        assert np.array_equal(model.z, alone.z)
        assert (model.centre, model.spread) == (alone.centre, alone.spread)


def test_another_design_file_is_refused(tmp_path: Path) -> None:
    save_design(build_design(pool(1), [objective()]), tmp_path / "d")
    with pytest.raises(BrainfastError, match="written with this log"):
        load_design(tmp_path / "d", design_hash(build_design(pool(), [objective()])))


class Wrong(ArrayCandidates):
    """Gives NaN for one candidate."""

    def features(self, rows: np.ndarray) -> np.ndarray:
        values = super().features(rows).copy()
        values[rows == 5] = np.nan
        return values


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (lambda: ArrayCandidates(np.zeros((0, F), np.float32), []), "at least one candidate"),
        (lambda: ArrayCandidates(np.zeros((2, F), np.float32), ["a", "a"]), "'a' twice"),
        (lambda: ArrayCandidates(np.zeros((2, 3), np.float32), ["a", "b"]), "10 features"),
        (lambda: Wrong(features(), pool().ids), "features of image-05"),
    ],
)
def test_bad_pools_are_refused(candidates: object, message: str) -> None:
    with pytest.raises(BrainfastError, match=message):
        built(candidates())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("weights", "template", "message"),
    [
        (np.zeros(3), np.ones(4), "zeros only"),
        (np.ones((2, 3)), np.ones((2, 4)), "one objective"),
        (np.array([1, np.nan]), np.ones(4), "weights"),
        (np.ones(2), np.array([np.inf]), "template"),
    ],
)
def test_bad_objectives_are_refused(
    weights: np.ndarray, template: np.ndarray, message: str
) -> None:
    with pytest.raises(BrainfastError, match=message):
        FoldedObjective("x", weights, template, 0.0)


@pytest.mark.parametrize("offset", [np.nan, np.inf])
def test_offset_must_be_finite(offset: float) -> None:
    with pytest.raises(BrainfastError, match="offset of x: expected a finite number"):
        FoldedObjective("x", np.ones(2), np.ones(3), offset)


def test_ids_must_be_texts() -> None:
    with pytest.raises(BrainfastError, match=r"ids: expected texts, got 1 of type int; give str"):
        ArrayCandidates(np.zeros((2, 3), np.float32), [1, 2])  # type: ignore[list-item]


def test_features_must_fit_their_ids() -> None:
    with pytest.raises(BrainfastError, match="of 3 candidates"):
        ArrayCandidates(np.zeros((2, 3), np.float32), list("abc"))
