"""A Bayesian linear model with Gaussian prior and noise: exact, in float64, in a fixed order.

The matrices are smaller than 64, where LAPACK as numpy and scipy ship it runs on one thread; larger
sums go through einsum, which knows no threads. So a posterior has the same bits however many
threads BLAS may use.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh, solve_triangular

Floats = NDArray[np.float64]

MAX_COLUMNS = 63
BLOCK = 64  # rows of a product that stays below the size at which OpenBLAS starts threads

# Decades by which the data may correct the assumed model error and noise, and how far they are
# believed to be off: standard deviations of a log-normal prior, in decades.
ERROR_DECADES, ERROR_SPREAD = np.linspace(-2.0, 1.0, 13), 0.5
NOISE_DECADES, NOISE_SPREAD = np.linspace(-1.0, 1.0, 17), 0.3


@dataclass(frozen=True, eq=False)
class Prior:
    """theta ~ N(mean, diag(variance)),  response = z . theta + N(0, noise * its relative noise).

    mean, variance [d] float64; error: columns whose variance is the model's error. adapt: whether
    `noise` and the variance of the error columns are corrected by the data (empirical Bayes). own:
    the part of `noise` that an image has in all of its trials alike, see `belief.Belief`.
    """

    mean: Floats  # [d]
    variance: Floats  # [d]
    noise: float
    error: slice
    adapt: bool
    own: float = 0.0


@dataclass(frozen=True, eq=False)
class Posterior:
    """theta ~ N(mean, inverse(factor factor^T)), factor lower triangular [d,d], and the noise."""

    mean: Floats  # [d]
    factor: Floats  # [d,d]
    noise: float
    _whitener: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        d = len(self.mean)
        whitener = solve_triangular(self.factor, np.eye(d), lower=True)
        object.__setattr__(self, "_whitener", whitener)

    def mean_of(self, z: Floats) -> Floats:  # [n,d]
        """Expected responses [n]."""
        return np.asarray(np.einsum("nd,d->n", z, self.mean))

    def variance_of(self, z: Floats) -> Floats:  # [n,d]
        """Variance of the expected responses [n], without the noise of a trial."""
        n, d = z.shape
        blocks = np.zeros((-(-n // BLOCK), BLOCK, d))
        blocks.reshape(-1, d)[:n] = z
        white = np.matmul(blocks, self._whitener.T)
        return np.asarray(np.einsum("bnd,bnd->bn", white, white).reshape(-1)[:n])

    def draw(self, normal: Floats) -> Floats:  # [d] -> [d]
        """theta from the posterior, given standard normal numbers."""
        return np.asarray(self.mean + np.einsum("ij,i->j", self._whitener, normal))

    def digest(self) -> str:
        """16 hexadecimal digits that change with any bit of it."""
        parts = (self.mean, np.tril(self.factor), np.float64(self.noise))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def fit(
    prior: Prior,
    z: Floats,  # [n,d]
    response: Floats,  # [n]
    relative_noise: Floats,  # [n]
    scatter: float = 0.0,
    spare: int = 0,
) -> Posterior:
    """The posterior after n measurements, in closed form.

    precision = diag(1/variance) + sum_i z_i z_i^T / noise_i
    mean = prior mean + precision^-1 sum_i z_i (response_i - z_i . prior mean) / noise_i

    It is computed anew from all measurements, so the way there leaves no trace in it: sort them,
    and the order in which they arrived has none either. scatter, spare: sum of squares, in units of
    `noise`, and number of further residuals that theta does not enter: they tell the noise where
    the data are to correct it. Source: Bishop, Pattern Recognition and
    Machine Learning, section 3.3.
    """
    weight = 1.0 / np.sqrt(relative_noise)
    scaled = z * weight[:, None]
    surprise = (response - np.einsum("nd,d->n", z, prior.mean)) * weight
    gram = np.einsum("ni,nj->ij", scaled, scaled)
    pull = np.einsum("nd,n->d", scaled, surprise)
    if prior.adapt and len(z):
        square = float(np.einsum("n,n->", surprise, surprise)) + scatter
        prior = _adapted(prior, gram, pull, square, len(z) + spare)
    return _condition(prior, gram, pull)


def narrowed(
    posterior: Posterior,
    z: Floats,  # [n,d]
    gain: Floats,  # [n]
) -> Posterior:
    """The same mean, with the certainty that n further measurements at `z` will bring.

    gain: precision of each, over that of the posterior's noise
    """
    factor = np.tril(posterior.factor)
    precision = np.einsum("ik,jk->ij", factor, factor)
    z = z * np.sqrt(gain)[:, None]
    precision += np.einsum("ni,nj->ij", z, z) / posterior.noise
    lower, _ = cho_factor(precision, lower=True)
    return replace(posterior, factor=np.tril(lower))


def _condition(prior: Prior, gram: Floats, pull: Floats) -> Posterior:
    precision = np.diag(1.0 / prior.variance) + gram / prior.noise
    lower, _ = cho_factor(precision, lower=True)
    lower = np.tril(lower)
    mean = prior.mean + cho_solve((lower, True), pull / prior.noise)
    return Posterior(mean, lower, prior.noise)


def _adapted(prior: Prior, gram: Floats, pull: Floats, square: float, n: int) -> Prior:
    """The prior whose model error and noise, of a grid, have the largest evidence.

    A grid, because rounding then has no say in the result but where two of its points are equal.
    """
    noises = prior.noise * 10.0**NOISE_DECADES
    best, chosen = -np.inf, prior
    for decade in ERROR_DECADES:
        variance = prior.variance.copy()
        variance[prior.error] *= 10.0**decade
        root = np.sqrt(variance)
        strengths, axes = eigh(gram * root[:, None] * root)
        along = np.einsum("ij,i->j", axes, pull * root) ** 2
        total = noises[:, None] + np.maximum(strengths, 0.0)
        log_determinant = (n - len(root)) * np.log(noises) + np.log(total).sum(axis=1)
        misfit = (square - (along / total).sum(axis=1)) / noises
        belief = (decade / ERROR_SPREAD) ** 2 + (NOISE_DECADES / NOISE_SPREAD) ** 2
        evidence = -0.5 * (log_determinant + misfit + belief)
        index = int(np.argmax(evidence))
        if evidence[index] > best:
            best = float(evidence[index])
            chosen = replace(prior, variance=variance, noise=float(noises[index]))
    return chosen
