"""Target patterns inside a session: what betas say of them, and what the model expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..pool_fill import unflatten
from ..target_pattern import PatternScore
from .design_build import CHUNK_NUMBERS
from .measured import LEAST_SHARE, NOISE_CORRELATION, Measurement

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PatternReading:
    """The score of betas y = r + e against a target t over its n known vertices, freed of noise.

    The noise e has covariance S: variance s_v^2 at every vertex, correlation c = 0.2.

    Squared error: response = -mean (y - t)^2 + mean s^2. Its expectation is that of the noiseless
    response r, since E (y - t)^2 = (r - t)^2 + s^2 at every vertex, however the noise is
    correlated. Its variance is (4 d^T S d + 2 tr S^2) / n^2, d = r - t (Gaussian noise; Mathai and
    Provost, Quadratic Forms in Random Variables, 1992, section 3.2): the better a candidate, the
    quieter its trials. d^T S d is taken to be in proportion to d^T d, as it is over the pool.

    Correlation: response = corr(y, t) / a, a^2 = L / (L + tr P S), where P takes the mean over the
    vertices off and L is the mean of |P r|^2 over the pool. Noise in |P y| makes a measured
    correlation smaller, by a to first order for a response of that mean length (Spearman 1904).
    Its variance is u^T S u / L, u = P t / |P t|.

    Where betas are NaN, the mean is over the vertices that are there, and the noise counts as
    larger by their share.

    target [V]: NaN where a vertex does not count; noise [V]: variances s^2; gain: 1 / a; slope,
    floor: variance = floor - slope * score
    """

    target: Floats  # [V]
    noise: Floats  # [V]
    correlates: bool
    gain: float
    slope: float
    floor: float

    @property
    def V(self) -> int:
        """Vertices of a measurement."""
        return len(self.target)

    def variance_of(self, scores: Floats) -> Floats:  # [n]
        """Of the noise in the response of a whole trial, by the noiseless score."""
        return np.asarray(self.floor - self.slope * np.minimum(scores, 0.0))

    def measure(self, betas: NDArray[np.float32]) -> Measurement:  # [V]
        """The score; betas at less than half of the pattern's vertices are a BrainfastError."""
        known = np.isfinite(self.target)
        there = known & np.isfinite(betas)
        share = int(there.sum()) / int(known.sum())
        if share < LEAST_SHARE or (self.correlates and there.sum() < 2):
            raise BrainfastError(
                "measured",
                expected="betas at half of the pattern's vertices, at least",
                got=f"{int(there.sum())} of {int(known.sum())}",
                remedy="skip(choice) gives up a lost trial",
            )
        given, target = betas[there].astype(np.float64), self.target[there]
        if self.correlates:
            response = self.gain * _correlation(given, target)
        else:
            response = float(np.mean(self.noise[there] - np.square(given - target)))
        return Measurement(response, 1.0 / share)


@dataclass(frozen=True, eq=False)
class FoldedPattern:
    """A target pattern on what an engine's head reads.

    target [V] float64, NaN where a vertex does not count; head: the engine's, of the pattern's
    vertices alone; score: of what the head reads; F: features of a candidate in flat form
    """

    name: str
    target: Floats  # [V]
    correlates: bool
    head: Any
    score: PatternScore
    F: int
    space_hash: str = ""
    subject: str | None = None

    @property
    def V(self) -> int:
        """Vertices of a measurement."""
        return len(self.target)

    def scores(self, features: NDArray[np.float32]) -> Floats:  # [n,F] -> [n]
        """What the model expects of candidates: the pattern's score of its prediction."""
        found = np.empty(len(features))
        for start in range(0, len(features), self._at_once):
            rows = slice(start, start + self._at_once)
            aligned = unflatten(self.head, features[rows].astype(np.float32, copy=False))
            found[rows] = self.score.score(aligned)[:, 0]
        return found

    def reading(
        self,
        sample: NDArray[np.float32],  # [n,F]
        noise: Floats,  # [V]
        model_share: float,
    ) -> PatternReading:
        """With the lengths and distances that the model's predictions of some candidates have.

        Of a sample whose predictions are too many to be held, some are left out, evenly.
        """
        some = sample[:: -(-len(sample) // self._at_once)]
        aligned = unflatten(self.head, some.astype(np.float32, copy=False))
        predicted = self.head.readout(aligned).astype(np.float64)  # [n, known vertices]
        known = np.isfinite(self.target)
        target, part = self.target[known], noise[known]
        numbers = _correlation_numbers if self.correlates else _error_numbers
        gain, slope, floor = numbers(predicted, target, part, model_share)
        return PatternReading(self.target, noise, self.correlates, gain, slope, floor)

    @property
    def _at_once(self) -> int:
        """Candidates whose responses at the known vertices are held at a time."""
        return max(1, CHUNK_NUMBERS // int(np.isfinite(self.target).sum()))


def _correlation_numbers(
    predicted: Floats,  # [n,v]
    target: Floats,  # [v]
    noise: Floats,  # [v]
    model_share: float,
) -> tuple[float, float, float]:
    """gain, slope and floor of a correlation."""
    centred = predicted - predicted.mean(axis=1, keepdims=True)
    length = float(np.square(centred).sum(axis=1).mean()) / model_share
    if not length > 0:
        raise BrainfastError(
            "target",
            expected="vertices whose predicted responses differ",
            got=f"the same at all {len(target)} for every candidate",
            remedy="choose other vertices",
        )
    whole = float(_variance_along(np.ones(len(noise)), noise))  # 1^T S 1
    lost = float(noise.sum()) - whole / len(noise)
    unit = target - target.mean()
    unit /= np.linalg.norm(unit)
    return float(np.sqrt(1 + lost / length)), 0.0, float(_variance_along(unit, noise)) / length


def _error_numbers(
    predicted: Floats,  # [n,v]
    target: Floats,  # [v]
    noise: Floats,  # [v]
    model_share: float,
) -> tuple[float, float, float]:
    """gain, slope and floor of a squared error."""
    gaps, n, c = predicted - target, len(target), NOISE_CORRELATION
    along = float(_variance_along(gaps, noise).mean())
    square = float(np.square(gaps).mean())
    slope = 4 * along / (n**2 * square) if square > 0 else 0.0
    squares = (1 - c**2) * float(np.square(noise).sum()) + c**2 * float(noise.sum()) ** 2  # tr S^2
    return 1.0, slope, 2 * squares / n**2


def _variance_along(
    weights: Floats,  # [...,v]
    noise: Floats,  # [v]
) -> Floats:  # [...]
    """w^T S w = (1 - c) sum (w s)^2 + c (sum w s)^2: all vertices share a part of their noise."""
    own = np.einsum("...v,...v,v->...", weights, weights, noise)
    common = np.einsum("...v,v->...", weights, np.sqrt(noise))
    return np.asarray((1 - NOISE_CORRELATION) * own + NOISE_CORRELATION * common**2)


def _correlation(given: Floats, target: Floats) -> float:  # [n], [n]
    """0 where one of them is the same everywhere."""
    given, target = given - given.mean(), target - target.mean()
    size = float(np.sqrt(np.einsum("v,v->", given, given) * np.einsum("v,v->", target, target)))
    return float(np.einsum("v,v->", given, target)) / size if size > 0 else 0.0
