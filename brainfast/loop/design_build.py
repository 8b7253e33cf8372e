"""From a pool's features to the few numbers of every candidate that a session works with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from ..errors import BrainfastError
from .candidates import Candidates, FoldedObjective, check_candidates
from .design import Design, ObjectiveModel
from .measured import Weighted, vertex_noise
from .posterior import MAX_COLUMNS

Floats = NDArray[np.float64]

SAMPLE = 1024  # candidates that the principal components are those of
CHUNK_NUMBERS = 1 << 24  # features held at a time
FLATTEST = 1e-10  # share of the variance below which a component is rounding


def build_design(
    pool: Candidates,
    goals: Sequence[FoldedObjective],
    *,
    components: int = MAX_COLUMNS - 2,
    ceiling: NDArray[np.floating[Any]] | None = None,  # [V]
    seed: int = 0,
) -> Design:
    """Two passes over a part and one over the whole of the pool's features, for all objectives.

    components: how many principal components at most, 0 to 61, of at most 1,024 candidates, which
    `seed` draws
    """
    if not 0 <= components <= MAX_COLUMNS - 2:
        raise BrainfastError("components", expected=f"0 to {MAX_COLUMNS - 2}", got=str(components))
    ids, F = check_candidates(pool), _features(goals)
    mean, directions = _components(pool, F, components, seed)
    scores, coordinates = (
        np.empty((len(goals), len(ids))),
        np.empty((len(ids), directions.shape[1])),
    )
    for rows, features in _chunks(pool, ids, F):
        for own, goal in zip(scores, goals, strict=True):
            own[rows] = goal.scores(features)
        coordinates[rows] = (features - mean) @ directions
    noise = vertex_noise(ceiling, len(goals[0].weights))
    models = [
        _model(goal, own, coordinates, Weighted(goal.weights, noise), ceiling is None)
        for goal, own in zip(goals, scores, strict=True)
    ]
    return Design(ids, tuple(models))


def _features(goals: Sequence[FoldedObjective]) -> int:
    """How many features the objectives read, which must be the same for all."""
    first = goals[0]
    for goal in goals[1:]:
        for what in ("template", "weights"):
            here, there = (len(getattr(one, what)) for one in (first, goal))
            if here != there:
                raise BrainfastError(
                    f"{what} of {goal.name}",
                    expected=f"{here} numbers, as that of {first.name}",
                    got=str(there),
                )
    return len(first.template)


def _model(
    goal: FoldedObjective,
    scores: Floats,  # [N]
    coordinates: Floats,  # [N,k]
    reading: Weighted,
    adapt: bool,
) -> ObjectiveModel:
    centre, spread = float(scores.mean()), float(scores.std())
    if not spread > FLATTEST * max(1.0, abs(centre)):
        spread = 0.0
    score = (scores - centre) / spread if spread else np.zeros(len(scores))
    rest = _uncorrelated(coordinates, score)
    z = np.concatenate([np.ones((len(scores), 1)), score[:, None], rest], axis=1)
    z = z.astype(np.float32).astype(np.float64)
    return ObjectiveModel(goal.name, z, centre, spread, reading, adapt)


def _components(pool: Candidates, F: int, count: int, seed: int) -> tuple[Floats, Floats]:
    """Mean [F] and principal directions [F,<=count] of some candidates' features.

    Through the matrix of their inner products, which is small however many features there are.
    """
    N = len(pool)
    rows = np.arange(N)
    limit = max(2, min(SAMPLE, CHUNK_NUMBERS // F))
    if limit < N:
        rows = np.sort(np.random.default_rng(seed).choice(N, limit, replace=False))
    sample = _checked(pool, rows, tuple(pool.ids), F)
    mean = sample.mean(axis=0)
    sample -= mean
    count = min(count, len(rows) - 1, F)
    if count <= 0:
        return mean, np.zeros((F, 0))
    strengths, mixes = eigh(sample @ sample.T, subset_by_index=(len(rows) - count, len(rows) - 1))
    strengths, mixes = strengths[::-1], mixes[:, ::-1]
    kept = strengths > FLATTEST * max(float(strengths[0]), math.ulp(0.0))
    return mean, sample.T @ (mixes[:, kept] / np.sqrt(strengths[kept]))


def _uncorrelated(coordinates: Floats, score: Floats) -> Floats:
    """Coordinates [N,k] without their mean and without what `score` [N] tells, scaled together."""
    coordinates = coordinates - coordinates.mean(axis=0)
    coordinates -= np.outer(score, score @ coordinates / len(score))
    total = float(coordinates.var(axis=0).sum())
    return coordinates / math.sqrt(total) if total > 0 else coordinates


def _chunks(
    pool: Candidates, ids: tuple[str, ...], F: int
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    step = max(1, CHUNK_NUMBERS // F)
    for start in range(0, len(ids), step):
        rows = np.arange(start, min(start + step, len(ids)))
        yield rows, _checked(pool, rows, ids, F)


def _checked(pool: Candidates, rows: NDArray[np.int64], ids: tuple[str, ...], F: int) -> Floats:
    features = np.asarray(pool.features(rows))
    if features.shape != (len(rows), F):
        raise BrainfastError(
            "pool",
            expected=f"{F} features a candidate, as the objective's template",
            got=f"{list(features.shape)}",
            remedy="fold the objective through the model that the pool was built with",
        )
    wide: Floats = features.astype(np.float64)
    bad = ~np.isfinite(wide).all(axis=1)
    if bad.any():
        name = ids[int(rows[int(np.argmax(bad))])]
        raise BrainfastError(
            f"features of {name}", expected="finite numbers", got="NaN or infinity"
        )
    return wide
