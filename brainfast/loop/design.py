"""The few numbers of every candidate that a session's model is linear in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from ..errors import BrainfastError
from ..files import hash_arrays, load_tensors, save_tensors
from .candidates import Candidates, FoldedObjective, check_candidates
from .measured import noise_variance, vertex_noise
from .posterior import MAX_COLUMNS, Prior

Floats = NDArray[np.float64]

SAMPLE = 1024  # candidates that the principal components are those of
CHUNK_NUMBERS = 1 << 24  # features held at a time
FLATTEST = 1e-10  # share of the variance below which a component is rounding
OWN_SHARE = 0.25  # of the model's error that no component tells
GAIN_SD = 0.5  # of the factor between predicted and measured, whose mean is 1


@dataclass(frozen=True, eq=False)
class Design:
    """What is left of a pool and an objective: z [N,d] float64, a row a candidate.

    Columns: 1; the folded template's score, standardised over the pool; the leading principal
    components of the features, made uncorrelated with the score, of variance 1 together.

    centre, spread: mean and standard deviation of the score over the pool; ids: N names;
    weights [V] float32: the objective; noise [V] float64: variance of a trial at every vertex;
    adapt: whether nobody gave a ceiling, so that the data must tell the noise
    """

    z: Floats  # [N,d]
    ids: tuple[str, ...]
    centre: float
    spread: float
    weights: NDArray[np.float32]  # [V]
    noise: Floats  # [V]
    adapt: bool

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def V(self) -> int:
        """Vertices of a measurement."""
        return len(self.weights)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of every id."""
        return {name: row for row, name in enumerate(self.ids)}

    def prior(self, model_share: float) -> Prior:
        """The folded template, believed as far as `model_share` says.

        mean: the template's score, to float32 rounding. model_share: share of the explainable
        variance of the objective that the model explains, so that its error over the pool has
        variance spread^2 (1 - share) / share. Three quarters of that are linear in the
        components, the rest is each image's own, which counts as noise of its trials. The gain is
        believed to half of itself, the offset to a standard deviation of the score.

        An image's own error is the same in all of its trials, but counts here as independent noise
        of each: repeats of an image make the posterior more certain than they should.
        """
        d = self.z.shape[1]
        scale = self.spread or 1.0
        mean = np.zeros(d)
        mean[:2] = self.centre, self.spread
        error = scale**2 * (1.0 - model_share) / model_share
        variance = np.full(d, (1.0 - OWN_SHARE) * error)
        variance[:2] = scale**2, (GAIN_SD * scale) ** 2
        noise = noise_variance(self.weights.astype(np.float64), self.noise)
        return Prior(mean, variance, noise + OWN_SHARE * error, slice(2, d), self.adapt)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything here."""
        return hash_arrays(self._arrays())

    def save(self, path: Path) -> None:
        """Write it as a safetensors file, atomically."""
        save_tensors(path, self._arrays())

    @staticmethod
    def load(path: Path, expected_hash: str) -> Design:
        """Read what `save` wrote; another or a damaged file is a BrainfastError."""
        arrays = load_tensors(path)
        if hash_arrays(arrays) != expected_hash:
            raise BrainfastError(
                str(path),
                expected="the file that was written with this log",
                got="another",
                remedy="keep a log and the file beside it together",
            )
        names = json.loads(arrays["ids"].tobytes())
        centre, spread, adapt = arrays["about"]
        return Design(
            arrays["z"].astype(np.float64),
            tuple(names),
            float(centre),
            float(spread),
            arrays["weights"],
            arrays["noise"],
            bool(adapt),
        )

    def _arrays(self) -> dict[str, NDArray[Any]]:
        names = json.dumps(self.ids).encode()
        return {
            "z": self.z.astype(np.float32),  # exact: it was float32 before
            "ids": np.frombuffer(names, dtype=np.uint8),
            "about": np.array([self.centre, self.spread, self.adapt], dtype=np.float64),
            "weights": self.weights,
            "noise": self.noise,
        }

    @staticmethod
    def build(
        pool: Candidates,
        objective: FoldedObjective,
        *,
        components: int = MAX_COLUMNS - 2,
        ceiling: NDArray[np.floating[Any]] | None = None,  # [V]
        seed: int = 0,
    ) -> Design:
        """Two passes over a part and one over the whole of the pool's features.

        components: how many principal components at most, 0 to 61, of at most 1,024 candidates,
        which `seed` draws
        """
        if not 0 <= components <= MAX_COLUMNS - 2:
            raise BrainfastError(
                "components", expected=f"0 to {MAX_COLUMNS - 2}", got=str(components)
            )
        ids = check_candidates(pool)
        mean, directions = _components(pool, len(objective.template), components, seed)
        scores, coordinates = np.empty(len(ids)), np.empty((len(ids), directions.shape[1]))
        template = objective.template.astype(np.float64)
        for rows, features in _chunks(pool, ids, len(template)):
            scores[rows] = features @ template + objective.offset
            coordinates[rows] = (features - mean) @ directions
        centre, spread = float(scores.mean()), float(scores.std())
        if not spread > FLATTEST * max(1.0, abs(centre)):
            spread = 0.0
        score = (scores - centre) / spread if spread else np.zeros(len(ids))
        rest = _uncorrelated(coordinates, score)
        z = np.concatenate([np.ones((len(ids), 1)), score[:, None], rest], axis=1)
        return Design(
            z=z.astype(np.float32).astype(np.float64),
            ids=ids,
            centre=centre,
            spread=spread,
            weights=objective.weights,
            noise=vertex_noise(ceiling, len(objective.weights)),
            adapt=ceiling is None,
        )


def design_path(log: Path) -> Path:
    """The file beside a log that holds its candidates' numbers."""
    return log.with_name(f"{log.name}.design.safetensors")


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
