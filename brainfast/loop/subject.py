"""A subject to rehearse with: the model's own prediction, what it gets wrong, and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..pool_fill import unflatten
from ..vertex_space import VertexSpace
from .candidates import ArrayCandidates, Candidates, FoldedObjective
from .design_build import CHUNK_NUMBERS
from .folding import PoolCandidates, folded, sole, text_hash
from .measured import NOISE_CORRELATION, vertex_noise

if TYPE_CHECKING:
    from ..engine import Engine

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]

LEARNABLE, HIDDEN = 6, 2  # factors of the model's error: linear in the features, and not at all
SAMPLE = 2000  # candidates that the spread of a vertex's predictions is that of
OWN_SHARE = 0.5  # of a vertex's error that its neighbours in the region do not share, as sd


@dataclass(frozen=True, eq=False)
class World:
    """A pool, an objective on it, and the responses that the model predicts at its vertices.

    predict: rows [n] -> z units [n,V], so that no response is kept; groups [V]: vertices of one
    number err together; ceiling [V]: noise ceilings of single trials as fractions, None where they
    are not known
    """

    pool: Candidates
    objective: FoldedObjective
    predict: Callable[[Rows], Floats]
    groups: Rows  # [V]
    ceiling: Doubles | None = None  # [V]


class SimulatedSubject:
    """betas = prediction + systematic error + trial noise.

    error_nv = sum_f factor_nf loading_fv: 6 factors are random directions in the features, which a
    session can learn, 2 are other numbers for every image, which it cannot. Its standard deviation
    at every vertex is `model_error` times the prediction's, over 2,000 candidates at most. The
    noise has variance 1 - ceiling (a ceiling of 0.3 where none is known) and correlation 0.2
    between vertices of the same group. That is much as a session assumes: a rehearsal does not test
    these assumptions.

    predicted [N]: the objective of the model; objective [N]: of the subject, without noise
    """

    def __init__(self, world: World, *, model_error: float = 1.0, seed: int = 0) -> None:
        if not 0 <= model_error < math.inf:
            raise BrainfastError("model_error", expected="0 or more", got=str(model_error))
        self.world = world
        random = np.random.default_rng([seed, 2])
        N, goal = len(world.pool), world.objective
        directions = random.standard_normal((goal.F, LEARNABLE), dtype=np.float32)
        self.predicted: Doubles = np.empty(N)
        learnt = np.empty((N, LEARNABLE))
        for start in range(0, N, max(1, CHUNK_NUMBERS // goal.F)):
            rows = np.arange(start, min(N, start + max(1, CHUNK_NUMBERS // goal.F)))
            features = world.pool.features(rows)
            learnt[rows] = features @ directions
            self.predicted[rows] = goal.scores(features.astype(np.float64))
        factors = np.concatenate([learnt, random.standard_normal((N, HIDDEN))], axis=1)
        spread = factors.std(axis=0)
        self._factors: Doubles = (factors - factors.mean(axis=0)) / np.where(spread > 0, spread, 1)
        groups, V = world.groups, goal.V
        shared = random.standard_normal((LEARNABLE + HIDDEN, int(groups.max()) + 1))
        own = random.standard_normal((LEARNABLE + HIDDEN, V))
        loading = shared[:, groups] + OWN_SHARE * own
        size = np.sqrt(np.square(loading).sum(axis=0))
        sample = world.predict(np.unique(np.linspace(0, N - 1, SAMPLE).astype(np.int64)))
        self._loading: Doubles = model_error * sample.std(axis=0) / size * loading
        self._noise = np.sqrt(vertex_noise(world.ceiling, V))
        wrong = self._factors @ (self._loading @ goal.weights.astype(np.float64))
        self.objective: Doubles = self.predicted + wrong

    def measure(self, row: int, random: np.random.Generator, kept: float = 1.0) -> Floats:  # -> [V]
        """Betas of one trial; kept: the share of its haemodynamic response that was recorded."""
        true = self.world.predict(np.array([row]))[0] + self._factors[row] @ self._loading
        shared = random.standard_normal(int(self.world.groups.max()) + 1)[self.world.groups]
        common = math.sqrt(NOISE_CORRELATION) * shared
        own = math.sqrt(1 - NOISE_CORRELATION) * random.standard_normal(true.shape)
        return np.asarray(true + self._noise * (common + own) / math.sqrt(kept), dtype=np.float32)


def groups_of(space: VertexSpace) -> Rows:
    """A number a vertex [V]: the same for vertices of the same regions and hemisphere."""
    side = np.arange(space.V) >= space.lh.size
    masks = np.stack([side, *space.rois.values()], axis=1)
    return np.unique(masks, axis=0, return_inverse=True)[1].reshape(-1)


def images_of(engine: Engine, images: Sequence[Path], *, batch_size: int = 32) -> ArrayCandidates:
    """Image files as candidates, with what the engine's head reads of them in memory."""
    features = []
    for start in range(0, len(images), batch_size):
        tokens = engine.tokens(list(images[start : start + batch_size]), batch_size=batch_size)
        aligned: Any = engine.head.align(tokens)
        features.append(aligned.flat())
    preprocessing = engine.card.trunk.preprocessing.model_dump_json()
    return ArrayCandidates(
        np.concatenate(features),
        [str(path) for path in images],
        engine.card.model_hash,
        text_hash(preprocessing),
    )


def model_world(
    engine: Engine,
    pool: Candidates,
    objective: Any,
    ceiling: Doubles | None = None,  # [V]
) -> World:
    """A trained model looking at candidates whose features it made, at the objective's vertices.

    objective: as `Objective` takes it, one; a pool of scores alone is a BrainfastError
    """
    if isinstance(pool, PoolCandidates) and pool.projected:
        raise BrainfastError(
            "pool",
            expected="one of all features, from which responses can be computed",
            got="one of scores on some objectives",
            remedy="build a pool without a projection",
        )
    goal = sole(folded(objective, pool, engine))
    vertices = np.flatnonzero(goal.weights)
    space, head = engine.space.take(vertices), engine.head.take(vertices)
    own = replace(goal, weights=goal.weights[vertices], space_hash=space.hash())

    def predict(rows: Rows) -> Floats:
        response: Floats = head.readout(unflatten(head, pool.features(rows)))
        return response

    part = None if ceiling is None else ceiling[vertices]
    return World(pool, own, predict, groups_of(space), part)
