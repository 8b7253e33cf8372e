"""Volumes to vertices, betas to one response, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from brainfast.errors import BrainfastError
from brainfast.loop import project
from brainfast.loop.measured import (
    Measurement,
    Weighted,
    check_betas,
    noise_variance,
    vertex_noise,
)

NOISE = np.array([0.5, 0.6, 0.7, 0.8])


def measure(betas: np.ndarray, weights: np.ndarray, noise: np.ndarray) -> Measurement:
    return Weighted(weights, noise).measure(betas)


def test_project_is_a_sum_over_voxels_in_c_order() -> None:
    volume = np.random.default_rng(0).standard_normal((2, 3, 4))
    dense = np.zeros((3, 24))
    dense[0, 5], dense[0, 23], dense[2, 0] = 0.25, 0.75, 2.0
    found = project(volume, scipy.sparse.coo_matrix(dense))
    expected = [0.25 * volume[0, 1, 1] + 0.75 * volume[1, 2, 3], np.nan, 2 * volume[0, 0, 0]]
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=1e-6)
    assert found.dtype == np.float32


def test_project_gives_nan_only_where_a_nan_voxel_is_read() -> None:
    volume = np.ones((1, 1, 3))
    volume[0, 0, 1] = np.nan
    matrix = scipy.sparse.csr_array(([1.0, 0.0, 1.0], ([0, 0, 1], [0, 1, 1])), shape=(2, 3))
    np.testing.assert_array_equal(project(volume, matrix), [1.0, np.nan])
    assert matrix.nnz == 3, "the caller's matrix is left alone"


def test_project_refuses_another_volume() -> None:
    with pytest.raises(BrainfastError, match=r"\[2, 2, 2\] and \[3, 9\]"):
        project(np.zeros((2, 2, 2)), scipy.sparse.csr_array((3, 9)))


def test_response_is_weights_times_betas() -> None:
    weights = np.array([0.5, 0.5, 0.0, -1.0], np.float32)
    betas = np.array([1.0, 3.0, np.nan, 2.0], np.float32)
    assert measure(betas, weights, NOISE) == (0.0, 1.0)


def test_missing_vertices_keep_the_mean_of_each_side() -> None:
    weights = np.array([0.5, 0.5, -0.5, -0.5], np.float32)
    betas = np.array([np.nan, 3.0, 1.0, 2.0], np.float32)
    found = measure(betas, weights, NOISE)
    assert found.response == pytest.approx(3.0 - 1.5)
    kept = np.array([0.0, 1.0, -0.5, -0.5])
    whole = weights.astype(float)
    expected = noise_variance(kept, NOISE) / noise_variance(whole, NOISE)
    assert found.relative_noise == pytest.approx(expected)
    assert found.relative_noise > 1


def test_a_region_does_not_stand_in_for_another_of_its_sign() -> None:
    """Two positive weights that hardly differ, betas that do."""
    weights = np.array([0.25] * 4 + [0.251] * 2, np.float32)
    betas, noise = np.array([2.0] * 4 + [6.0] * 2, np.float32), np.full(6, 0.7)
    expected = float(weights.astype(float) @ betas)
    lost = betas.copy()
    lost[[1, 5]] = np.nan
    assert measure(lost, weights, noise).response == pytest.approx(expected)
    lost[4] = np.nan
    with pytest.raises(BrainfastError, match=r"half.*got 0 % of the 2 vertices of weight 0\.251"):
        measure(lost, weights, noise)


def test_less_than_half_of_a_region_is_refused() -> None:
    weights, noise = np.array([0.2] * 5 + [-1.0], np.float32), np.full(6, 0.7)
    betas = np.array([np.nan, np.nan, 3, 1, 2, 1], np.float32)
    assert measure(betas, weights, noise).response == pytest.approx(2.0 - 1.0)
    betas[2] = np.nan
    with pytest.raises(BrainfastError, match=r"got 40 % of the 5 vertices") as caught:
        measure(betas, weights, noise)
    assert "\n" not in str(caught.value)


def test_a_map_of_many_weights_has_two_sides() -> None:
    weights = np.concatenate([np.linspace(1, 2, 70), -np.linspace(1, 2, 70)]).astype(np.float32)
    betas, noise = np.ones(140, np.float32), np.full(140, 0.7)
    betas[70:] = 3.0
    expected = float(weights.astype(float) @ betas)
    betas[[0, 5, 139]] = np.nan
    assert measure(betas, weights, noise).response == pytest.approx(expected)
    betas[70:] = np.nan
    with pytest.raises(BrainfastError, match="0 % of the 70 vertices of sign -1"):
        measure(betas, weights, noise)


def test_vertices_that_do_not_count_may_be_missing() -> None:
    weights = np.array([0.5, 0.5, -1.0, 0.0], np.float32)
    assert measure(np.array([1, 1, 2, np.nan], np.float32), weights, NOISE) == (-1.0, 1.0)


def test_noise_of_a_side_adds_up_and_that_of_another_does_not_cancel() -> None:
    # By hand: sd 1 everywhere, correlation 0.2 within a side.
    assert noise_variance(np.array([1.0, 1.0]), np.ones(2)) == pytest.approx(2 + 2 * 0.2)
    assert noise_variance(np.array([1.0, -1.0]), np.ones(2)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (np.zeros(5, np.float32), r"betas \[4\].*got float32 \[5\]"),
        (np.zeros((1, 4)), r"got float64 \[1, 4\]"),
        (np.array(["a"] * 4), "got <U1"),
        (np.full(4, np.nan), "NaN at all"),
        (np.array([1, 2, np.inf, 3.0]), "1 infinite"),
        (np.array([1, 2, 1e39, 3.0]), "1 infinite"),
    ],
)
def test_wrong_betas_are_refused(betas: np.ndarray, message: str) -> None:
    with pytest.raises(BrainfastError, match=message):
        check_betas(betas, 4)


def test_ceilings_become_noise() -> None:
    np.testing.assert_allclose(vertex_noise(None, 3), 0.7)
    given = vertex_noise(np.array([0.25, np.nan, 1.0], np.float32), 3)
    np.testing.assert_allclose(given, [0.75, 1.0, 1e-3])


@pytest.mark.parametrize("ceiling", [[0.1, 0.2], [0.1, 0.2, 30.0], [-0.1, 0, 0], ["a", "b", "c"]])
def test_wrong_ceilings_are_refused(ceiling: list[object]) -> None:
    with pytest.raises(BrainfastError, match="fractions"):
        vertex_noise(np.array(ceiling), 3)
