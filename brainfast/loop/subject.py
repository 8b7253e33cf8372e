"""A subject to rehearse with: the model's own prediction, what it gets wrong, and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..vertex_space import VertexSpace
from .candidates import ArrayCandidates, FoldedObjective
from .folding import fold, text_hash
from .measured import NOISE_CORRELATION, vertex_noise

if TYPE_CHECKING:
    from ..engine import Engine

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

LEARNABLE, HIDDEN = 6, 2  # factors of the model's error: linear in the features, and not at all
OWN_SHARE = 0.5  # of a vertex's error that its neighbours in the region do not share, as sd


@dataclass(frozen=True, eq=False)
class World:
    """A pool, an objective on it, and the responses that the model predicts.

    predicted [N,V] in z units; groups [V]: vertices of one number err together; ceiling [V]: noise
    ceilings of single trials as fractions, None where they are not known
    """

    pool: ArrayCandidates
    objective: FoldedObjective
    predicted: Floats  # [N,V]
    groups: NDArray[np.int64]  # [V]
    ceiling: Doubles | None = None  # [V]


class SimulatedSubject:
    """betas = prediction + systematic error + trial noise.

    error_nv = sum_f factor_nf loading_fv: 6 factors are random directions in the features, which a
    session can learn, 2 are other numbers for every image, which it cannot. Its standard deviation
    at every vertex is `model_error` times the prediction's. The noise has variance 1 - ceiling (a
    ceiling of 0.3 where none is known) and correlation 0.2 between vertices of the same group. That
    is much as a session assumes: a rehearsal does not test these assumptions.
    """

    def __init__(self, world: World, *, model_error: float = 1.0, seed: int = 0) -> None:
        if not 0 <= model_error < math.inf:
            raise BrainfastError("model_error", expected="0 or more", got=str(model_error))
        self.world = world
        random = np.random.default_rng([seed, 2])
        values = world.pool.values
        N, V = world.predicted.shape
        learnt = values @ random.standard_normal((values.shape[1], LEARNABLE), dtype=np.float32)
        factors = np.concatenate([learnt, random.standard_normal((N, HIDDEN))], axis=1)
        spread = factors.std(axis=0)
        self._factors: Doubles = (factors - factors.mean(axis=0)) / np.where(spread > 0, spread, 1)
        shared = random.standard_normal((LEARNABLE + HIDDEN, int(world.groups.max()) + 1))
        own = random.standard_normal((LEARNABLE + HIDDEN, V))
        loading = shared[:, world.groups] + OWN_SHARE * own
        size = np.sqrt(np.square(loading).sum(axis=0))
        self._loading: Doubles = model_error * world.predicted.std(axis=0) / size * loading
        self._noise = np.sqrt(vertex_noise(world.ceiling, V))

    @cached_property
    def objective(self) -> Doubles:
        """The noiseless objective of every candidate [N]."""
        weights = self.world.objective.weights.astype(np.float64)
        wrong = self._factors @ (self._loading @ weights)
        return np.asarray(self.world.predicted.astype(np.float64) @ weights + wrong)

    def measure(self, row: int, random: np.random.Generator, kept: float = 1.0) -> Floats:  # -> [V]
        """Betas of one trial; kept: the share of its haemodynamic response that was recorded."""
        true = self.world.predicted[row] + self._factors[row] @ self._loading
        shared = random.standard_normal(int(self.world.groups.max()) + 1)[self.world.groups]
        common = math.sqrt(NOISE_CORRELATION) * shared
        own = math.sqrt(1 - NOISE_CORRELATION) * random.standard_normal(true.shape)
        return np.asarray(true + self._noise * (common + own) / math.sqrt(kept), dtype=np.float32)


def groups_of(space: VertexSpace) -> NDArray[np.int64]:
    """A number a vertex [V]: the same for vertices of the same regions and hemisphere."""
    side = np.arange(space.V) >= space.lh.size
    masks = np.stack([side, *space.rois.values()], axis=1)
    return np.unique(masks, axis=0, return_inverse=True)[1].reshape(-1)


def model_world(
    engine: Engine,
    images: Sequence[Path],
    objective: Any,
    ceiling: Doubles | None = None,  # [V]
    *,
    batch_size: int = 32,
) -> World:
    """A trained model looking at image files, all in memory; objective: as `Objective` takes it."""
    features, predicted = [], []
    for start in range(0, len(images), batch_size):
        tokens = engine.tokens(list(images[start : start + batch_size]), batch_size=batch_size)
        aligned: Any = engine.head.align(tokens)
        features.append(aligned.flat())
        predicted.append(engine.head.readout(aligned))
    preprocessing = engine.card.trunk.preprocessing.model_dump_json()
    pool = ArrayCandidates(
        np.concatenate(features),
        [str(path) for path in images],
        engine.card.model_hash,
        text_hash(preprocessing),
    )
    return World(
        pool, fold(objective, engine), np.concatenate(predicted), groups_of(engine.space), ceiling
    )
