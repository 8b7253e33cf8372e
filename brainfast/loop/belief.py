"""What is expected of every candidate, given the trials of some, several of which may be of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .posterior import Posterior, Prior, fit, narrowed

Floats = NDArray[np.float64]


class Told(NamedTuple):
    """Trials that were told, in the order of their choices.

    rows [n]: of the candidates; response [n]: what was measured; noise [n]: variance of the trial's
    noise, over that of one usual trial of a usual candidate
    """

    rows: NDArray[np.int64]
    response: Floats
    noise: Floats


class RowMeans(NamedTuple):
    """The trials of each row averaged, in the order of the rows' first trials.

    rows [n]; response [n]: weighted by precision; noise [n]: variance of the mean's trial noise,
    over that of one usual trial; scatter: sum of squares within the rows, over the relative noise;
    spare: trials less rows
    """

    rows: NDArray[np.int64]
    response: Floats
    noise: Floats
    scatter: float
    spare: int


def row_means(told: Told) -> RowMeans:
    """y_i = R_i sum_j y_ij / r_ij,  R_i = 1 / sum_j 1 / r_ij, of trials of relative noise r_ij."""
    rows, first, same = np.unique(told.rows, return_index=True, return_inverse=True)
    order, count = np.argsort(first), len(rows)
    place = np.argsort(order)[same]
    noise = 1.0 / np.bincount(place, 1.0 / told.noise, count)
    mean = noise * np.bincount(place, told.response / told.noise, count)
    scatter = np.square(told.response - mean[place]) / told.noise
    total = float(np.einsum("n->", scatter))
    return RowMeans(rows[order], mean, noise, total, len(told.rows) - count)


@dataclass(frozen=True, eq=False)
class Belief:
    """Trial j of candidate i measures  y_ij = z_i . theta + u_i + e_ij.

    u_i ~ N(0, own) is the image's own model error, the same in all of its trials, and
    e_ij ~ N(0, trial r_ij) the noise of a trial. Given theta, the row's mean y_i says all that its
    trials say of theta and u_i, and its noise is own + trial R_i: the own error once, however often
    the image was shown (`row_means`). So theta is that of a linear model of the rows' means, and

        E[u_i | theta] = k_i (y_i - z_i . theta),  k_i = own / (own + trial R_i)
        Var[u_i | theta] = k_i trial R_i

    where it was measured; 0 and own where it was not. The ratio of own to trial is the prior's; the
    data, where they may, correct both by one factor.

    means: of the rows that were measured; pull [n]: their k_i
    """

    posterior: Posterior
    own: float
    trial: float
    noisiness: Floats  # [N]
    means: RowMeans
    pull: Floats  # [n]

    def expected(self, linear: Floats) -> Floats:  # [N]
        """Responses [N] by those of the linear model, z . theta, and what the rows' means add."""
        found, rows = linear.copy(), self.means.rows
        found[rows] += self.pull * (self.means.response - found[rows])
        return found

    def mean_of(self, z: Floats) -> Floats:  # [N,d] -> [N]
        """Expected responses."""
        return self.expected(self.posterior.mean_of(z))

    def variance_of(self, z: Floats, posterior: Posterior | None = None) -> Floats:  # [N,d] -> [N]
        """Variance of the expected responses that theta leaves, after this posterior or another."""
        found, rows = (posterior or self.posterior).variance_of(z), self.means.rows
        found[rows] *= (1.0 - self.pull) ** 2
        return found

    def variance_of_response(self, z: Floats) -> Floats:  # [N,d] -> [N]
        """Variance of the noiseless responses: what theta leaves, and Var[u_i | theta]."""
        own = np.full(len(z), self.own)
        own[self.means.rows] = self.pull * self.trial * self.means.noise
        return np.asarray(self.variance_of(z) + own)

    def variance_of_next(self, z: Floats, row: int) -> float:  # [N,d]
        """Variance of what a further trial of a candidate will measure."""
        linear = float(self.posterior.variance_of(z[row : row + 1])[0])
        trial = self.trial * float(self.noisiness[row])
        found = np.flatnonzero(self.means.rows == row)
        if not len(found):
            return linear + (self.own + trial)
        pull, noise = float(self.pull[found[0]]), float(self.means.noise[found[0]])
        return (1.0 - pull) ** 2 * linear + pull * self.trial * noise + trial

    def awaiting(self, z: Floats, waiting: Sequence[int]) -> Posterior:  # [N,d]
        """The posterior with the certainty that trials of these rows will bring."""
        times: dict[int, int] = {}
        for row in waiting:
            times[row] = times.get(row, 0) + 1
        rows = np.array(list(times), dtype=np.int64)
        more = np.array(list(times.values()), dtype=np.float64)
        return narrowed(self.posterior, z[rows], self._gain(rows, more))

    def gains(self) -> Floats:  # [N]
        """Precision that one more trial of each candidate brings, over that of a usual first."""
        return self._gain(np.arange(len(self.noisiness)), np.ones(len(self.noisiness)))

    def _gain(
        self,
        rows: NDArray[np.int64],  # [n]
        more: Floats,  # [n], further trials
    ) -> Floats:  # [n]
        """noise / (own + trial R'_i) - noise / (own + trial R_i), with and without them."""
        before = np.zeros(len(self.noisiness))  # precision of the mean: 1 / R_i
        before[self.means.rows] = 1.0 / self.means.noise
        before = before[rows]
        after = before + more / self.noisiness[rows]
        noise = self.own + self.trial
        first = noise / (self.own + self.trial / after)
        told = np.where(before > 0, before, 1.0)
        return first - np.where(before > 0, noise / (self.own + self.trial / told), 0.0)


def believe(prior: Prior, z: Floats, noisiness: Floats, told: Told) -> Belief:
    """The belief after some trials; z [N,d] and noisiness [N] of all candidates."""
    means, noise = row_means(told), prior.noise
    trial = noise - prior.own
    relative = (prior.own + trial * means.noise) / noise
    scatter = means.scatter * noise / trial
    posterior = fit(prior, z[means.rows], means.response, relative, scatter, means.spare)
    factor = posterior.noise / noise
    pull = prior.own / (prior.own + trial * means.noise)
    return Belief(posterior, prior.own * factor, trial * factor, noisiness, means, pull)
