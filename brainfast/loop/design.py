"""The few numbers of every candidate that a session's models are linear in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from .measured import Measurement
from .posterior import Prior

Floats = NDArray[np.float64]

OWN_SHARE = 0.25  # of the model's error that no component tells, where there are any
GAIN_SD = 0.5  # of the factor between predicted and measured, whose mean is 1


class Reading(Protocol):
    """From betas [V] to the response of an objective."""

    @property
    def V(self) -> int:
        """Vertices of a measurement."""
        ...

    def measure(self, betas: NDArray[np.float32]) -> Measurement:  # [V]
        """The response; too few betas are a BrainfastError."""
        ...

    def variance_of(self, scores: Floats) -> Floats:  # [n]
        """Of the noise in the response of a whole trial, by the noiseless score."""
        ...


@dataclass(frozen=True, eq=False)
class ObjectiveModel:
    """What is left of a pool for one objective: z [N,d] float64, a row a candidate.

    Columns: 1; the model's score, standardised over the pool; the leading principal components of
    the features, made uncorrelated with the score, of variance 1 together. The score is what the
    objective expects of the model's prediction, which for a target pattern is not linear.

    centre, spread: mean and standard deviation of the score over the pool; reading: from betas to
    the objective's response; adapt: whether nobody gave a ceiling, so that the data must tell the
    noise; own_share: of the model's error, what is each image's own: all where there are no
    components
    """

    name: str
    z: Floats  # [N,d]
    centre: float
    spread: float
    reading: Reading
    adapt: bool
    own_share: float = OWN_SHARE

    @cached_property
    def noise(self) -> float:
        """Variance of a trial's noise, at the pool's mean score."""
        return float(self.reading.variance_of(np.array([self.centre]))[0])

    @cached_property
    def noisiness(self) -> Floats:  # [N]
        """The same for each candidate, over that of the mean."""
        scores = self.centre + self.spread * self.z[:, 1]
        return self.reading.variance_of(scores) / self.noise

    def prior(self, model_share: float) -> Prior:
        """The model's score, believed as far as `model_share` says.

        mean: the score, to float32 rounding. model_share: share of the explainable variance of the
        objective that the model explains, so that its error over the pool has variance
        spread^2 (1 - share) / share. Three quarters of that are linear in the components, the rest
        is each image's own (`belief.Belief`, `own_share`). The gain is believed to half of itself,
        the offset to a standard deviation of the score.
        """
        d = self.z.shape[1]
        scale = self.spread or 1.0
        mean = np.zeros(d)
        mean[:2] = self.centre, self.spread
        error = scale**2 * (1.0 - model_share) / model_share
        variance = np.full(d, (1.0 - OWN_SHARE) * error)
        variance[:2] = scale**2, (GAIN_SD * scale) ** 2
        own = self.own_share * error
        return Prior(mean, variance, self.noise + own, slice(2, d), self.adapt, own)


@dataclass(frozen=True, eq=False)
class Design:
    """A pool of N candidates, and of each of O objectives the numbers of all of them.

    ids: N names, all different; categories, codes [N]: the names of C categories, and the number of
    each candidate's; none where they do not matter
    places [N,k] float32: coordinates on the principal components of the features, of variance 1
    together, so that two candidates drawn at random lie sqrt(2) apart on average (root of the mean
    square); only where distances matter. They stand for the features themselves, which are too many
    to be kept beside a log.
    """

    ids: tuple[str, ...]
    models: tuple[ObjectiveModel, ...]
    categories: tuple[str, ...] = ()
    codes: NDArray[np.int64] | None = None  # [N]
    places: NDArray[np.float32] | None = None  # [N,k]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def V(self) -> int:
        """Vertices of a measurement."""
        return self.models[0].reading.V

    @property
    def names(self) -> tuple[str, ...]:
        """Of the objectives, all different."""
        return tuple(model.name for model in self.models)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of every id."""
        return {name: row for row, name in enumerate(self.ids)}

    def objective(self, name: str) -> int:
        """Number of an objective; an unknown name is a BrainfastError that lists them."""
        if name not in self.names:
            raise BrainfastError(
                "objective", expected=" or ".join(map(repr, self.names)), got=repr(name)
            )
        return self.names.index(name)

    def measure(self, betas: NDArray[np.float32]) -> tuple[Measurement, ...]:  # [V]
        """What betas say of every objective."""
        return tuple(model.reading.measure(betas) for model in self.models)
