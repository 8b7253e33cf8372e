"""Scores of several subjects: the numbers that reports of group models state."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..errors import BrainfastError
from .scores import MEASURES, Scores

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
