"""Scores of several subjects: the numbers that reports of group models state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BrainfastError
from .scores import MEASURES, ROWS_AT_ONCE, Scores

Floats = npt.NDArray[np.float64]


def group_summary(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Mean and median of each measure over all vertices of all subjects, pooled.

    `r2_median` is BlobGPT's "median R2 over subjects and vertices", `normalised_mean` the challenge
    score. Keys are those of `Scores.summary`, and `subjects`; `n` and `vertices` are sums. Vertices
    whose measure is NaN (constant, or without a measurement or a ceiling) are left out; a measure
    without any is NaN.
    """
    if not scores:
        raise BrainfastError("scores", expected="those of at least one subject", got="none")
    numbers: dict[str, float] = {
        "subjects": len(scores),
        "n": sum(one.n for one in scores.values()),
        "vertices": sum(one.V for one in scores.values()),
    }
    for measure in MEASURES:
        values = np.concatenate([_measure(one, measure) for one in scores.values()])
        known = values[np.isfinite(values)]
        numbers[f"{measure}_mean"] = float(known.mean()) if known.size else math.nan
        numbers[f"{measure}_median"] = float(np.median(known)) if known.size else math.nan
    return numbers


def _measure(scores: Scores, measure: str) -> Floats:
    if measure == "ceiling" and scores.ceiling is None:
        return np.full(scores.V, np.nan)
    return np.asarray(getattr(scores, measure), dtype=np.float64)


class GroupAccumulator:
    """R2 and r of every subject in the union of their vertices, batch by batch, with masks.

    subjects: names, as a split's `subject_index` numbers them

    A vertex's sums run over the trials of a subject in which it was measured, with counts of its
    own, so that a vertex missing in some sessions is still scored on the others. Batches are merged
    with the formula of Chan, Golub and LeVeque, in float64.
    """

    def __init__(self, subjects: Sequence[str]) -> None:
        self._sums = {subject: _MaskedSums() for subject in subjects}
        self._names = tuple(subjects)

    def update(
        self,
        subject_index: npt.ArrayLike,  # [B]
        predicted: npt.ArrayLike,  # [B,V]
        measured: npt.ArrayLike,  # [B,V]
        present: npt.ArrayLike,  # [B,V] bool
    ) -> None:
        """Add a batch that may mix subjects; what is not present may hold anything."""
        index, guess, truth, known = map(np.asarray, (subject_index, predicted, measured, present))
        shapes = {guess.shape, truth.shape, known.shape}
        if len(shapes) > 1 or guess.ndim != 2 or index.shape != guess.shape[:1]:
            raise BrainfastError(
                "predicted, measured, present",
                expected="three arrays [B,V] of one size, and subject_index [B]",
                got=f"{list(guess.shape)}, {list(truth.shape)}, {list(known.shape)}, "
                f"{list(index.shape)}",
            )
        if index.size and not (index.min() >= 0 and index.max() < len(self._names)):
            raise BrainfastError(
                "subject_index",
                expected=f"places of the subjects {', '.join(self._names)}",
                got=f"{index.min()} to {index.max()}",
            )
        for name, values in (("predicted", guess), ("measured", truth)):
            if not np.isfinite(values[known]).all():
                raise BrainfastError(name, expected="finite values", got="NaN or infinity")
        for number in np.unique(index):
            rows = index == number
            self._sums[self._names[number]].merge(guess[rows], truth[rows], known[rows])

    def r2(self, subject: str) -> Floats:
        """R2 of one subject, float64 [V]; NaN where it has fewer than 2 trials or never varies."""
        return self._of(subject).r2()

    def pearson(self, subject: str) -> Floats:
        """Correlation of one subject, float64 [V]; NaN as for R2, 0 for a constant prediction."""
        return self._of(subject).pearson()

    def median_r2(self) -> float:
        """Median R2 over all subjects and vertices that have one; NaN without any."""
        started = [sums.r2() for sums in self._sums.values() if sums.started]
        values = np.concatenate([np.zeros(0), *started])
        known = values[np.isfinite(values)]
        return float(np.median(known)) if known.size else math.nan

    def _of(self, subject: str) -> _MaskedSums:
        if subject not in self._sums or not self._sums[subject].started:
            raise BrainfastError(
                "subject",
                expected=f"one that was scored, of {', '.join(self._names)}",
                got=repr(subject),
            )
        return self._sums[subject]


class _MaskedSums:
    """Means, centred squares and products of predicted and measured, each vertex with its count."""

    def __init__(self) -> None:
        self.started = False
        self._count = np.zeros(0)
        self._mean = np.zeros((2, 0))  # predicted, measured
        self._squares = np.zeros((2, 0))
        self._products = np.zeros(0)
        self._errors = np.zeros(0)

    def merge(
        self,
        guess: npt.NDArray[Any],  # [B,V]
        truth: npt.NDArray[Any],  # [B,V]
        known: npt.NDArray[Any],  # [B,V]
    ) -> None:
        V = guess.shape[1]
        if not self.started:
            self._count, self._products, self._errors = np.zeros((3, V))
            self._mean, self._squares = np.zeros((2, 2, V))
            self.started = True
        elif len(self._count) != V:
            raise BrainfastError(
                "predicted", expected=f"{len(self._count)} vertices, as before", got=f"{V}"
            )
        for start in range(0, len(guess), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            self._merge(np.stack([guess[rows], truth[rows]]).astype(np.float64), known[rows])

    def _merge(self, values: Floats, known: npt.NDArray[Any]) -> None:  # [2,B,V], [B,V]
        values = np.where(known, values, 0.0)
        count = known.sum(axis=0)
        mean = values.sum(axis=1) / np.maximum(count, 1)
        centred = np.where(known, values - mean[:, None], 0.0)
        shift = mean - self._mean
        total = np.maximum(self._count + count, 1)
        weight = self._count * count / total
        self._squares += (centred**2).sum(axis=1) + weight * shift**2
        self._products += (centred[0] * centred[1]).sum(axis=0) + weight * shift[0] * shift[1]
        self._errors += ((values[1] - values[0]) ** 2).sum(axis=0)
        self._mean += shift * (count / total)
        self._count += count

    def r2(self) -> Floats:
        return np.asarray(1.0 - self._errors / self._spread()[1])

    def pearson(self) -> Floats:
        guess, truth = np.sqrt(self._spread())
        flat = guess == 0
        r = self._products / np.where(flat, 1.0, guess) / truth
        return np.asarray(np.clip(np.where(flat & ~np.isnan(truth), 0.0, r), -1.0, 1.0))

    def _spread(self) -> Floats:
        """Centred squares [2,V]; those of the measurement are NaN where there is no score."""
        scored = (self._count > 1) & (self._squares[1] > 0)
        return np.stack([self._squares[0], np.where(scored, self._squares[1], np.nan)])
