"""From a pool's features to the few numbers of every candidate that a session works with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from ..errors import BrainfastError
from .candidates import Candidates, FoldedObjective, check_candidates, pieces_of
from .design import OWN_SHARE, Design, ObjectiveModel, Reading
from .measured import Space, vertex_noise
from .pool_product import block_rows, multiplied, one_blas_thread
from .posterior import MAX_COLUMNS

Floats = NDArray[np.float64]
Narrow = NDArray[np.float32]

SAMPLE = 1024  # candidates that the principal components are those of
SAMPLE_BLOCK = 1 << 18  # numbers of the sample in float64 at a time
CHUNK_NUMBERS = 1 << 24  # features held at a time
FLATTEST = 1e-10  # share of the variance below which a component is rounding
EPSILON = float(np.finfo(np.float64).eps)


class Goal(Protocol):
    """What a design asks of an objective: `FoldedObjective` and `FoldedPattern`.

    scores: of some candidates; a `FoldedObjective`'s are one more column of the pool's product.
    """

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

    def scores(self, features: Narrow) -> Floats: ...  # [n,F] -> [n]

    def reading(self, sample: Narrow, noise: Floats, model_share: float) -> Reading: ...


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
    with one_blas_thread():
        directions = _components(sample, components)
    del sample
    scores, coordinates = _numbers(pool, ids, goals, directions)
    models = [
        _model(goal.name, own, coordinates, reading, ceiling is None)
        for goal, own, reading in zip(goals, scores, readings, strict=True)
    ]
    names, codes = _categories(pool) if balance else ((), None)
    return Design(ids, tuple(models), names, codes, _places(coordinates) if distances else None)


def _numbers(
    pool: Candidates,
    ids: tuple[str, ...],
    goals: Sequence[Goal],
    directions: Floats,  # [F,k]
) -> tuple[Floats, Floats]:
    """Scores [O,N] of all candidates, and coordinates [N,k] less their mean.

    The mean is taken off the products and not the features, which costs no pass over them: what
    cancels then is rounded in float64, far below what float32 left of the features themselves.
    """
    N, (F, k) = len(ids), directions.shape
    linear = {o: goal for o, goal in enumerate(goals) if isinstance(goal, FoldedObjective)}
    rest = {o: goal for o, goal in enumerate(goals) if o not in linear}
    templates = [goal.template[:, None] for goal in linear.values()]
    matrix = np.concatenate([directions, np.ones((F, 1)), *templates], axis=1)
    products, scores = np.empty((N, matrix.shape[1])), np.empty((len(goals), N))
    pieces = None if rest else pieces_of(pool)
    step = N if pieces is not None else max(1, CHUNK_NUMBERS // F)
    for start in range(0, N, step):
        here = slice(start, min(start + step, N))
        features = _features(pool, np.arange(N)[here], F) if pieces is None else pieces
        multiplied(features, matrix, block_rows(min(step, N)), products[here])
        _check_finite(products[here, k], ids[here])
        for number, goal in rest.items():
            scores[number, here] = goal.scores(features[:, :])
    for column, (number, goal) in enumerate(linear.items(), start=k + 1):
        scores[number] = products[:, column] + goal.offset
    return scores, products[:, :k] - products[:, :k].mean(axis=0)


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


def _sample(pool: Candidates, ids: tuple[str, ...], F: int, seed: int) -> Narrow:
    """Features [n,F] of some candidates."""
    N = len(ids)
    rows = np.arange(N)
    limit = max(2, min(SAMPLE, CHUNK_NUMBERS // F))
    if limit < N:
        rows = np.sort(np.random.default_rng(seed).choice(N, limit, replace=False))
    features = _features(pool, rows, F)
    with np.errstate(invalid="ignore"):
        sums = features.sum(axis=1, dtype=np.float64)
    _check_finite(sums, [ids[row] for row in rows])
    return features


def _components(
    sample: Narrow,  # [n,F]
    count: int,
) -> Floats:
    """Principal directions [F,<=count] of some candidates' features.

    Through the matrix of their inner products, which is small however many features there are.
    """
    n, F = sample.shape
    count = min(count, n - 1, F)
    if count <= 0:
        return np.zeros((F, 0))
    products, rounding = np.zeros((n, n)), 0.0
    for _, mean, centred in _centred(sample):
        products += centred @ centred.T
        rounding += n * float(np.square(n * EPSILON * mean).sum())  # a mean is as far off at most
    strengths, mixes = eigh(products, subset_by_index=(n - count, n - 1))
    strengths, mixes = strengths[::-1], mixes[:, ::-1]
    kept = strengths > max(FLATTEST * float(strengths[0]), rounding)
    scaled = mixes[:, kept] / np.sqrt(strengths[kept])
    directions = np.empty((F, scaled.shape[1]))
    for columns, _, centred in _centred(sample):
        np.matmul(centred.T, scaled, out=directions[columns])
    return directions


def _centred(sample: Narrow) -> Iterator[tuple[slice, Floats, Floats]]:  # [n,F]
    """Some columns at a time, the mean [f] of each, and their features [n,f] less that."""
    n, F = sample.shape
    step = max(1, SAMPLE_BLOCK // n)
    for begin in range(0, F, step):
        columns = slice(begin, min(begin + step, F))
        wide = sample[:, columns].astype(np.float64)
        mean = wide.mean(axis=0)
        wide -= mean
        yield columns, mean, wide


def _uncorrelated(coordinates: Floats, score: Floats) -> Floats:
    """Coordinates [N,k] without what `score` [N] tells, scaled together.

    None, [N,0], where the score tells all of them: what is left then is rounding.
    """
    before = float(coordinates.var(axis=0).sum())
    told = np.einsum("n,nk->k", score, coordinates) / len(score)
    coordinates = coordinates - np.outer(score, told)
    total = float(coordinates.var(axis=0).sum())
    return coordinates / math.sqrt(total) if total > FLATTEST * before else coordinates[:, :0]


def _features(pool: Candidates, rows: NDArray[np.int64], F: int) -> Narrow:
    features = np.asarray(pool.features(rows))
    if features.shape != (len(rows), F):
        raise BrainfastError(
            "pool",
            expected=f"{F} features a candidate, as the objective's template",
            got=f"{list(features.shape)}",
            remedy="fold the objective through the model that the pool was built with",
        )
    return features


def _check_finite(sums: Floats, ids: Sequence[str]) -> None:
    """Refuse features whose sum is not finite: no float32 numbers that are reach as far."""
    bad = ~np.isfinite(sums)
    if bad.any():
        raise BrainfastError(
            f"features of {ids[int(np.argmax(bad))]}",
            expected="finite numbers",
            got="NaN or infinity",
        )
