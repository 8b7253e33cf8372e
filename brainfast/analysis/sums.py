"""Sums that R2 and correlation are made of, each vertex over the trials that measured it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class MaskedSums:
    """Means, centred squares and products of predicted and measured, each vertex with its count.

    Blocks are merged with the pairwise formula of Chan, Golub and LeVeque, in float64, so neither
    offsets nor the size of a block change the result; the mean is taken around a vertex's first
    trial in the block, so a constant vertex stays exactly constant.
    """

    def __init__(self, V: int) -> None:
        self.count = np.zeros(V)
        self._mean, self._squares = np.zeros((2, 2, V))  # each of predicted, measured
        self._products, self._errors = np.zeros((2, V))

    @property
    def V(self) -> int:
        """Vertices."""
        return self.count.size

    def merge(self, values: Floats) -> None:  # [2,B,V]
        """Add trials: predicted, which is finite, and measured, where NaN is no measurement."""
        missing = np.isnan(values[1])
        count = len(missing) - missing.sum(axis=0)
        first = values[:, missing.argmin(axis=0), np.arange(self.V)]
        offsets = values - first[:, None]
        offsets[:, missing] = 0.0
        mean = first + offsets.sum(axis=1) / np.maximum(count, 1)
        mean[:, count == 0] = 0.0
        centred = np.subtract(values, mean[:, None], out=offsets)
        centred[:, missing] = 0.0
        errors = values[1] - values[0]
        errors[missing] = 0.0
        total = np.maximum(self.count + count, 1)
        weight = self.count * count / total
        shift = mean - self._mean
        self._squares += (centred**2).sum(axis=1) + weight * shift**2
        self._products += (centred[0] * centred[1]).sum(axis=0) + weight * shift[0] * shift[1]
        self._errors += (errors**2).sum(axis=0)
        self._mean += shift * (count / total)
        self.count += count

    def r2(self) -> Floats:  # [V]
        """R2; NaN where the measurement is constant, or there are fewer than 2 trials."""
        spread = self._squares[1]
        return 1.0 - self._errors / np.where(spread > 0, spread, np.nan)

    def pearson(self) -> Floats:  # [V]
        """Correlation; NaN as for R2, 0 for a constant prediction."""
        guess, truth = np.sqrt(self._squares)
        truth = np.where(truth > 0, truth, np.nan)
        flat = guess == 0
        r = self._products / np.where(flat, 1.0, guess) / truth
        return np.clip(np.where(flat & ~np.isnan(truth), 0.0, r), -1.0, 1.0)
