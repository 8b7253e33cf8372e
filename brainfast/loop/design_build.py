"""From a pool's features to the few numbers of every candidate that a session works with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from ..errors import BrainfastError
from .candidates import Candidates, check_candidates
from .design import OWN_SHARE, Design, ObjectiveModel, Reading
from .measured import Space, vertex_noise
from .posterior import MAX_COLUMNS

Floats = NDArray[np.float64]

SAMPLE = 1024  # candidates that the principal components are those of
CHUNK_NUMBERS = 1 << 24  # features held at a time
FLATTEST = 1e-10  # share of the variance below which a component is rounding


class Goal(Protocol):
    """What a design asks of an objective: `FoldedObjective` and `FoldedPattern`."""

    @property
    def name(self) -> str: ...

    @property
    def space_hash(self) -> str: ...

    @property
    def subject(self) -> str | None: ...

    @property
    def V(self) -> int: ...

    @property
    def F(self) -> int: ...

    def scores(self, features: Floats) -> Floats: ...

    def reading(self, sample: Floats, noise: Floats, model_share: float) -> Reading: ...


def build_design(
    pool: Candidates,
    goals: Sequence[Goal],
    *,
    components: int = MAX_COLUMNS - 2,
    ceiling: NDArray[np.floating[Any]] | None = None,  # [V]
    model_share: float = 0.5,
    seed: int = 0,
    balance: bool = False,
    distances: bool = False,
) -> Design:
    """One pass over a part and one over the whole of the pool's features, for all objectives.

    components: how many principal components at most, 0 to 61, of at most 1,024 candidates, which
    `seed` draws; model_share: see `ObjectiveModel.prior`; balance,
    distances: whether categories and places are kept
    """
    if not 0 <= components <= MAX_COLUMNS - 2:
        raise BrainfastError("components", expected=f"0 to {MAX_COLUMNS - 2}", got=str(components))
    _check_goals(goals)
    ids, noise = check_candidates(pool), vertex_noise(ceiling, goals[0].V)
    sample = _sample(pool, ids, goals[0].F, seed)
    readings = [goal.reading(sample, noise, model_share) for goal in goals]
    mean, directions = _components(sample, components)
    del sample
    scores = np.empty((len(goals), len(ids)))
    coordinates = np.empty((len(ids), directions.shape[1]))
    for rows, features in _chunks(pool, ids, goals[0].F):
        for own, goal in zip(scores, goals, strict=True):
            own[rows] = goal.scores(features)
        coordinates[rows] = (features - mean) @ directions
    models = [
        _model(goal.name, own, coordinates, reading, ceiling is None)
        for goal, own, reading in zip(goals, scores, readings, strict=True)
    ]
    names, codes = _categories(pool) if balance else ((), None)
    return Design(ids, tuple(models), names, codes, _places(coordinates) if distances else None)


def _check_goals(goals: Sequence[Goal]) -> None:
    """Refuse objectives of different models or subjects, and of one name."""
    first = goals[0]
    subject = Space(first.space_hash, first.subject)
    for number, goal in enumerate(goals):
        own = Space(goal.space_hash, goal.subject)
        wrong = [
            (own.fits(subject), f"one of {subject}", f"one of {own}"),
            (goal.V == first.V, f"{first.V} vertices, as {first.name}", str(goal.V)),
            (goal.F == first.F, f"{first.F} features, as {first.name}", str(goal.F)),
            (
                goal.name not in [other.name for other in goals[:number]],
                "objectives of different names",
                "this one twice",
            ),
        ]
        for good, expected, got in wrong:
            if not good:
                raise BrainfastError(f"objective {goal.name}", expected=expected, got=got)


def _categories(pool: Candidates) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the categories, and the number of each candidate's."""
    given = tuple(getattr(pool, "categories", ()))
    names, codes = np.unique(np.array(given, dtype=str), return_inverse=True)
    if len(given) != len(pool) or len(names) < 2:
        raise BrainfastError(
            "balance",
            expected="a pool whose candidates are of several categories",
            got=f"{len(names)} of them",
            remedy="build the pool with categories, or leave balance out",
        )
    return tuple(names.tolist()), codes.reshape(-1).astype(np.int64)


def _places(coordinates: Floats) -> NDArray[np.float32]:  # [N,k]
    """Coordinates of variance 1 together."""
    total = float(coordinates.var(axis=0).sum())
    if not total > 0:
        raise BrainfastError(
            "min_distance",
            expected="candidates that differ, and a component at least",
            got="none that do",
            remedy="leave min_distance out",
        )
    return (coordinates / math.sqrt(total)).astype(np.float32)


def _model(
    name: str,
    scores: Floats,  # [N]
    coordinates: Floats,  # [N,k]
    reading: Reading,
    adapt: bool,
) -> ObjectiveModel:
    centre, spread = float(scores.mean()), float(scores.std())
    if not spread > FLATTEST * max(1.0, abs(centre)):
        spread = 0.0
    score = (scores - centre) / spread if spread else np.zeros(len(scores))
    rest = _uncorrelated(coordinates, score)
    z = np.concatenate([np.ones((len(scores), 1)), score[:, None], rest], axis=1)
    z = z.astype(np.float32).astype(np.float64)
    own_share = OWN_SHARE if rest.shape[1] else 1.0
    return ObjectiveModel(name, z, centre, spread, reading, adapt, own_share)


def _sample(pool: Candidates, ids: tuple[str, ...], F: int, seed: int) -> Floats:
    """Features [n,F] of some candidates."""
    N = len(ids)
    rows = np.arange(N)
    limit = max(2, min(SAMPLE, CHUNK_NUMBERS // F))
    if limit < N:
        rows = np.sort(np.random.default_rng(seed).choice(N, limit, replace=False))
    return _checked(pool, rows, ids, F)


def _components(
    sample: Floats,  # [n,F], used up
    count: int,
) -> tuple[Floats, Floats]:
    """Mean [F] and principal directions [F,<=count] of some candidates' features.

    Through the matrix of their inner products, which is small however many features there are.
    """
    n, F = sample.shape
    mean = sample.mean(axis=0)
    sample -= mean
    count = min(count, n - 1, F)
    if count <= 0:
        return mean, np.zeros((F, 0))
    strengths, mixes = eigh(sample @ sample.T, subset_by_index=(n - count, n - 1))
    strengths, mixes = strengths[::-1], mixes[:, ::-1]
    kept = strengths > FLATTEST * max(float(strengths[0]), math.ulp(0.0))
    return mean, sample.T @ (mixes[:, kept] / np.sqrt(strengths[kept]))


def _uncorrelated(coordinates: Floats, score: Floats) -> Floats:
    """Coordinates [N,k] without their mean and without what `score` [N] tells, scaled together.

    None, [N,0], where the score tells all of them: what is left then is rounding.
    """
    coordinates = coordinates - coordinates.mean(axis=0)
    before = float(coordinates.var(axis=0).sum())
    coordinates -= np.outer(score, score @ coordinates / len(score))
    total = float(coordinates.var(axis=0).sum())
    return coordinates / math.sqrt(total) if total > FLATTEST * before else coordinates[:, :0]


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
