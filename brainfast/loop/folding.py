"""A `Pool` as a session sees it, and objectives as one template on a pool's features."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..objective import Objective
from ..pool import Pool
from .candidates import Candidates, FoldedObjective

if TYPE_CHECKING:
    from ..engine import Engine


class PoolCandidates:
    """The candidates of a `Pool` that were not removed from it.

    model_hash: of all that decides a candidate's features but its image; the readout behind them
    is in the objective's template.
    """

    def __init__(self, pool: Pool) -> None:
        removed = set(pool.items.removed)
        kept = [row for row in range(pool.index.items) if row not in removed]
        self._rows = np.array(kept, dtype=np.int64)
        self.ids = tuple(pool.items.names[row] for row in kept)
        key = pool.index.key.model_dump(mode="json")
        images = key.pop("images_hash")
        self.model_hash = text_hash(repr(sorted(key.items())))
        self.preprocessing_hash = text_hash(pool.index.key.preprocessing.model_dump_json())
        self.hash = text_hash("\0".join((self.model_hash, images, *self.ids)))
        self._pool = pool

    def __len__(self) -> int:
        return len(self.ids)

    def features(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features float32 [n,F] of some candidates."""
        return self._pool.rows.decoded(self._rows[rows])

    def fold(self, objective: Any, engine: Engine | None = None) -> FoldedObjective:
        """An objective on these features, through their engine: this one, or the pool's own."""
        pool = self._pool if engine is None else self._pool.with_engine(engine)
        engine = pool.engine
        if engine is None:
            raise BrainfastError(
                "objective",
                expected="a pool opened with its engine",
                got="one without",
                remedy="Pool.open(path, engine)",
            )
        templates, offset = pool.templates(objective)
        goal = Objective.of(objective)
        weights = goal.weights(engine.space)
        space = engine.space
        return FoldedObjective(
            ", ".join(goal.names), weights, templates, offset[0], space.hash(), space.subject
        )


def as_candidates(pool: Any) -> Candidates:
    """A pool of either kind."""
    if isinstance(pool, Pool):
        return PoolCandidates(pool)
    if isinstance(pool, Candidates):
        return pool
    raise BrainfastError("pool", expected="a Pool, or Candidates", got=type(pool).__name__)


def fold(objective: Any, engine: Engine) -> FoldedObjective:
    """What `Objective` takes, folded onto what the engine's head reads; it must be one."""
    goal = Objective.of(objective)
    template = goal.fold(engine)
    folded = template.tokens if hasattr(template, "tokens") else template.latent
    space = engine.space
    return FoldedObjective(
        ", ".join(goal.names),
        goal.weights(space),
        folded.flat(),
        template.offset[0],
        space.hash(),
        space.subject,
    )


def folded(objective: Any, pool: Candidates, engine: Engine | None) -> FoldedObjective:
    """What a session follows: as it is, or folded through the engine of the pool."""
    if isinstance(objective, FoldedObjective):
        return objective
    if isinstance(pool, PoolCandidates):
        return pool.fold(objective, engine)
    if engine is None:
        raise BrainfastError(
            "objective",
            expected="a FoldedObjective, or the engine that the features are of",
            got=f"{objective!r:.40} and no engine",
            remedy="give engine=",
        )
    if pool.model_hash not in ("", engine.card.model_hash):
        raise BrainfastError(
            "engine",
            expected=f"the model that the features are of ({pool.model_hash[:12]})",
            got=f"another ({engine.card.model_hash[:12]})",
            remedy="load that model, or compute the features again",
        )
    return fold(objective, engine)


def text_hash(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
