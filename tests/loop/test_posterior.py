"""The posterior against dense algebra, one-at-a-time updates and another order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfast.loop.posterior import Posterior, Prior, fit, narrowed


def case(seed: int, n: int, d: int) -> tuple[Prior, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    prior = Prior(
        random.standard_normal(d), random.uniform(0.1, 3, d), 0.7, slice(min(2, d), d), False
    )
    z = random.standard_normal((n, d))
    return prior, z, random.standard_normal(n), random.uniform(0.5, 2.0, n)


def covariance(posterior: Posterior) -> np.ndarray:
    return np.linalg.inv(posterior.factor @ posterior.factor.T)


sizes = given(seed=st.integers(0, 10_000), n=st.integers(0, 40), d=st.integers(1, 63))


@sizes
@settings(max_examples=40)
def test_posterior_is_that_of_dense_algebra(seed: int, n: int, d: int) -> None:
    prior, z, response, relative = case(seed, n, d)
    found = fit(prior, z, response, relative)
    # Conditioning a joint Gaussian: the form that inverts an n x n matrix instead.
    prior_covariance = np.diag(prior.variance)
    joint = z @ prior_covariance @ z.T + np.diag(prior.noise * relative)
    gain = prior_covariance @ z.T @ np.linalg.pinv(joint) if n else np.zeros((d, 0))
    mean = prior.mean + gain @ (response - z @ prior.mean)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-8, atol=1e-9)
    dense = prior_covariance - gain @ z @ prior_covariance
    np.testing.assert_allclose(covariance(found), dense, rtol=1e-8, atol=1e-9)
    probe = np.random.default_rng(seed).standard_normal((70, d))
    np.testing.assert_allclose(found.mean_of(probe), probe @ mean, rtol=1e-8, atol=1e-8)
    variance = np.einsum("nd,de,ne->n", probe, dense, probe)
    np.testing.assert_allclose(found.variance_of(probe), variance, rtol=1e-7, atol=1e-9)


@sizes
@settings(max_examples=25)
def test_one_at_a_time_is_the_batch(seed: int, n: int, d: int) -> None:
    prior, z, response, relative = case(seed, n, d)
    mean, spread = prior.mean.copy(), np.diag(prior.variance)
    for row, value, share in zip(z, response, relative, strict=True):
        gain = spread @ row / (row @ spread @ row + prior.noise * share)
        mean = mean + gain * (value - row @ mean)
        spread = spread - np.outer(gain, row @ spread)
    found = fit(prior, z, response, relative)
    np.testing.assert_allclose(found.mean, mean, atol=1e-10, rtol=1e-9)
    np.testing.assert_allclose(covariance(found), spread, atol=1e-10, rtol=1e-8)


@given(seed=st.integers(0, 10_000), adapt=st.booleans())
@settings(max_examples=15)
def test_order_of_measurements_does_not_matter(seed: int, adapt: bool) -> None:
    prior, z, response, relative = case(seed, 30, 12)
    prior = replace(prior, adapt=adapt)
    turn = np.random.default_rng(seed).permutation(30)
    found = fit(prior, z, response, relative)
    other = fit(prior, z[turn], response[turn], relative[turn])
    np.testing.assert_allclose(found.mean, other.mean, atol=1e-10, rtol=1e-10)
    assert found.noise == other.noise


@pytest.mark.parametrize("noise", [0.08, 0.7, 5.0])
def test_noise_is_found_from_many_measurements(noise: float) -> None:
    random = np.random.default_rng(3)
    prior = Prior(np.zeros(10), np.ones(10), 0.7, slice(2, 10), True)
    z = random.standard_normal((2000, 10))
    response = z @ random.standard_normal(10) + np.sqrt(noise) * random.standard_normal(2000)
    found = fit(prior, z, response, np.ones(2000))
    assert found.noise == pytest.approx(noise, rel=0.25)  # a grid of an eighth of a decade


def test_evidence_is_the_density_of_the_responses() -> None:
    """The grid's best point beats its neighbours under a density computed another way."""
    prior, z, response, relative = case(5, 25, 8)
    found = fit(replace(prior, adapt=True), z, response, relative)
    best, chosen = -np.inf, 0.0
    for error in np.linspace(-2, 1, 13):
        for noise in np.linspace(-1, 1, 17):
            variance = prior.variance.copy()
            variance[prior.error] *= 10.0**error
            joint = z @ np.diag(variance) @ z.T
            joint = joint + np.diag(prior.noise * 10.0**noise * relative)
            gap = response - z @ prior.mean
            density = -0.5 * (np.linalg.slogdet(joint)[1] + gap @ np.linalg.solve(joint, gap))
            density -= 0.5 * ((error / 0.5) ** 2 + (noise / 0.3) ** 2)
            if density > best:
                best, chosen = density, prior.noise * 10.0**noise
    assert found.noise == pytest.approx(chosen, rel=1e-12)


def test_narrowed_is_the_certainty_of_more_measurements() -> None:
    prior, z, response, relative = case(2, 9, 6)
    more = np.random.default_rng(8).standard_normal((3, 6))
    before = fit(prior, z, response, relative)
    after = fit(
        prior,
        *(
            np.concatenate(p)
            for p in ((z, more), (response, more @ before.mean), (relative, np.ones(3)))
        ),
    )
    found = narrowed(before, more, np.ones(3))
    np.testing.assert_allclose(covariance(found), covariance(after), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(after.mean, before.mean, atol=1e-10)


def test_draws_have_the_posterior_covariance() -> None:
    found = fit(*case(4, 12, 3))
    normal = np.random.default_rng(0).standard_normal((40_000, 3))
    drawn = np.array([found.draw(row) for row in normal])
    np.testing.assert_allclose(np.cov(drawn.T), covariance(found), atol=0.01)
    np.testing.assert_allclose(drawn.mean(axis=0), found.mean, atol=0.01)


def test_digest_sees_the_last_bit() -> None:
    found = fit(*case(1, 5, 4))
    other = found.mean.copy()
    other[2] = np.nextafter(other[2], np.inf)
    assert replace(found, mean=other).digest() != found.digest()
    assert fit(*case(1, 5, 4)).digest() == found.digest()


def test_blocks_do_not_change_a_row() -> None:
    found = fit(*case(1, 20, 50))
    z = np.random.default_rng(0).standard_normal((1, 50)).repeat(131, axis=0)
    assert len(set(found.variance_of(z))) == 1
    assert found.variance_of(z[:1])[0] == found.variance_of(z)[0]
    assert len(set(found.mean_of(z))) == 1
