"""A `Pool` as a session sees it, and objectives as one template on a pool's features."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..objective import Objective
from ..pool import Pool
from ..pool_build import flat_template
from .candidates import Candidates, FoldedObjective
from .measured import Space

if TYPE_CHECKING:
    from ..engine import Engine

Floats = NDArray[np.float32]


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

    def features(self, rows: NDArray[np.int64]) -> Floats:
        """Features float32 [n,F] of some candidates."""
        return self._pool.rows.decoded(self._rows[rows])

    def fold(self, objective: Any, engine: Engine | None = None) -> tuple[FoldedObjective, ...]:
        """Objectives on these features, through their engine: this one, or the pool's own."""
        pool = self._pool if engine is None else self._pool.with_engine(engine)
        engine = pool.engine
        if engine is None:
            raise BrainfastError(
                "objective",
                expected="a pool opened with its engine",
                got="one without",
                remedy="Pool.open(path, engine)",
            )
        goal = Objective.of(objective)
        return _several(goal, *pool.templates(goal), engine)


def as_candidates(pool: Any) -> Candidates:
    """A pool of either kind."""
    if isinstance(pool, Pool):
        return PoolCandidates(pool)
    if isinstance(pool, Candidates):
        return pool
    raise BrainfastError("pool", expected="a Pool, or Candidates", got=type(pool).__name__)


def fold(objective: Any, engine: Engine) -> FoldedObjective:
    """One objective, folded onto what the engine's head reads; several are a BrainfastError."""
    found = _fold(objective, engine)
    if len(found) > 1:
        raise BrainfastError("objective", expected="one objective", got=f"{len(found)} of them")
    return found[0]


def folded(objective: Any, pool: Candidates, engine: Engine | None) -> tuple[FoldedObjective, ...]:
    """What a session follows: as it is, or folded through the engine of the pool.

    objective: what `Objective` takes, a `FoldedObjective`, or a list with one of these in it
    """
    listed = isinstance(objective, list | tuple)
    if listed and any(isinstance(one, FoldedObjective) for one in objective):
        found = tuple(goal for one in objective for goal in folded(one, pool, engine))
    elif isinstance(objective, FoldedObjective):
        found = (objective,)
    elif isinstance(pool, PoolCandidates):
        found = pool.fold(objective, engine)
    else:
        found = _fold(objective, _engine_of(objective, pool, engine))
    return _checked(found)


def _engine_of(objective: Any, pool: Candidates, engine: Engine | None) -> Engine:
    """The engine of features that are no pool's."""
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
    return engine


def _fold(objective: Any, engine: Engine) -> tuple[FoldedObjective, ...]:
    goal = Objective.of(objective)
    return _several(goal, *flat_template(goal.fold(engine)), engine)


def _several(
    goal: Objective,
    templates: Floats,  # [O,F]
    offset: Floats,  # [O]
    engine: Engine,
) -> tuple[FoldedObjective, ...]:
    space = engine.space
    columns = zip(goal.names, goal.weights(space), templates, offset, strict=True)
    return tuple(FoldedObjective(*column, space.hash(), space.subject) for column in columns)


def _checked(goals: tuple[FoldedObjective, ...]) -> tuple[FoldedObjective, ...]:
    """Objectives of different names on the same vertices."""
    first = Space(goals[0].space_hash, goals[0].subject)
    for number, goal in enumerate(goals):
        own = Space(goal.space_hash, goal.subject)
        if not own.fits(first):
            raise BrainfastError(
                f"objective {goal.name}",
                expected=f"one of {first}",
                got=f"of {own}",
                remedy="give each subject its own session",
            )
        if goal.name in [other.name for other in goals[:number]]:
            raise BrainfastError(
                "objective", expected="objectives of different names", got=f"{goal.name!r} twice"
            )
    return goals


def text_hash(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
