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


FIRST, LAST = np.arange(300) < 150, np.arange(300) >= 149  # they share vertex 149
OVERLAP = (FIRST / FIRST.sum() + LAST / LAST.sum()).astype(np.float32)
MAP = np.random.default_rng(6).standard_normal(60).astype(np.float32)


@pytest.mark.parametrize(
    ("weights", "lost", "other"),
    [(OVERLAP, 149, np.arange(300)), (MAP, 5, np.flatnonzero(np.sign(MAP) == np.sign(MAP[5])))],
    ids=["overlap", "map"],
)
def test_one_vertex_with_a_weight_of_its_own_may_be_missing(
    weights: np.ndarray, lost: int, other: np.ndarray
) -> None:
    """The others of its side grow by what it weighed."""
    betas = np.random.default_rng(0).standard_normal(len(weights)).astype(np.float32)
    betas[lost] = np.nan
    there = np.setdiff1d(other, lost)
    grown = weights.astype(float)
    grown[there] *= grown[other].sum() / grown[there].sum()
    grown[lost] = 0.0
    found = measure(betas, weights, np.full(len(weights), 0.7))
    assert found.response == pytest.approx(grown @ np.nan_to_num(betas))
    assert 1 < found.relative_noise < 1.1


def test_a_side_stands_in_for_few_of_its_vertices_only() -> None:
    """Ten regions of a tenth of the weight each, and one of a twentieth."""
    weights = np.concatenate([np.full(20, 1 + n / 1000) for n in range(9)] + [np.full(20, 0.4)])
    betas = np.ones(200, np.float32)
    betas[180:] = np.nan
    found = measure(betas, weights.astype(np.float32), np.full(200, 0.7))
    assert found.response == pytest.approx(weights.sum(), rel=1e-6)
    betas[180:], betas[:20] = 1.0, np.nan
    with pytest.raises(BrainfastError, match=r"0 % of the 20 vertices of weight 1; ") as e:
        measure(betas, weights.astype(np.float32), np.full(200, 0.7))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("weights", "lost"),
    [
        (OVERLAP, [149]),
        (OVERLAP, [*range(40), *range(149, 200)]),
        (MAP, [5]),
        (MAP, list(range(0, 60, 4))),
    ],
)
def test_what_is_missing_costs_certainty_and_no_bias(weights: np.ndarray, lost: list[int]) -> None:
    """Trials of vertices that scatter around their regions' responses, the noise as assumed."""
    random, V, trials = np.random.default_rng(7), len(weights), 2000
    means = np.where(weights > 0, 1.0, -2.0)
    if weights is OVERLAP:
        means = (3.0 * FIRST - 1.0 * LAST) / (1.0 * FIRST + LAST)
    variance = random.uniform(0.5, 0.9, V)
    of, errors, noises, whole = Weighted(weights, variance), [], [], weights.astype(float)
    for _ in range(trials):
        true = means + random.standard_normal(V)
        common = random.standard_normal(2)[(weights > 0).astype(int)]
        mixed = np.sqrt(0.2) * common + np.sqrt(0.8) * random.standard_normal(V)
        there = true.copy()
        there[lost] = np.nan
        found = of.measure((there + np.sqrt(variance) * mixed).astype(np.float32))
        errors.append(found.response - whole @ true)
        noises.append(found.response - of.measure(there.astype(np.float32)).response)
    assert np.mean(errors) == pytest.approx(0.0, abs=4 * np.std(errors) / np.sqrt(trials))
    assert np.var(noises) == pytest.approx(found.relative_noise * of.variance, rel=0.12)
    if len(lost) > 1:
        short = np.delete(whole, lost) @ np.delete(means, lost) - whole @ means
        assert abs(short) > 10 * np.std(errors) / np.sqrt(trials), "what no growth would miss"


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
