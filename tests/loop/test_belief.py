"""Repeated trials of an image, against a joint Gaussian of everything with its full covariance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from brainfast.loop.belief import Belief, Told, believe, row_means
from brainfast.loop.posterior import Prior
from loop_world import WEIGHTS, V, betas, session

N, D = 9, 4
OWN, TRIAL = 0.6, 0.9


def prior(seed: int = 0) -> Prior:
    random = np.random.default_rng([seed, 1])
    variance = random.uniform(0.2, 2.0, D)
    return Prior(random.standard_normal(D), variance, OWN + TRIAL, slice(2, D), False, OWN)


class One(NamedTuple):
    """A trial that was told."""

    row: int
    response: float
    noise: float


def trials(seed: int, count: int) -> list[One]:
    """Of few rows, so that most are repeated; of different noise."""
    random = np.random.default_rng([seed, 2])
    return [
        One(
            int(random.integers(0, 5)),
            float(random.standard_normal()),
            float(random.uniform(0.5, 2)),
        )
        for _ in range(count)
    ]


def columns(told: list[One]) -> Told:
    rows, response, noise = np.array(told, dtype=np.float64).reshape(-1, 3).T
    return Told(rows.astype(np.int64), response, noise)


Z = np.random.default_rng(9).standard_normal((N, D))


class Joint:
    """theta, the own errors of all images and a trial of each, given the trials told."""

    def __init__(self, told: list[One], noisiness: np.ndarray, own: float, trial: float) -> None:
        known, rows = prior(), [one.row for one in told]
        self.mean = np.concatenate([known.mean, np.zeros(N)])
        self.covariance = np.diag(np.concatenate([known.variance, np.full(N, own)]))
        self.read = np.hstack([Z, np.eye(N)])  # of an image's noiseless response
        self.trial, self.noisiness = trial, noisiness
        for one, row in zip(told, rows, strict=True):
            self.add(row, one.response, one.noise)

    def add(self, row: int, response: float, relative: float) -> None:
        """Condition on one trial, by the textbook."""
        read = self.read[row]
        total = read @ self.covariance @ read + self.trial * relative
        gain = self.covariance @ read / total
        self.mean = self.mean + gain * (response - read @ self.mean)
        self.covariance = self.covariance - np.outer(gain, read @ self.covariance)

    @property
    def theta(self) -> np.ndarray:
        return self.covariance[:D, :D]


def covariance(found: Any) -> np.ndarray:
    return np.linalg.inv(found.factor @ found.factor.T)


@given(seed=st.integers(0, 1000), count=st.integers(0, 14))
def test_belief_is_that_of_the_full_covariance(seed: int, count: int) -> None:
    told, noisiness = trials(seed, count), np.ones(N)
    found, joint = believe(prior(), Z, noisiness, columns(told)), Joint(told, noisiness, OWN, TRIAL)
    np.testing.assert_allclose(found.posterior.mean, joint.mean[:D], atol=1e-10)
    np.testing.assert_allclose(covariance(found.posterior), joint.theta, atol=1e-10)
    np.testing.assert_allclose(found.mean_of(Z), joint.read @ joint.mean, atol=1e-10)
    response = np.einsum("nd,de,ne->n", joint.read, joint.covariance, joint.read)
    np.testing.assert_allclose(found.variance_of_response(Z), response, atol=1e-10)
    for row in range(N):
        assert found.variance_of_next(Z, row) == pytest.approx(response[row] + TRIAL)


def test_the_covariance_of_scipy_agrees() -> None:
    """All trials at once: rows of one image share their own error."""
    told = trials(3, 12)
    rows = np.array([one.row for one in told])
    known, relative = prior(), np.array([one.noise for one in told])
    same = OWN * (rows[:, None] == rows)
    spread = Z[rows] @ np.diag(known.variance) @ Z[rows].T + same + TRIAL * np.diag(relative)
    response = np.array([one.response for one in told])
    cross = np.diag(known.variance) @ Z[rows].T
    mean = known.mean + cross @ np.linalg.solve(spread, response - Z[rows] @ known.mean)
    found = believe(known, Z, np.ones(N), columns(told))
    np.testing.assert_allclose(found.posterior.mean, mean, atol=1e-10)
    dense = np.diag(known.variance) - cross @ np.linalg.solve(spread, cross.T)
    np.testing.assert_allclose(covariance(found.posterior), dense, atol=1e-10)


def test_trials_of_one_image_do_not_make_it_certain() -> None:
    """Of theta they tell no more than a noiseless trial would, however many there are."""
    many = [One(2, 1.0, 1.0)] * 400
    found = believe(prior(), Z, np.ones(N), columns(many))
    once = Joint([], np.ones(N), OWN, TRIAL)
    once.add(2, 1.0, 0.0)
    np.testing.assert_allclose(covariance(found.posterior), once.theta, rtol=0.01)
    assert found.variance_of_next(Z, 2) == pytest.approx(TRIAL, rel=0.01)
    assert found.mean_of(Z)[2] == pytest.approx(1.0, abs=0.01)


def test_evidence_is_that_of_all_trials() -> None:
    """The corrected noise is where the density of the trials themselves is largest."""
    random = np.random.default_rng(4)
    rows = np.repeat(np.arange(N), 4)
    errors = 0.4 * random.standard_normal(N)
    response = Z[rows] @ np.ones(D) + errors[rows] + 0.35 * random.standard_normal(len(rows))
    relative = random.uniform(0.5, 2.0, len(rows))
    told = Told(rows, response, relative)
    known, best, chosen = prior(), -np.inf, 0.0
    for error in np.linspace(-2, 1, 13):
        for noise in np.linspace(-1, 1, 17):
            variance = known.variance.copy()
            variance[known.error] *= 10.0**error
            same = OWN * (rows[:, None] == rows) + TRIAL * np.diag(relative)
            spread = Z[rows] @ np.diag(variance) @ Z[rows].T + 10.0**noise * same
            density = multivariate_normal.logpdf(response, Z[rows] @ known.mean, spread)
            density -= 0.5 * ((error / 0.5) ** 2 + (noise / 0.3) ** 2)
            if density > best:
                best, chosen = density, 10.0**noise
    found = believe(replace(known, adapt=True), Z, np.ones(N), told)
    assert found.trial == pytest.approx(TRIAL * chosen, rel=1e-12)
    assert found.own == pytest.approx(OWN * chosen, rel=1e-12)
    assert chosen < 0.5, "the data are quieter than was thought"


def test_gains_are_those_of_one_more_trial() -> None:
    noisiness = np.linspace(0.5, 2.0, N)
    told = [one._replace(noise=one.noise * float(noisiness[one.row])) for one in trials(5, 8)]
    found, joint = believe(prior(), Z, noisiness, columns(told)), Joint(told, noisiness, OWN, TRIAL)
    before = np.linalg.slogdet(joint.theta)[1]
    variance = found.posterior.variance_of(Z)
    gained = np.log1p(variance * found.gains() / found.posterior.noise)
    for row in range(N):
        more = Joint(told, noisiness, OWN, TRIAL)
        more.add(row, 0.0, noisiness[row])
        assert before - np.linalg.slogdet(more.theta)[1] == pytest.approx(gained[row])


def test_trials_that_are_awaited_count_once_an_image_too() -> None:
    told, waiting = trials(6, 6), [0, 7, 0, 8]
    found = believe(prior(), Z, np.ones(N), columns(told))
    joint = Joint(told, np.ones(N), OWN, TRIAL)
    for row in waiting:
        joint.add(row, 0.0, 1.0)
    np.testing.assert_allclose(covariance(found.awaiting(Z, waiting)), joint.theta, atol=1e-10)


def test_rows_keep_the_order_of_their_first_trials() -> None:
    rows = np.array([5, 2, 5, 8])
    means = row_means(Told(rows, rows.astype(float), np.ones(4)))
    assert means.rows.tolist() == [5, 2, 8]
    assert means.response.tolist() == [5.0, 2.0, 8.0]
    assert means.noise.tolist() == [0.5, 1.0, 1.0]
    assert (means.scatter, means.spare) == (0.0, 1)


@pytest.mark.parametrize("strategy", ["greedy", "ucb", "thompson", "explore"])
def test_a_session_with_repeats_believes_the_same(strategy: Any) -> None:
    with session(strategy=strategy, repeats=3, ceiling=np.full(V, 0.4)) as running:
        for _ in range(12):
            assert running.wait(30)
            choice = running.next()
            running.tell(choice, betas(choice))
        assert running.wait(30)
        mean, sd = running.expected()
        model = running._progress.design.models[0]
        known = model.prior(0.5)
        told = [
            One(trial.row, trial.measurements[0].response, trial.measurements[0].relative_noise)
            for trial in running._progress.trials
        ]
        belief: Belief = believe(known, model.z, np.ones(len(model.z)), columns(told))
        assert np.array_equal(mean, belief.mean_of(model.z))
        last = running.next()
        row = int(last.image[-2:])
        assert last.score == mean[row]
        assert last.uncertainty == pytest.approx(np.sqrt(belief.variance_of_next(model.z, row)))
        assert np.array_equal(sd, np.sqrt(belief.variance_of_response(model.z)))
    if strategy == "greedy":
        assert len({one.row for one in told}) < len(told)


def test_expected_responses_lie_within_their_standard_deviation() -> None:
    """Subjects drawn from what a session assumes, each image with an error of its own."""
    found, ceiling = [], np.full(V, 0.7)
    for seed in range(40):
        random = np.random.default_rng([seed, 7])
        with session(strategy="random", seed=seed, repeats=2, ceiling=ceiling) as running:
            model = running._progress.design.models[0]
            known, direction = model.prior(0.5), WEIGHTS / np.square(WEIGHTS).sum()
            theta = known.mean + np.sqrt(known.variance) * random.standard_normal(len(known.mean))
            true = model.z @ theta + np.sqrt(known.own) * random.standard_normal(len(model.z))
            for _ in range(16):
                choice = running.next()
                noise = np.sqrt(model.noise) * random.standard_normal()
                running.tell(choice, (true[int(choice.image[-2:])] + noise) * direction)
            assert running.wait(30)
            mean, sd = running.expected()
        found.append((true - mean) / sd)
    assert np.mean(np.abs(found) < 1) == pytest.approx(0.68, abs=0.04)
    assert np.mean(np.square(found)) == pytest.approx(1.0, abs=0.12)
